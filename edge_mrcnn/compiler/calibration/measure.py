"""One pass over the pictures: run the measuring graph on each and keep a histogram of every tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.calibration.histogram import Histogram
from edge_mrcnn.compiler.calibration.instrument import OFFSET, instrument, statistic_name
from edge_mrcnn.compiler.calibration.methods import find_ranges
from edge_mrcnn.compiler.calibration.pictures import Shot
from edge_mrcnn.compiler.calibration.ranges import TensorRange
from edge_mrcnn.compiler.contract import custom_nodes
from edge_mrcnn.compiler.placement import measured_tensors, weighted_nodes
from edge_mrcnn.errors import CalibrationError, EngineError
from edge_mrcnn.ops import DOMAIN
from edge_mrcnn.runtime.runners import OrtRunner

QUANTISED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class Measurement:
    """Histograms of a network's activations.

    Attributes:
        tensors: Names of those that are measured, in the graph's order.
        pictures: Number of pictures so far.
    """

    def __init__(self, model: onnx.ModelProto, path: Path, threads: int | None = None) -> None:
        """Open the measuring graph.

        Args:
            model: As exported.
            path: Its file, for messages.
            threads: CPU threads; None or 0 for one per core. The measurement is the same with any number.

        Raises:
            CalibrationError: The model is quantised already, has no layer that can be, or a weight is not finite.
            EngineError: ONNX Runtime is not installed or cannot run the network.
            ExportError: It is not one of ours.
        """
        _check_unquantised(model, path)
        _check_weights(model, path)
        self.tensors = measured_tensors(model)
        if not self.tensors:
            raise CalibrationError(f"{path} has no layer that int8 is for, so there is nothing to measure")
        self._watched = _decisive_tensors(model, self.tensors)
        self._model, self._path, self._threads = model, path, threads
        self._runner = self._open(instrument(model, self.tensors, self._watched))
        self._histograms = {name: Histogram() for name in self.tensors}
        self.threshold = self._runner.spec.score_threshold
        self.pictures = 0

    def add(self, shot: Shot) -> int:
        """Measure a picture.

        Args:
            shot: The picture, letterboxed.

        Returns:
            How many objects the network detects by its own threshold.

        Raises:
            CalibrationError: A tensor has a NaN or an infinity.
            EngineError: The network fails.
        """
        feeds = self._feeds(shot)
        try:
            found = self._runner.infer(feeds)
        except EngineError:  # a NaN may make a later layer fail: that is what to say then
            self._find_not_finite(shot)
            raise
        _check_finite(found, (*self.tensors, *self._watched), shot.name)
        for index, name in enumerate(self.tensors):
            low, high, values = (found[statistic_name(kind, index)] for kind in ("low", "high", "sample"))
            self._histograms[name].add(values, float(low), float(high))
        self.pictures += 1
        return int(np.count_nonzero(found["scores"] > self.threshold))

    def _open(self, measuring: onnx.ModelProto) -> OrtRunner:
        # Waiting threads would otherwise spin while the histograms are filled.
        config = {"session.intra_op.allow_spinning": "0"}
        return OrtRunner(self._path, self._threads, content=measuring.SerializeToString(), config=config)

    def _feeds(self, shot: Shot) -> dict[str, npt.NDArray[Any]]:
        return {"images": shot.images, "image_hw": shot.image_hw, OFFSET: np.array([self.pictures], np.int64)}

    def _find_not_finite(self, shot: Shot) -> None:
        """Look for a NaN or an infinity in what can be computed without ever fewer of the custom ops.

        Raises:
            CalibrationError: There is one.
        """
        names = (*self.tensors, *self._watched)
        for node in reversed([node for node in self._model.graph.node if node.domain == DOMAIN]):
            later = _downstream(self._model, node)
            early = [name for name in names if name not in later]
            with self._open(instrument(self._model, (), early, outputs=())) as runner, suppress(EngineError):
                _check_finite(runner.infer(self._feeds(shot)), early, shot.name)

    def ranges(self, percentile: float) -> dict[str, TensorRange]:
        """The range of every tensor, by all methods.

        Args:
            percentile: Per cent of the values that method `percentile` keeps.

        Raises:
            CalibrationError: A tensor has no data: all of its values were 0, in every picture.
        """
        dead = [name for name, histogram in self._histograms.items() if not histogram.magnitude]
        if dead:
            raise CalibrationError(
                f"{len(dead)} of {len(self.tensors)} tensors have no data, all their values were 0 in all "
                f"{self.pictures} pictures: {', '.join(dead[:5])}{', ...' if len(dead) > 5 else ''}. Either the layers "
                "before them are dead (weights of 0?) or the heads saw no box; look at the model's results first: "
                "edge-mrcnn run model.onnx PICTURES --to out/"
            )
        return {name: find_ranges(histogram, percentile) for name, histogram in self._histograms.items()}

    def close(self) -> None:
        """Give back the network's memory. A second call does nothing."""
        self._runner.close()

    def __enter__(self) -> Measurement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_unquantised(model: onnx.ModelProto, path: Path) -> None:
    quantised = next((node for node in model.graph.node if node.op_type in QUANTISED_OPS), None)
    if quantised is not None:
        raise CalibrationError(
            f"{path} is quantised already (node {quantised.name!r} is a {quantised.op_type}): it brings its own ranges "
            "and is built without a ranges file: edge-mrcnn build model.onnx --precision int8"
        )


def _check_weights(model: onnx.ModelProto, path: Path) -> None:
    """Refuse weights that are not finite: a Relu turns the NaN they give into a 0, which looks like data."""
    for node in weighted_nodes(model):
        for weight in node.inputs[1:]:
            if isinstance(weight, gs.Constant) and not np.isfinite(weight.values).all():
                raise CalibrationError(
                    f"weight {weight.name!r} of layer {node.name!r} in {path} has a NaN or an infinity: the training "
                    "went wrong or the file is damaged; export a sound checkpoint: edge-mrcnn export"
                )


def _decisive_tensors(model: onnx.ModelProto, measured: Sequence[str]) -> tuple[str, ...]:
    """What the custom ops read and is not measured: a NaN there would leave the heads without boxes, and unseen."""
    graph = gs.import_onnx(model)
    known = {*measured, *(tensor.name for tensor in graph.inputs)}
    read = (tensor.name for node, _ in custom_nodes(graph) for tensor in node.inputs if tensor.inputs)
    return tuple(name for name in dict.fromkeys(read) if name not in known)


def _downstream(model: onnx.ModelProto, node: onnx.NodeProto) -> set[str]:
    """Tensors that depend on what a node gives."""
    found = set(node.output)
    for later in model.graph.node:
        if found.intersection(later.input):
            found.update(later.output)
    return found


def _check_finite(found: Mapping[str, npt.NDArray[Any]], tensors: Sequence[str], picture: str) -> None:
    for index, tensor in enumerate(tensors):
        low, high, check = (float(found[statistic_name(kind, index)]) for kind in ("low", "high", "check"))
        if math.isnan(check) or math.isinf(low) or math.isinf(high):
            what = "NaN" if math.isnan(check) else "infinity"
            raise CalibrationError(
                f"tensor {tensor!r} has a value that is {what} for {picture}; check the weights that the model was "
                "exported with: edge-mrcnn inspect model.onnx --layers shows which layer gives it"
            )
