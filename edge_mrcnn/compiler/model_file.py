"""Writing `model.onnx`: whole, checked by ONNX and by one run, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from edge_mrcnn.errors import ExportError
from edge_mrcnn.files import atomic_path
from edge_mrcnn.spec import ModelSpec

MAX_BYTES = 2**31 - 1
"""protobuf's limit for one file."""


def check_writable(output: Path) -> None:
    """Fail before the work, not after it.

    Raises:
        ExportError: `output` is a folder, or its folder is missing or not writable.
    """
    if output.is_dir():
        raise ExportError(f"{output} is a folder; give the name of a file, such as {output / 'model.onnx'}")
    if not output.parent.is_dir():
        raise ExportError(f"folder {output.parent} does not exist; make it with: mkdir -p {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise ExportError(f"folder {output.parent} is not writable; choose another with -o")


def write_model(proto: onnx.ModelProto, spec: ModelSpec, output: Path) -> None:
    """Write the file beside its place, check it, then give it its name.

    Raises:
        ExportError: It cannot be written, is larger than 2 GB, or does not run.
    """
    if proto.ByteSize() > MAX_BYTES:
        raise ExportError(f"the model has {proto.ByteSize()} bytes; one ONNX file holds at most {MAX_BYTES}")
    try:
        with atomic_path(output) as temporary:
            temporary.write_bytes(proto.SerializeToString(deterministic=True))
            check_model(temporary, spec)
    except OSError as error:
        raise ExportError(
            f"{output} cannot be written: {error.strerror or error}. Free some space or choose another folder with -o; "
            "nothing was left under that name, and an older file is as it was"
        ) from error


def check_model(path: Path, spec: ModelSpec) -> None:
    """Check a written file: ONNX's own checker, then one run on a blank picture.

    Raises:
        ExportError: The checker objects, the model does not run, or gives numbers that are not finite.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        blank = np.zeros((1, *spec.input_hw, 3), np.uint8)
        results = session.run(None, {"images": blank, "image_hw": np.array([spec.input_hw], np.float32)})
    except Exception as error:  # each of the two libraries has its own family of errors, with no common base
        raise ExportError(
            f"the exported model does not run in ONNX Runtime {onnxruntime.__version__}: {error}"
        ) from error
    for value, result in zip(session.get_outputs(), results, strict=True):
        if not np.isfinite(result).all():
            raise ExportError(
                f"the exported model gives numbers that are not finite in {value.name} on a blank picture"
            )
