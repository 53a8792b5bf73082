"""`calibrate`: measure the ranges of a model's activations on pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_mrcnn.compiler.calibration.census import Census
from edge_mrcnn.compiler.calibration.measure import Measurement
from edge_mrcnn.compiler.calibration.pictures import CalibrationPictures, Shot
from edge_mrcnn.compiler.calibration.ranges import METHODS, PERCENTILE, Method, Ranges
from edge_mrcnn.compiler.preparation import load_model
from edge_mrcnn.errors import CalibrationError
from edge_mrcnn.sidecar import hash_file
from edge_mrcnn.spec import ModelSpec

logger = logging.getLogger(__name__)

ENOUGH = 100
"""Pictures below which a set is refused unless few are allowed."""

DEFAULT_METHOD: Method = "entropy"
"""The best on the bundled model: calibration/README.md has the figures."""


@dataclass(frozen=True)
class CalibrateOptions:
    """How `calibrate` measures ranges."""

    method: Method = DEFAULT_METHOD
    """Which ranges builds use; all are measured in the same pass and are in the file.
    entropy: the least loss of information, TensorRT's way. mse: the least square error. percentile: clips a fixed
    share of the values. max: clips nothing."""

    percentile: float = PERCENTILE
    """Per cent of the values that method percentile keeps."""

    allow_few: bool = False
    """Accept fewer than 100 pictures. Ranges of so few change with the choice."""

    limit: int | None = None
    """Take the first so many pictures only; all when not given."""

    every: int = 1
    """Of videos, take every so many frames only: neighbouring frames say the same."""

    threads: int | None = None
    """CPU threads; all cores when not given. The ranges are the same with any number."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: One is out of range.
        """
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r}: one of {', '.join(METHODS)} is expected")
        if not 50 < self.percentile < 100:
            raise ValueError(f"percentile must be above 50 and below 100, got {self.percentile}")
        for name in ("limit", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def calibrate(model: Path, data: Sequence[str | Path], options: CalibrateOptions | None = None) -> Ranges:
    """Measure the ranges of a model's activations on pictures, in ONNX Runtime on the CPU.

    Args:
        model: ONNX file made by `edge-mrcnn export`, in float32.
        data: Folders, COCO annotation files, videos, globs and picture files; at least 100 pictures of what the camera
            will see.
        options: How to measure.

    Returns:
        The ranges; `save` writes `ranges.json`.

    Raises:
        CalibrationError: There are too few pictures, or too many that cannot be read; a tensor has no data, a NaN or an
            infinity; the model is quantised already.
        EngineError: ONNX Runtime is not installed or cannot run the network.
        ExportError: The file is no ONNX file, or not one of ours.
        StreamError: A source is missing or unreadable.

    Example:
        >>> calibrate(Path("model.onnx"), ["photos/"]).save(Path("ranges.json"))  # doctest: +SKIP
    """
    import onnxruntime

    options = options or CalibrateOptions()
    model = Path(model)
    network = load_model(model)
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in network.metadata_props}, model)
    census = Census()
    with CalibrationPictures(data, spec.input_hw, every=options.every, limit=options.limit) as pictures:
        _check_count(pictures.length, options)  # where it is known, before minutes are spent
        with Measurement(network, model, options.threads) as measurement:
            del network
            hashes = [_measure(shot, measurement, census) for shot in _bar(pictures)]
        _check_count(len(hashes), options)
        tensors = measurement.ranges(options.percentile)
    warnings = census.warnings(spec.score_threshold)
    for warning in warnings:
        logger.warning("%s", warning)
    return Ranges(
        model=spec.name,
        onnx_sha256=hash_file(model),
        method=options.method,
        tensors=tensors,
        pictures=tuple(hashes),
        sources=pictures.sources,
        warnings=warnings,
        edge_mrcnn=_version(),
        onnxruntime=onnxruntime.__version__,
        percentile=options.percentile,
    )


def _measure(shot: Shot, measurement: Measurement, census: Census) -> str:
    census.add(shot, measurement.add(shot))
    return shot.sha256()


def _check_count(count: int | None, options: CalibrateOptions) -> None:
    if count is not None and count < ENOUGH and not options.allow_few:
        raise CalibrationError(
            f"ranges need {ENOUGH} pictures or more to hold for others, and the number given is {count}: give more, or "
            "accept it with --allow-few"
        )


def _bar(pictures: CalibrationPictures) -> Iterable[Shot]:
    from tqdm import tqdm

    bar: Iterable[Shot] = tqdm(pictures, "calibrating", pictures.length, unit=" pictures", disable=None)
    return bar


def _version() -> str:
    import edge_mrcnn

    return edge_mrcnn.__version__
