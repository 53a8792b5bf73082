"""What a comparison of precisions compares: a model as it is, made into other precisions, and files built from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.precision import int8_share, layer_precisions, requested_table
from edge_mrcnn.compiler.preparation import load_model
from edge_mrcnn.compiler.recipe import Dialect, Recipe
from edge_mrcnn.errors import CalibrationError, EngineError
from edge_mrcnn.evaluation.compare_options import CompareOptions
from edge_mrcnn.evaluation.emulated_runner import EmulatedRunner
from edge_mrcnn.evaluation.groups import layer_groups
from edge_mrcnn.runtime.runners import OrtRunner, Runner, open_runner
from edge_mrcnn.sidecar import EngineSidecar, RecipeRecord, hash_file, sidecar_path
from edge_mrcnn.spec import ModelSpec

FP32: Literal["fp32"] = "fp32"
FP16: Literal["fp16"] = "fp16"
INT8: Literal["int8"] = "int8"
INT8_CPU = "int8-cpu"

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})

_WEIGHT_OF = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "ConvInteger": 1, "MatMulInteger": 1}
"""Ops that compute in integers without Q/DQ nodes around them, and which of their inputs is the weight."""


@dataclass(frozen=True)
class Candidate:
    """One of the things compared, opened.

    Attributes:
        label: `fp32`, `fp16`, `int8`, `int8-cpu`, or the name of a file.
        runner: Runs it.
        emulated: Its rounding is emulated: there is no such file, and its speed says nothing.
        size_bytes: Of the file that would be shipped; None where it is emulated.
        int8_share: Share of the multiply-accumulates in int8, 0 to 1; None where it is unknown.
        kept: Names of the layer groups kept out of int8 beyond the default ones.
    """

    label: str
    runner: Runner
    emulated: bool = False
    size_bytes: int | None = None
    int8_share: float | None = None
    kept: tuple[str, ...] = ()


@contextlib.contextmanager
def open_candidates(
    model: Path, others: Sequence[Path], reference: Path | None, options: CompareOptions
) -> Iterator[tuple[Candidate, ...]]:
    """Open everything that is compared.

    Precisions are made of `model` where it is an FP32 ONNX file, else of the reference.

    Args:
        model: ONNX file made by `edge-mrcnn export`; or an engine or a quantised ONNX file, where there is a reference.
        others: More ONNX files and engines.
        reference: What everything is compared with; the model when not given.
        options: Which precisions, and how they are made.

    Yields:
        The candidates, the reference first; they are closed at the end.

    Raises:
        CalibrationError: int8 is to be made without ranges, or with those of another model.
        EdgeMrcnnError: A file cannot be read or run.
        ValueError: There is nothing to compare, no reference, or a file is named twice.
    """
    with contextlib.ExitStack() as stack:
        found = _Opener(stack, model, reference, options).open_all(others)
        names = found[0].runner.spec.class_names
        for one in found[1:]:
            if one.runner.spec.class_names != names:
                raise ValueError(
                    f"{one.label} has the classes {', '.join(one.runner.spec.class_names)}, {found[0].label} has "
                    f"{', '.join(names)}: give models of the same classes"
                )
        yield found


@dataclass(frozen=True)
class _File:
    """A model file; `graph` is None for engines."""

    path: Path
    graph: onnx.ModelProto | None

    @classmethod
    def read(cls, path: Path) -> _File:
        suffix = path.suffix.lower()
        if suffix not in (".onnx", ".engine"):
            raise ValueError(f"{path} is neither a model.onnx nor an .engine; give one of these")
        if suffix == ".engine" and not path.is_file():
            raise EngineError(f"there is no engine {path}; check the path, or build it: edge-mrcnn build model.onnx")
        return cls(path, load_model(path) if suffix == ".onnx" else None)

    @property
    def plain(self) -> bool:
        """Whether precisions can be made of it: an ONNX file that is not quantised."""
        return self.graph is not None and not _ops(self.graph) & (_QDQ | _WEIGHT_OF.keys())

    @property
    def carries_qdq(self) -> bool:
        """Whether it brings its own Q/DQ nodes."""
        return self.graph is not None and bool(_ops(self.graph) & _QDQ)

    @property
    def kind(self) -> str:
        return "an engine" if self.graph is None else "quantised already"


class _Opener:
    """Opens candidates one by one and leaves closing them to a stack."""

    def __init__(
        self, stack: contextlib.ExitStack, model: Path, reference: Path | None, options: CompareOptions
    ) -> None:
        self.stack, self.options = stack, options
        self.model = _File.read(model)
        self.reference = self.model if reference is None else _File.read(reference)
        if reference is None and not self.model.plain:
            raise ValueError(
                f"{model} is {self.model.kind}: what it lost shows only beside the FP32 model it was made of; name "
                f"that one: edge-mrcnn compare {model} --reference model.onnx"
            )
        self.base = next((file for file in (self.model, self.reference) if file.plain), None)

    def open_all(self, others: Sequence[Path]) -> tuple[Candidate, ...]:
        """The reference, the precisions, the model where it is not what they are made of, and the other files."""
        made_of_reference = self.base is self.reference
        labels = [label for label in self._labels() if not (made_of_reference and label == FP32)]
        paths = ([] if self.base is self.model else [self.model.path]) + list(others)
        self._check_paths(paths)
        if not (labels or paths):
            raise ValueError(
                f"there is nothing to compare {self.reference.path} with: give --precisions fp32,fp16 or --with FILE"
            )
        files = [_File.read(path) for path in paths]
        recipes = [(label, *self._plan(label)) for label in labels]  # mistakes show before anything is opened
        first = self._open_file(self.reference, FP32 if made_of_reference else None)
        made = [self._make(*planned) for planned in recipes]
        return (first, *made, *(self._open_file(file) for file in files))

    def _labels(self) -> tuple[str, ...]:
        if self.options.precisions:
            return self.options.precisions
        if self.base is not self.model:
            return ()
        return (FP32, FP16, INT8) if self.options.ranges is not None else (FP32, FP16)

    def _check_paths(self, paths: Sequence[Path]) -> None:
        every = [self.reference.path, *paths]
        if len({path.resolve() for path in every}) != len(every):
            raise ValueError(f"each file must be named once, got {', '.join(map(str, every))}")
        self._names = [path.name for path in every]

    def _plan(self, label: str) -> tuple[_File, Recipe]:
        """What a precision is made of, and how: int8 of a model that brings Q/DQ nodes is that model."""
        options = self.options
        own = label in (INT8, INT8_CPU) and options.ranges is None and self.model.carries_qdq
        file = self.model if own else self.base
        if file is None:
            raise ValueError(
                f"{label} is made of an FP32 ONNX file, but {self.reference.path} is {self.reference.kind}; give one: "
                "--reference model.onnx"
            )
        if label == FP32:
            return file, Recipe(FP32)
        if label == FP16:
            return file, Recipe(FP16, keep_fp32=options.keep_fp32)
        dialect: Dialect = "ort" if label == INT8_CPU else "tensorrt"
        return file, Recipe(INT8, self._ranges(label, file), options.keep_fp16, options.keep_fp32, dialect)

    def _ranges(self, label: str, file: _File) -> Ranges | None:
        if file.carries_qdq:
            return None
        if self.options.ranges is None:
            raise CalibrationError(
                f"{label} of {file.path} needs the ranges of its activations; measure them: edge-mrcnn calibrate "
                f"{file.path} PICTURES -o ranges.json, and give them: --ranges ranges.json"
            )
        ranges = Ranges.load(self.options.ranges)
        ranges.check_model(hash_file(file.path), file.path)
        return ranges

    def _make(self, label: str, file: _File, recipe: Recipe) -> Candidate:
        """A precision of a model: as it is, emulated, or for ONNX Runtime's integer kernels."""
        if label == FP32 or file.graph is None:
            return self._open_file(file, label)
        changed = run_passes(file.graph, recipe, keep_bodies=True)
        share, kept = _share(changed), () if recipe.ranges is None else kept_groups(file.graph, recipe)
        content = changed.SerializeToString() if label == INT8_CPU else None
        runner: Runner
        if content is not None:
            runner = OrtRunner(file.path, self.options.threads, content=content)
        else:
            runner = EmulatedRunner(file.path, recipe, self.options.threads, model=file.graph)
        self.stack.callback(runner.close)
        return Candidate(label, runner, content is None, content and len(content), share, kept)

    def _open_file(self, file: _File, label: str | None = None) -> Candidate:
        """A file as it is; where two have the same name, their paths tell them apart."""
        path = file.path
        label = label or (path.name if self._names.count(path.name) == 1 else str(path))
        runner = open_runner(path, self.options.threads)
        self.stack.callback(runner.close)
        quantised = file.graph is not None and not file.plain
        sidecar = EngineSidecar.load_for(path) if _has_sidecar(path, quantised) else None
        kept = () if sidecar is None or sidecar.precision != INT8 else self._kept_by(sidecar.recipe)
        share = _share(file.graph) if sidecar is None and file.graph is not None else _sidecar_share(sidecar)
        return Candidate(label, runner, False, path.stat().st_size, share, kept)

    def _kept_by(self, record: RecipeRecord) -> tuple[str, ...]:
        """What a build kept out of int8: layer groups where the model is at hand, else the expressions it was told."""
        if self.base is None or self.base.graph is None:
            return (*record.keep_fp16, *record.keep_fp32)
        return kept_groups(self.base.graph, Recipe("int8", None, record.keep_fp16, record.keep_fp32))


def kept_groups(model: onnx.ModelProto, recipe: Recipe) -> tuple[str, ...]:
    """Layers that a recipe keeps out of int8 beyond those that always are.

    Args:
        model: As exported.
        recipe: Its `keep_fp16` and `keep_fp32` decide.

    Returns:
        Names of the groups that are kept whole, and of single layers of the others.
    """
    kept: list[str] = []
    for group, nodes in layer_groups(model).items():
        high = [node for node in nodes if recipe.keeps_high(node)]
        kept += [group] if len(high) == len(nodes) else high
    return tuple(kept)


def _ops(model: onnx.ModelProto) -> frozenset[str]:
    return frozenset(node.op_type for node in model.graph.node)


def _has_sidecar(path: Path, quantised: bool) -> bool:
    """Engines have one, and so has an ONNX file that was built for ONNX Runtime's integer kernels."""
    return path.suffix.lower() == ".engine" or (quantised and sidecar_path(path).is_file())


def _sidecar_share(sidecar: EngineSidecar | None) -> float | None:
    """As found in the engine, else as the network asks for it."""
    table = () if sidecar is None else sidecar.realised or sidecar.requested
    return int8_share(table) if table else None


def _share(model: onnx.ModelProto) -> float | None:
    """Share of the multiply-accumulates in int8; None where the graph does not tell."""
    weights = {weight.name for weight in model.graph.initializer}
    if any(node.input[_WEIGHT_OF[node.op_type]] in weights for node in model.graph.node if node.op_type in _WEIGHT_OF):
        return None
    try:
        spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props})
        return int8_share(requested_table(layer_precisions(model, spec)))
    except ValueError:
        return None
