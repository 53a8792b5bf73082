"""`sensitivity`: what quantising each group of layers alone costs."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.passes.qdq_nodes import QDQ
from edge_mrcnn.compiler.precision import layer_precisions
from edge_mrcnn.compiler.preparation import load_model
from edge_mrcnn.compiler.recipe import Dialect, Recipe
from edge_mrcnn.errors import CalibrationError
from edge_mrcnn.evaluation.comparison import Drop
from edge_mrcnn.evaluation.drops import DropMeter
from edge_mrcnn.evaluation.groups import keep_pattern, layer_groups
from edge_mrcnn.evaluation.noise import NoiseMeter, Shares, read_frames, to_decibels
from edge_mrcnn.sidecar import hash_file
from edge_mrcnn.spec import ModelSpec

ALL = "all together"
"""Stands for the network with every group quantised."""

_QUIETEST = 60.0
"""Decibels from which a bar is empty: float16's own noise."""

_BAR = 24
"""Characters of the longest bar."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class SensitivityOptions:
    """How `sensitivity` measures."""

    pictures: int = 32
    """Pictures that noise is measured on, evenly spread over a COCO file."""

    ap: bool = False
    """Also measure what each group costs in AP. It needs labels, and a run over them for each group."""

    limit: int | None = None
    """Measure AP on the first so many pictures only; all when not given."""

    dialect: Dialect = "tensorrt"
    """tensorrt: int8 and float16 as TensorRT rounds them, emulated. ort: int8 as ONNX Runtime computes it on a CPU."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is not positive.
        """
        for name in ("pictures", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"SensitivityOptions.{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class GroupSensitivity:
    """What quantising one group costs.

    Attributes:
        name: The group's.
        layers: Names of its nodes.
        macs: Multiply-accumulates per picture; None where shapes do not tell.
        snr_db: Signal-to-noise ratio in decibels, of the mean share of noise over the taps; infinite without any.
        taps_db: The ratio at each tap; infinite where there is no noise.
        drop: In points of AP; None where it was not measured.
    """

    name: str
    layers: tuple[str, ...]
    macs: int | None
    snr_db: float
    taps_db: Mapping[str, float]
    drop: Drop | None

    @property
    def worst_tap(self) -> str:
        """The tap with the most noise."""
        return min(self.taps_db, key=lambda tap: self.taps_db[tap])

    @property
    def worst_db(self) -> float:
        """The ratio there."""
        return self.taps_db[self.worst_tap]

    @property
    def box_drop(self) -> float | None:
        """Points of box AP lost; None where it was not measured."""
        return None if self.drop is None else self.drop.box.value

    @property
    def mask_drop(self) -> float | None:
        """Points of mask AP lost; None where it was not measured, or there are no masks."""
        return None if self.drop is None or self.drop.mask is None else self.drop.mask.value

    @property
    def keypoint_drop(self) -> float | None:
        """Points of keypoint AP lost; None where it was not measured, or there are no keypoints."""
        return None if self.drop is None or self.drop.keypoint is None else self.drop.keypoint.value

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None stands for it."""
        derived = {"worst_tap": self.worst_tap, "worst_db": _finite(self.worst_db), "snr_db": _finite(self.snr_db)}
        taps = {tap: _finite(value) for tap, value in self.taps_db.items()}
        return {**dataclasses.asdict(self), **derived, "taps_db": taps}


@dataclass(frozen=True)
class SensitivityResult:
    """The groups of a network, the one that costs most first.

    Attributes:
        model: The model's file.
        data: What it was measured on.
        dialect: What the graphs were made for.
        backend: What ran them.
        method: Of the ranges.
        pictures: Pictures that noise was measured on.
        labelled: Pictures that AP was measured on; 0 where it was not.
        together: Every group quantised.
        groups: Each alone; by the mean noise over the taps, most first.
        seconds: Time it took.
    """

    model: str
    data: str
    dialect: Dialect
    backend: str
    method: str
    pictures: int
    labelled: int
    together: GroupSensitivity
    groups: tuple[GroupSensitivity, ...]
    seconds: float

    def to_json(self) -> str:
        """The result as indented JSON; None stands for an infinite ratio."""
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "together": self.together.to_dict(), "groups": [group.to_dict() for group in self.groups]}

    def to_svg(self) -> str:
        """The result as a bar chart; the longer a bar, the more noise.

        Raises:
            EdgeMrcnnError: Matplotlib is not installed.
        """
        from edge_mrcnn.evaluation import charts, wording

        rows = [
            charts.Bar(
                group.name,
                max(_QUIETEST - group.snr_db, 0.0),
                wording.show_db(group.snr_db),
                emulated=self.dialect == "tensorrt",
                quiet=group is self.together,
            )
            for group in (self.together, *self.groups)
        ]
        title = "Noise with one group of layers quantised, as signal-to-noise ratio"
        return charts.draw_bars(
            rows, f"{title}: {'; '.join(f'{row.name} {row.text}' for row in rows)}.", width=charts.WIDTH
        )

    def lines(self) -> list[str]:
        """The result as lines of a text table; the longer a bar, the more noise."""
        rows = [self.together, *self.groups]
        width = max(len(row.name) for row in rows)
        kinds = [] if self.together.drop is None else self.together.drop.shown
        drops = "".join(f" {f'{kind} AP':>{max(7, len(kind) + 3)}}" for kind in kinds)
        drops = f" {drops}" if drops else ""
        head = f"{'quantised':<{width}}  {'noise':<{_BAR}} {'mean':>8} {'worst':>8}  {'at':<12}{drops}".rstrip()
        labelled = f", AP on {self.labelled}" if self.labelled else ""
        return [
            head,
            *(_line(row, width).rstrip() for row in rows),
            "",
            "signal-to-noise in decibels, mean and worst of the taps: the lower, the more it costs"
            + ("; AP in points lost" if self.labelled else ""),
            f"{self.model} on {self.backend}, ranges by {self.method}; noise on {self.pictures} pictures{labelled} "
            f"of {self.data}; {self.seconds:.0f} s",
        ]


def sensitivity(
    model: Path, ranges: Ranges, data: Path, options: SensitivityOptions | None = None, *, threads: int | None = None
) -> SensitivityResult:
    """Rank groups of layers by what quantising each alone costs.

    Each group's version of the network gets the proposals and boxes of the one in float32, so that both can be
    compared number by number at the taps: pyramid features, RPN logits and deltas, class logits, box deltas, mask
    logits.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        ranges: Of that file.
        data: A COCO file, or without `options.ap` a folder of pictures or a video.
        options: How to measure.
        threads: CPU threads; None or 0 for one per core.

    Raises:
        CalibrationError: The ranges are those of another file, or the network has no layers to quantise.
        ExportError: The file is not a model of ours.
        StreamError: The data cannot be read, or is not labelled where AP is asked for.
    """
    options = options or SensitivityOptions()
    start = time.perf_counter()
    proto = load_plain(model, ranges)
    recipes = {ALL: Recipe("int8", ranges, dialect=options.dialect), **single_recipes(proto, ranges, options.dialect)}
    parts = _Parts(layer_groups(proto), _count_macs(proto))
    noise = NoiseMeter(model, proto, read_frames(data, options.pictures), threads)
    drops = DropMeter(model, proto, data, options.limit, threads) if options.ap else None
    rows = [
        parts.describe(name, noise.measure(recipe), drops.measure(recipe) if drops else None)
        for name, recipe in recipes.items()
    ]
    return SensitivityResult(
        model=str(model),
        data=str(data),
        dialect=options.dialect,
        backend=noise.backend,
        method=ranges.method,
        pictures=noise.pictures,
        labelled=drops.pictures if drops else 0,
        together=rows[0],
        groups=tuple(sorted(rows[1:], key=lambda row: row.snr_db)),
        seconds=time.perf_counter() - start,
    )


def load_plain(model: Path, ranges: Ranges) -> onnx.ModelProto:
    """Read a model whose layers can be chosen to be quantised or not.

    Raises:
        CalibrationError: The ranges are those of another file, or the model is quantised already.
        ExportError: The file is not a model of ours.
    """
    proto = load_model(model)
    ranges.check_model(hash_file(model), model)
    if any(node.op_type in QDQ for node in proto.graph.node):
        raise CalibrationError(
            f"{model} brings its own Q/DQ nodes, so which of its layers are quantised is decided already; give the "
            "float32 model it was made of"
        )
    return proto


def single_recipes(model: onnx.ModelProto, ranges: Ranges, dialect: Dialect) -> dict[str, Recipe]:
    """For each group the recipe that quantises it and nothing else.

    Raises:
        CalibrationError: The network has no layers to quantise.
    """
    groups = layer_groups(model)
    if not groups:
        raise CalibrationError(
            "the network has no layers to quantise beyond those always kept; build it with --precision fp16"
        )
    return {name: Recipe("int8", ranges, _keep_others(groups, name), dialect=dialect) for name in groups}


def _keep_others(groups: Mapping[str, Sequence[str]], group: str) -> tuple[str, ...]:
    return tuple(keep_pattern(nodes) for name, nodes in groups.items() if name != group)


@dataclass(frozen=True)
class _Parts:
    """What a network consists of.

    Attributes:
        groups: Names of the nodes by group.
        macs: Multiply-accumulates of each node; empty where shapes do not tell.
    """

    groups: Mapping[str, tuple[str, ...]]
    macs: Mapping[str, int]

    def describe(self, group: str, shares: Shares, drop: Drop | None) -> GroupSensitivity:
        """What was measured of a group, or of all."""
        layers = self.groups.get(group) or tuple(name for nodes in self.groups.values() for name in nodes)
        return GroupSensitivity(
            name=group,
            layers=layers,
            macs=sum(self.macs[name] for name in layers) if self.macs else None,
            snr_db=to_decibels(shares.mean),
            taps_db={tap: to_decibels(share) for tap, share in shares.by_tap.items()},
            drop=drop,
        )


def _count_macs(model: onnx.ModelProto) -> dict[str, int]:
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    try:
        return {layer.name: layer.macs for layer in layer_precisions(model, spec)}
    except ValueError:  # some shape is open: the ranking does not need it
        return {}


def _line(row: GroupSensitivity, width: int) -> str:
    cells = f"{row.name:<{width}}  {_bar(row.snr_db):<{_BAR}} {_decibels(row.snr_db)} {_decibels(row.worst_db)}"
    kinds = {} if row.drop is None else row.drop.shown
    drop = "".join(f" {lost.value:{max(7, len(kind) + 3)}.2f}" for kind, lost in kinds.items())
    drop = f" {drop}" if drop else ""
    return f"{cells}  {row.worst_tap if math.isfinite(row.worst_db) else '-':<12}{drop}"


def _bar(decibels: float) -> str:
    eighths = round(min(max(1 - decibels / _QUIETEST, 0.0), 1.0) * _BAR * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _decibels(value: float) -> str:
    return f"{value:8.1f}" if math.isfinite(value) else f"{'-':>8}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
