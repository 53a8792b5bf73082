"""Signal-to-noise of a network's versions at its taps, against the exported one in float32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import StreamError
from edge_mrcnn.evaluation.dataset import locate_pictures, read_annotations
from edge_mrcnn.evaluation.emulated_runner import make_runnable
from edge_mrcnn.evaluation.taps import CHOOSERS, Taps, cut
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.runtime.sources import open_source

SAMPLES = 1 << 16
"""Numbers kept of a tensor and picture: they tell its noise to a hundredth of a decibel, at bounded memory."""

OVERFLOW = 1e6
"""Share of noise, -60 dB, that stands for values beyond float16 and for more than itself."""

ROIS = 100
"""Most boxes that the heads are given of a picture: the best ones, as the reference chose them."""

Feeds = Mapping[str, npt.NDArray[Any]]
Values = Mapping[str, tuple[npt.NDArray[np.float32], ...]]
"""Samples of each tensor, by tap."""


@dataclass(frozen=True)
class Shares:
    """Noise of a version: its power as a share of the signal's, both around the mean, by tap.

    A tap of several tensors has the mean of theirs. 0 where nothing differs.
    """

    by_tap: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over the taps."""
        return sum(self.by_tap.values()) / len(self.by_tap)


class NoiseMeter:
    """Compares recipes with the model in float32, which is run once.

    Attributes:
        pictures: Number of pictures.
        backend: What ran the recipe measured last.
    """

    backend = OrtRunner.backend

    def __init__(
        self, path: Path, model: onnx.ModelProto, pictures: Iterable[Frame], threads: int | None = None
    ) -> None:
        """Run the reference; its proposals and boxes are what every recipe gets.

        Args:
            path: The model's file.
            model: What is in it.
            pictures: Run one by one.
            threads: CPU threads; None or 0 for one per core.

        Raises:
            StreamError: There are no pictures.
        """
        self._path, self._model, self._threads = path, model, threads
        with OrtRunner(path, threads, content=_choosing(model).SerializeToString()) as whole:
            self._feeds = [_feed(whole, frame) for frame in pictures]
        if not self._feeds:
            raise StreamError("there are no pictures to measure on; give a folder, a COCO file or a video with some")
        self.pictures = len(self._feeds)
        with _CutNetwork(path, model, {}, threads) as runner:
            self._taps = runner.taps
            self._reference = [runner.sample(feeds) for feeds in self._feeds]
        self._signal = [_power([values[tap][at] for values in self._reference]) for tap, at in self._places()]

    def measure(self, recipe: Recipe) -> Shares:
        """Noise of a recipe.

        Raises:
            EdgeMrcnnError: The recipe cannot be made of the model.
        """
        noise = np.zeros(len(self._signal))
        changed, config, self.backend = make_runnable(self._model, recipe)
        with _CutNetwork(self._path, changed, config, self._threads, self._taps) as runner:
            for feeds, reference in zip(self._feeds, self._reference, strict=True):
                found = runner.sample(feeds)
                noise += [_squares(found[tap][at], reference[tap][at]) for tap, at in self._places()]
        shares = [_share(*pair) for pair in zip(noise.tolist(), self._signal, strict=True)]
        places = [tap for tap, _ in self._places()]
        return Shares(
            {
                tap: float(np.mean([share for share, at in zip(shares, places, strict=True) if at == tap]))
                for tap in dict.fromkeys(places)
            }
        )

    def _places(self) -> list[tuple[str, int]]:
        return [(tap, at) for tap, values in self._reference[0].items() for at in range(len(values))]


class _CutNetwork:
    """A cut network, open; `exported` are the taps of the exported one, where this is what passes made of it."""

    def __init__(
        self,
        path: Path,
        model: onnx.ModelProto,
        config: Mapping[str, str],
        threads: int | None,
        exported: Taps | None = None,
    ) -> None:
        shortened, self.taps = cut(model, exported)
        self._runner = OrtRunner(path, threads, content=shortened.SerializeToString(), config=config)

    def sample(self, feeds: Feeds) -> Values:
        """Run it and keep some of each tap's numbers, the same places in every version."""
        outputs = self._runner.infer(feeds)
        return {tap: tuple(_pick(outputs[name]) for name in names) for tap, names in self.taps.items()}

    def __enter__(self) -> _CutNetwork:
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.close()


def read_frames(data: Path, limit: int) -> Iterable[Frame]:
    """Pictures to measure on.

    Args:
        data: A COCO file, of whose pictures evenly spread ones are taken; or a picture, a folder or a video, of which
            the first ones are.
        limit: So many.

    Raises:
        StreamError: The data cannot be read.
    """
    if data.suffix.lower() == ".json":
        images = read_annotations(data)["images"]
        chosen = [images[at] for at in np.linspace(0, len(images) - 1, min(limit, len(images))).astype(int)]
        sources = [str(path) for path in locate_pictures(chosen, data)]
    else:
        sources = [str(data)]
    for uri in sources:
        with open_source(uri) as source:
            yield from islice(source, limit)


def to_decibels(share: float) -> float:
    """Signal-to-noise ratio of a share of noise; infinite where there is none."""
    return -10 * math.log10(share) if share > 0 else math.inf


def _choosing(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with nothing but its proposals and boxes for outputs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    chosen = [node.output[0 if node.op_type == "RpnProposals" else 1] for node in _choosers(model)]
    del result.graph.output[:]
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in chosen)
    return result


def _choosers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    nodes = {node.op_type: node for node in model.graph.node if node.op_type in CHOOSERS}
    return [nodes[op] for op in CHOOSERS]


def _feed(whole: OrtRunner, frame: Frame) -> Feeds:
    """What a cut network takes for a picture: at most `ROIS` boxes, without padding, at least one."""
    images, image_hw, _ = letterbox_batch([frame.image], whole.spec.input_hw)
    outputs = whole.infer({"images": images, "image_hw": image_hw})
    proposals, boxes = (outputs[name] for name in whole.output_names)
    proposals = _without_padding(proposals)
    boxes = _without_padding(boxes)
    # A picture without detections still shows what the mask head does: on its best proposals.
    return {
        "images": images.copy(),
        "image_hw": image_hw,
        "proposals_given": proposals,
        "boxes_given": boxes if boxes.shape[1] else proposals[:, :8],
    }


def _without_padding(boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    real = (boxes[0, :, 2] > boxes[0, :, 0]) & (boxes[0, :, 3] > boxes[0, :, 1])
    return np.ascontiguousarray(boxes[:, real][:, :ROIS])


def _pick(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    flat = values.reshape(-1)
    if len(flat) > SAMPLES:
        # Drawn, since evenly spaced ones would fall on the same columns or channels.
        flat = flat[np.random.default_rng(0).integers(0, len(flat), SAMPLES)]
    return np.array(flat, np.float32)


def _squares(found: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    return float(np.square(found.astype(np.float64) - reference).sum())


def _power(pictures: list[npt.NDArray[np.float32]]) -> float:
    """Sum of squares around the mean."""
    count = sum(len(values) for values in pictures)
    mean = sum(float(values.sum(dtype=np.float64)) for values in pictures) / max(count, 1)
    return sum(float(np.square(values - mean).sum(dtype=np.float64)) for values in pictures)


def _share(noise: float, signal: float) -> float:
    """Noise by signal; what is infinite or no number counts as the most."""
    if not math.isfinite(noise):
        return OVERFLOW
    return min(noise / signal, OVERFLOW) if signal > 0 else float(noise > 0)
