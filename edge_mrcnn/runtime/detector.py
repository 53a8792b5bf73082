"""`Detector`: frames in, detections out; the same call whatever runs the network."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import EngineError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.keypoints import decode_keypoints, restrict_keypoints
from edge_mrcnn.runtime.metrics import Timings
from edge_mrcnn.runtime.preprocess import Geometry, letterbox_batch
from edge_mrcnn.runtime.runners import PendingOutputs, PictureRunner, Runner, open_runner
from edge_mrcnn.spec import ModelSpec

Picture = npt.NDArray[np.uint8]
"""`(H, W, 3)` uint8, RGB."""


class Detector:
    """Finds instances in frames.

    Give one frame or picture and get one `Detections`, give a sequence and get a list. Boxes and keypoints come in
    pixels of the original picture, the boxes clipped to it; masks stay patches `(N, M, M)` in the frame of each box.
    One call runs at a time: threads that share a detector wait for each other.

    Example:
        >>> with Detector("model.onnx") as detector:  # doctest: +SKIP
        ...     for frame in open_source("clip.mp4"):
        ...         detections = detector(frame)
        ...         print(len(detections), detections.instance_map().shape)
    """

    def __init__(
        self,
        model: str | Path | Runner,
        *,
        threshold: float | None = 0.5,
        batch: int = 1,
        threads: int | None = None,
    ) -> None:
        """Open a model.

        Args:
            model: `model.onnx`, an engine, or a runner, which stays the caller's to close.
            threshold: Detections with a lower score are dropped; None keeps all that the network gives
                (`spec.score_threshold` and better).
            batch: Most frames in one run of the network. More raises the throughput of a GPU, hardly that of a CPU.
            threads: CPU threads of a runner opened here; None or 0 for one per core.

        Raises:
            EngineError: The model cannot be run here.
            ExportError: The file is not a model of ours.
            ValueError: `threshold` or `batch` is out of range.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be None or from 0 to 1, got {threshold}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self._owned = open_runner(model, threads) if isinstance(model, (str, Path)) else None
        self._runner: Runner = self._owned or model  # type: ignore[assignment]
        limit = self._runner.max_batch
        if limit is not None and batch > limit:
            self.close()
            raise ValueError(f"batch must be at most {limit}, which the model was made for, got {batch}")
        self.threshold = threshold
        self.batch = batch
        self._lock = threading.Lock()
        rows = 0 if isinstance(self._runner, PictureRunner) else batch
        self._canvas = np.zeros((rows, *self.spec.input_hw, 3), np.uint8)

    @property
    def spec(self) -> ModelSpec:
        """What the network is and expects."""
        return self._runner.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; `class_names[class_id]`."""
        return self.spec.class_names

    @property
    def backend(self) -> str:
        """Who runs the network where, such as `onnxruntime-cpu`."""
        return self._runner.backend

    @property
    def stages(self) -> str:
        """What the first two stages of `Timings` are, in a few words; it depends on who letterboxes."""
        if isinstance(self._runner, PictureRunner):
            return "pre: handing pictures to the GPU; infer: upload, letterboxing, network and download there"
        return "pre: letterboxing; infer: the network"

    @overload
    def __call__(self, frames: Frame | Picture) -> Detections: ...

    @overload
    def __call__(self, frames: Sequence[Frame | Picture]) -> list[Detections]: ...

    def __call__(self, frames: Frame | Picture | Sequence[Frame | Picture]) -> Detections | list[Detections]:
        """Find instances.

        Args:
            frames: A `Frame` or a picture `(H, W, 3)` uint8 RGB, or a sequence of these, of any sizes.

        Returns:
            The detections of a lone frame, or a list with those of each, best first.

        Raises:
            EngineError: The detector is closed or the network fails.
            TypeError: A picture is not uint8.
            ValueError: A picture is not `(H, W, 3)`.
        """
        if isinstance(frames, Frame) or (isinstance(frames, np.ndarray) and frames.ndim == 3):
            return self.detect_timed([frames])[0][0]
        return self.detect_timed(list(frames))[0]

    def detect_timed(self, frames: Sequence[Frame | Picture]) -> tuple[list[Detections], Timings]:
        """Find instances and say how long it took.

        Args:
            frames: Frames or pictures `(H, W, 3)` uint8 RGB.

        Returns:
            The detections of each frame, best first, and the time of each stage for all of them together.

        Raises:
            EngineError: The detector is closed or the network fails.
            TypeError: A picture is not uint8.
            ValueError: A picture is not `(H, W, 3)`.
        """
        found: list[Detections] = []
        total = Timings(0, 0, 0, 0)
        waiting: deque[PendingDetections] = deque()
        chunks = [frames[start : start + self.batch] for start in range(0, len(frames), self.batch)]
        for chunk in [*chunks, None]:
            if chunk is not None:
                waiting.append(self.submit(chunk))
            while waiting and (chunk is None or len(waiting) > 1):
                detections, timings = waiting.popleft().result()
                found += detections
                total += timings
        return found, total

    @property
    def overlaps(self) -> bool:
        """Whether the work that `submit` begins goes on while the caller does something else."""
        return isinstance(self._runner, PictureRunner)

    def submit(self, frames: Sequence[Frame | Picture]) -> PendingDetections:
        """Begin to find instances. A GPU then works on its own; on the CPU the network runs before this returns.

        Frames in NV12 go to a GPU as they are; the CPU converts them first.

        Args:
            frames: Frames or pictures `(H, W, 3)` uint8 RGB, at most `batch` of them.

        Raises:
            EngineError: The detector is closed or the network fails.
            TypeError: A picture is not uint8.
            ValueError: A picture is not `(H, W, 3)`, or there are more than `batch`.
        """
        if not 1 <= len(frames) <= self.batch:
            raise ValueError(f"frames must be 1 to {self.batch}, the detector's batch, got {len(frames)}")
        checked = [frame if isinstance(frame, Frame) else Frame(frame) for frame in frames]
        begin = time.perf_counter_ns()
        pending: PendingOutputs
        if isinstance(self._runner, PictureRunner):
            pending = self._runner.submit_pictures(checked)
            return PendingDetections(self._read, pending, time.perf_counter_ns() - begin)
        with self._lock:
            # NV12 is converted in full before it is scaled: about 1 ms at 1080p, and who draws on the frame has it too.
            pictures = [frame.image for frame in checked]
            images, image_hw, geometries = letterbox_batch(pictures, self.spec.input_hw, self._canvas)
            ready = time.perf_counter_ns()
            outputs = self._runner.infer({"images": images, "image_hw": image_hw})
            pending = _Done(tuple(geometries), outputs)
            return PendingDetections(self._read, pending, ready - begin, time.perf_counter_ns() - ready)

    def _read(self, outputs: Mapping[str, npt.NDArray[Any]], row: int, geometry: Geometry) -> Detections:
        """Detections of one row of a batch, in pixels of its picture."""
        try:
            count = int(outputs["num_detections"][row])
            score, label, boxes = (outputs[name][row][:count] for name in ("scores", "labels", "boxes"))
        except KeyError as error:
            raise EngineError(
                f"the model has no output {error}; it was not made by this version: edge-mrcnn export"
            ) from error
        # A comparison drops scores that are not numbers.
        keep = (score >= (self.threshold or 0.0)) & np.isfinite(boxes).all(axis=1)
        masks, heatmaps = outputs.get("masks"), outputs.get("keypoint_logits")
        keypoints = None
        if heatmaps is not None:
            decoded = decode_keypoints(heatmaps[row][:count][keep], boxes[keep])
            named = restrict_keypoints(decoded, label[keep], self.spec.keypoint_labels)
            keypoints = geometry.unletterbox_points(named)
        return Detections(
            xyxy=geometry.unletterbox_boxes(boxes[keep]),
            score=score[keep],
            class_id=label[keep],
            image_hw=geometry.original_hw,
            mask=None if masks is None else masks[row][:count][keep],
            keypoints=keypoints,
        )

    def close(self) -> None:
        """Close the runner, if it was opened here. A second call does nothing."""
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Detector({self.spec.name!r}, {self.backend}, threshold={self.threshold}, batch={self.batch})"


class PendingDetections:
    """Frames under way in a detector."""

    def __init__(
        self,
        read: Callable[[Mapping[str, npt.NDArray[Any]], int, Geometry], Detections],
        pending: PendingOutputs,
        pre_ns: int,
        infer_ns: int = 0,
    ) -> None:
        self._read, self._pending = read, pending
        self._pre_ns, self._infer_ns = pre_ns, infer_ns

    def result(self) -> tuple[list[Detections], Timings]:
        """Wait for the detections.

        Returns:
            The detections of each frame, best first, and the time of each stage for all of them together; `infer` is
            what the caller waited for.

        Raises:
            EngineError: The network failed.
        """
        begin = time.perf_counter_ns()
        outputs, geometries = self._pending.result(), self._pending.geometries
        inferred = time.perf_counter_ns()
        found = [self._read(outputs, row, geometry) for row, geometry in enumerate(geometries)]
        post_ns = time.perf_counter_ns() - inferred
        return found, Timings(self._pre_ns, self._infer_ns + inferred - begin, post_ns, len(geometries))


@dataclass(frozen=True)
class _Done:
    """Outputs that are there already."""

    geometries: tuple[Geometry, ...]
    outputs: dict[str, npt.NDArray[Any]]

    def result(self) -> dict[str, npt.NDArray[Any]]:
        return self.outputs
