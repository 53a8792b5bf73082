"""`edge-mrcnn import`: from a model that was trained elsewhere to `model.onnx`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import onnx
import tyro

from edge_mrcnn.class_names import complete_class_names
from edge_mrcnn.commands import JsonTarget, report
from edge_mrcnn.compiler.model_file import check_writable, write_model
from edge_mrcnn.errors import ExportError
from edge_mrcnn.import_options import ImportOptions
from edge_mrcnn.spec import METADATA_KEY, ModelSpec

Kind = Literal["onnx", "checkpoint"]

HEAD_BYTES = 256
"""Enough of a file to tell what it is."""

CHECKPOINT_STARTS = (
    b"PK\x03\x04",  # a zip file: torch.save of torch 1.6 or newer
    b"\x80\x02",  # a pickle, protocol 2 and up: detectron2's model zoo, torch.save of old
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
)

ONNX_STARTS = b"\x08\x12\x1a\x3a\x42"
"""First bytes of a ModelProto: most write `ir_version` first, but `producer`, `graph` and `opset_import` may be too."""

KNOWN_STARTS = {
    b"\x89HDF": "an HDF5 file, of Keras perhaps",
    b"ftrt": "a TensorRT plan",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"<!DOCTYPE": "a web page: the download went wrong",
    b"<html": "a web page: the download went wrong",
}


def command(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")],
    options: Annotated[ImportOptions, tyro.conf.arg(name="import")],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("model.onnx"),
    json_target: JsonTarget = None,
) -> None:
    """Take a model that was trained elsewhere: write it as the ONNX file that `run`, `calibrate` and `build` take.

    FILE: an ONNX file that torch made of torchvision's Mask R-CNN or Keypoint R-CNN (its legacy exporter, opset 11 to
    18), or a checkpoint of detectron2 (.pkl, .pth) or mmdetection (.pth). What it is, its content says, not its name.

    Args:
        file: The model.
        options: What to change in it.
        output: The file to write.
        json_target: Where the result goes as JSON.
    """
    kind = sniff(file)
    check_writable(output)
    if output.exists() and output.samefile(file):
        raise ValueError(f"-o {output} is the file to import: give another name")
    if kind == "onnx":
        proto, spec, said = _import_onnx(file, options)
    else:
        proto, spec, said = _import_checkpoint(file, options)
    write_model(proto, spec, output)
    lines = [*_lines(file, output, spec), *(f"  {line}" for line in said), *_next(output)]
    result = {
        "path": str(output),
        "bytes": output.stat().st_size,
        "kind": kind,
        "differs": list(said),
        "spec": dataclasses.asdict(spec),
    }
    report(lines, json.dumps(result, indent=2), json_target)


def sniff(path: Path) -> Kind:
    """What a file is, by its first bytes.

    Raises:
        ExportError: It is missing, empty, or neither an ONNX file nor a checkpoint.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ExportError(f"{path} {what}: give the path of an ONNX file or a checkpoint")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise ExportError(f"{path} is empty (0 bytes): copy or download it again")
    if head.startswith(CHECKPOINT_STARTS):
        return "checkpoint"
    if head[0] in ONNX_STARTS and not _is_text(head):
        return "onnx"
    raise ExportError(
        f"{path} is neither an ONNX file nor a checkpoint of torch: it is {_describe(head)}. "
        "`import` takes torchvision's Mask R-CNN as ONNX, and checkpoints of detectron2 and mmdetection"
    )


def _describe(head: bytes) -> str:
    for start, what in KNOWN_STARTS.items():
        if head.startswith(start):
            return what
    if b'{"__metadata__"' in head or head[8:10] == b'{"':
        return "a safetensors file: load it in torch and save the state dict with torch.save"
    if _is_text(head):
        return f"text and begins with {head.decode('ascii', 'replace').splitlines()[0][:40]!r}"
    return f"of no known kind and begins with {head[:8]!r}"


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)


def _import_onnx(path: Path, options: ImportOptions) -> tuple[onnx.ModelProto, ModelSpec, list[str]]:
    """The ONNX half: no torch is needed."""
    options.check_for_onnx()
    raw = load_onnx(path)
    own = parse_own(raw)
    if own is not None:
        raise ExportError(
            f"{path} was made by edge_mrcnn already ({own.name}, {own.input_hw[0]}x{own.input_hw[1]}): "
            f"take it as it is, as in: edge-mrcnn build {path}"
        )
    from edge_mrcnn.compiler.raw import import_raw  # a checkpoint needs no part of it

    try:
        proto = import_raw(raw, options)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error
    spec = ModelSpec.from_metadata(_metadata(proto), path)
    return proto, spec, list(describe_differences(raw, spec))


def _import_checkpoint(path: Path, options: ImportOptions) -> tuple[onnx.ModelProto, ModelSpec, list[str]]:
    """The checkpoint half: torch is imported here and not before."""
    from edge_mrcnn.training.export import trace_model
    from edge_mrcnn.training.foreign import import_checkpoint

    model, name, names, canvas, keypoints = import_checkpoint(path, options)
    classes = int(model.roi_heads.box_predictor.cls_score.out_features)
    proto, spec = trace_model(model, name, canvas, complete_class_names(names, classes), keypoints)
    return proto, spec, [f"input: letterboxed onto {canvas[0]}x{canvas[1]}; another size with --size HxW"]


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data, if it has some.

    Raises:
        ExportError: It is damaged, holds no graph, or its external data are missing.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf and onnx each have their own family of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as ONNX: {reason}. It is truncated or damaged, or "
            "its external data are not beside it: copy or download it again, with all its files"
        ) from error
    if not model.graph.node:
        raise ExportError(f"{path} holds no graph: it is no ONNX file, or an empty one")
    return model


def parse_own(model: onnx.ModelProto) -> ModelSpec | None:
    """The spec in a model that edge_mrcnn wrote, else None."""
    metadata = _metadata(model)
    return ModelSpec.from_json(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None


def describe_differences(raw: onnx.ModelProto, spec: ModelSpec) -> Iterator[str]:
    """What the new file does in another way than the old one, a line each."""
    weights = {tensor.name for tensor in raw.graph.initializer}
    taken = [value for value in raw.graph.input if value.name not in weights]
    shapes = ", ".join(f"{value.name} {_shape(value)}" for value in taken)
    height, width = spec.input_hw
    yield (
        f"input: {shapes} float32, 0 to 1, resized inside, is now images (B, {height}, {width}, 3) uint8, scaled to "
        "fit and letterboxed outside, which run, Detector and engines do; any batch"
    )
    yield (
        "boxes: in pixels of the letterboxed picture, no more than "
        f"{spec.detections} of them, zeros beyond num_detections"
    )
    if spec.mask_size:
        yield f"masks: patches of {spec.mask_size}x{spec.mask_size} in the frame of each box, pasted outside"
    if spec.keypoint_names:
        yield f"keypoints: heatmaps of {spec.keypoint_size}x{spec.keypoint_size}, decoded outside"


def _shape(value: onnx.ValueInfoProto) -> str:
    return "x".join(str(dim.dim_param or dim.dim_value or "?") for dim in value.type.tensor_type.shape.dim)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _lines(file: Path, output: Path, spec: ModelSpec) -> Iterator[str]:
    yield f"{file}: {spec.name}, {len(spec.class_names)} classes with the background"
    heads = [f"masks {spec.mask_size}x{spec.mask_size}"] * bool(spec.mask_size)
    heads += [f"{len(spec.keypoint_names)} keypoints"] * bool(spec.keypoint_names)
    yield (
        f"{output}: input {spec.input_hw[0]}x{spec.input_hw[1]}, {', '.join(heads) or 'boxes'}, "
        f"{output.stat().st_size / 1e6:.1f} MB"
    )
    nms = spec.ops.get("detection_nms", {}).get("nms_threshold")
    yield (
        f"  scores from {spec.score_threshold:g}, at most {spec.detections} detections of {spec.proposals} proposals"
        + (f", NMS at IoU {nms:g}" if nms is not None else "")
    )


def _next(output: Path) -> list[str]:
    return [f"next: edge-mrcnn run {output} PICTURE --to out/   or   edge-mrcnn build {output} --precision fp16"]
