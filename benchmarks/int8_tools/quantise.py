"""The step that quantises: one tool, one process. It imports nothing of this project but for its own subjects.

So that it also runs in another environment, such as one with ModelOpt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.int8_tools.process import Row, peak_mib, serve

Timed = Callable[[], None]


def quantise(job: Row) -> Row:
    """Make an INT8 model.

    Args:
        job: `tool`, `dialect`, `call`, `prepare`; `model`, `path` to write, folder `calibration`; `images` and
            `image_hw`, .npy files with the letterboxed pictures, of which the first `pictures` count; `exclude`, names
            of nodes; `ranges`, a file for ours.

    Returns:
        `seconds` and `cpu_seconds` of the tool without imports, `loaded_mib` after these.
    """
    begin = time.perf_counter()
    run = TOOLS[job["tool"]](job)
    loaded, ready, cpu = peak_mib(), time.perf_counter(), time.process_time()
    try:
        run()
    except Exception as error:  # its time and memory count nevertheless
        return {"error": f"{type(error).__name__}: {error}", **_spent(begin, ready, cpu, loaded)}
    return _spent(begin, ready, cpu, loaded)


def _spent(begin: float, ready: float, cpu: float, loaded: int | None) -> Row:
    return {
        "import_seconds": round(ready - begin, 2),
        "seconds": round(time.perf_counter() - ready, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "loaded_mib": loaded,
    }


def _edge_mrcnn(job: Row) -> Timed:
    import onnx

    from edge_mrcnn.compiler.calibration.calibrate import calibrate
    from edge_mrcnn.compiler.passes import run_passes
    from edge_mrcnn.compiler.recipe import Recipe

    def run() -> None:
        ranges = calibrate(Path(job["model"]), [job["calibration"]])
        ranges.save(Path(job["ranges"]))
        recipe = Recipe("int8", ranges, dialect=job["dialect"])
        onnx.save(run_passes(onnx.load(job["model"]), recipe), job["path"])

    return run


def _onnxruntime(job: Row) -> Timed:
    from onnxruntime import quantization

    call: dict[str, Any] = {**job["call"]}
    for name, kind in (
        ("activation_type", quantization.QuantType),
        ("weight_type", quantization.QuantType),
        ("calibrate_method", quantization.CalibrationMethod),
    ):
        if name in call:
            call[name] = kind[call[name]]

    def run() -> None:
        model = _pre_process(job) if job["prepare"] else job["model"]
        excluded = {"nodes_to_exclude": job["exclude"]} if job["exclude"] else {}
        quantization.quantize_static(model, job["path"], _Reader(job), **call, **excluded)

    return run


def _pre_process(job: Row) -> str:
    """As the warning of `quantize_static` says."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = f"{job['path']}.prepared.onnx"
    quant_pre_process(job["model"], prepared, skip_symbolic_shape="without symbolic shapes" in job["prepare"])
    return prepared


class _Reader:
    """A `CalibrationDataReader` over the letterboxed pictures, one at a time."""

    def __init__(self, job: Row) -> None:
        self._feeds = _feeds(job)
        self._waiting: Iterator[dict[str, Any]] = iter(())
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self._feeds["images"])

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go through a part of the pictures."""
        rows = range(start_index, min(end_index, len(self)))
        self._waiting = ({name: value[row : row + 1] for name, value in self._feeds.items()} for row in rows)

    def get_next(self) -> dict[str, Any] | None:
        """Inputs of the next picture."""
        return next(self._waiting, None)


def _modelopt(job: Row) -> Timed:
    from modelopt.onnx.quantization import quantize

    def run() -> None:
        model = _inline(job) if job["prepare"] == "inline" else job["model"]
        excluded = {"nodes_to_exclude": [f"^{name}$" for name in job["exclude"]]} if job["exclude"] else {}
        quantize(model, calibration_data=_feeds(job), output_path=job["path"], **job["call"], **excluded)

    return run


def _inline(job: Row) -> str:
    import onnx
    import onnx.inliner

    inlined = f"{job['path']}.inlined.onnx"
    onnx.save(onnx.inliner.inline_local_functions(onnx.load(job["model"])), inlined)
    return inlined


def _feeds(job: Row) -> dict[str, Any]:
    return {name: np.load(job[name], mmap_mode="r")[: job["pictures"]] for name in ("images", "image_hw")}


TOOLS: dict[str, Callable[[Row], Timed]] = {
    "edge_mrcnn": _edge_mrcnn,
    "onnxruntime": _onnxruntime,
    "modelopt": _modelopt,
}

if __name__ == "__main__":
    serve(quantise)
