"""What goes wrong at the command line: a message with the remedy, the right exit code, and no half-written file.

Exit code 2 is wrong usage, 1 is failure. Every row runs the real command in this process; what only a process of its
own shows (no traceback without --debug, a full disk) is tested at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

from edge_mrcnn import cli
from tests.runtime.tiny_detector import SPEC, save_detector

PICTURE_HW = (48, 80)
NEWER = dataclasses.replace(SPEC, format=99)


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, a picture and an empty folder `out`."""
    save_detector(tmp_path / "model.onnx")
    cv2.imwrite(str(tmp_path / "photo.png"), gradient())
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command line in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments: str) -> Outcome:
        try:
            code = cli.main(arguments)
        except SystemExit as stop:  # the flag parser leaves this way
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    yield run
    root.handlers[:], root.level = handlers, level
    logging.getLogger("edge_mrcnn").setLevel(logging.NOTSET)


def gradient(dtype: type = np.uint8) -> np.ndarray:
    ramp = np.linspace(0, np.iinfo(dtype).max, PICTURE_HW[0] * PICTURE_HW[1] * 3)
    return ramp.reshape(*PICTURE_HW, 3).astype(dtype)


def cut(path: Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def check(outcome: Outcome, code: int, *parts: str) -> None:
    assert outcome.code == code, outcome.err
    for part in parts:
        assert part in outcome.err
    assert outcome.err.count("Traceback") == 0
    assert os.listdir("out") == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("", ["usage"]),
        ("runs model.onnx photo.png", ["did you mean 'run'?"]),
        ("run model.onnx", ["at least one source", "test://"]),
        ("run model.onnx photo.png --nonsense 1", ["--nonsense"]),
        ("run model.onnx photo.png --threshold 2", ["threshold", "from 0 to 1"]),
        ("run model.onnx photo.png --batch 0", ["batch", "at least 1"]),
        ("run photo.png photo.png", [".onnx"]),
        ("run model.onnx rtmp://camera/stream", ["unknown scheme rtmp://", "test://"]),
        ("run model.onnx test://64x48?frame=3", ["unknown option 'frame'", "frames"]),
        ("run model.onnx test://big", ["WIDTHxHEIGHT"]),
        ("run model.onnx photo.png --to ftp://host/x", ["unknown sink", "out.jsonl"]),
        ("run model.onnx photo.png --to out/result.xyz", ["unknown sink", "out.mkv .mp4 (video)"]),
        ("bench model.onnx --runs 0", ["runs", "at least 1"]),
        ("bench model.onnx --against torchvision", ["--weights"]),
        ("eval model.onnx truth.json --limit 0", ["limit", "at least 1"]),
        ("eval model.onnx truth.json --classes some", ["--classes"]),
    ],
)
def test_wrong_usage_is_2(here: Path, command: Command, arguments: str, parts: list[str]) -> None:
    outcome = command(*arguments.split())
    everything = outcome._replace(err=outcome.err + outcome.out)  # the flag parser draws its boxes where it likes
    check(everything, 2, *parts)


MODELS: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    ("missing", lambda path: path.unlink(), ["there is no", "model.onnx"]),
    ("folder", lambda path: (path.unlink(), path.mkdir()), ["model.onnx"]),
    ("zero bytes", lambda path: path.write_bytes(b""), ["0 bytes", "edge-mrcnn export"]),
    ("truncated", cut, ["model.onnx", "edge-mrcnn export"]),
    ("text", lambda path: path.write_text("hello"), ["model.onnx", "edge-mrcnn export"]),
    (
        "without a spec",
        lambda path: save_detector(path, spec=None),
        ["carries no edge_mrcnn spec", "edge-mrcnn export"],
    ),
    ("newer format", lambda path: save_detector(path, NEWER), ["format 99", "edge-mrcnn export"]),
]


READERS = {"run": "photo.png --to out/a.jsonl", "eval": "truth.json", "build": "-o out", "inspect": "--layers"}
READ = [
    pytest.param(verb, spoil, parts if verb in ("run", "eval") else parts[-1:], id=f"{verb} {name}")
    for verb in READERS
    for name, spoil, parts in MODELS
    if (verb, name) != ("inspect", "without a spec")  # any ONNX file can be inspected
]


@pytest.mark.parametrize(("verb", "spoil", "parts"), READ)
def test_unusable_model_is_1(here: Path, command: Command, verb: str, spoil: Any, parts: list[str]) -> None:
    spoil(here / "model.onnx")
    check(command(verb, "model.onnx", *READERS[verb].split()), 1, *parts)


def test_engine_without_sidecar_is_not_loaded(here: Path, command: Command) -> None:
    (here / "model.engine").write_bytes(b"code")
    check(command("run", "model.engine", "photo.png", "--to", "out/a.jsonl"), 1, "sidecar", "edge-mrcnn build")


def _broken_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes())
    cut(path)


@pytest.mark.parametrize(
    ("name", "make", "parts"),
    [
        ("gone.png", lambda path: None, ["there is no source", "gone.png"]),
        ("empty.png", lambda path: path.write_bytes(b""), ["empty.png", "0 bytes"]),
        ("text.png", lambda path: path.write_text("hello"), ["text.png", "no picture"]),
        ("broken.jpg", _broken_jpeg, ["broken.jpg", "cut short"]),
        ("text.mp4", lambda path: path.write_text("hello"), ["text.mp4", "video"]),
        ("empty.mp4", lambda path: path.write_bytes(b""), ["empty.mp4"]),
        ("nothing", lambda path: path.mkdir(), ["holds no pictures"]),
        ("*.bmp", lambda path: None, ["no picture", "*.bmp"]),
        ("/dev/video97", lambda path: None, ["/dev/video97"]),
    ],
)
def test_unreadable_source_is_1(here: Path, command: Command, name: str, make: Any, parts: list[str]) -> None:
    make(here / name)
    for sink in ("out/a.jsonl", "out/a.mp4", "out/a.png"):
        check(command("run", "model.onnx", name, "--to", sink), 1, *parts)


def _exif(path: Path) -> None:
    """A photograph to be turned by 90 degrees."""
    from PIL import Image

    picture = Image.fromarray(gradient())
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "make", "image_hw"),
    [
        ("one.png", lambda path: cv2.imwrite(path, np.zeros((1, 1, 3), np.uint8)), (1, 1)),
        ("line.png", lambda path: cv2.imwrite(path, np.zeros((1, 500, 3), np.uint8)), (1, 500)),
        ("grey.png", lambda path: cv2.imwrite(path, gradient()[..., 0]), PICTURE_HW),
        ("rgba.png", lambda path: cv2.imwrite(path, np.dstack([gradient(), gradient()[..., 0]])), PICTURE_HW),
        ("deep.png", lambda path: cv2.imwrite(path, gradient(np.uint16)), PICTURE_HW),
        ("deep_grey.tif", lambda path: cv2.imwrite(path, gradient(np.uint16)[..., 0]), PICTURE_HW),
        ("turned.jpg", _exif, PICTURE_HW[::-1]),
    ],
)
def test_odd_picture_is_read(here: Path, command: Command, name: str, make: Any, image_hw: tuple[int, int]) -> None:
    make(str(here / name))
    outcome = command("run", "model.onnx", name, "--to", "out/a.jsonl", "out/a.png", "--rle")
    assert outcome.code == 0, outcome.err
    record = json.loads((here / "out" / "a.jsonl").read_text())
    assert tuple(record["image_hw"]) == image_hw
    height, width = image_hw
    for found in record["detections"]:
        assert 0 <= found["xyxy"][0] <= found["xyxy"][2] <= width
        assert 0 <= found["xyxy"][1] <= found["xyxy"][3] <= height
    assert cv2.imread(str(here / "out" / "a.png")).shape[:2] == image_hw


def test_unreadable_picture_of_a_folder_is_skipped_unless_strict(here: Path, command: Command) -> None:
    (here / "photos").mkdir()
    (here / "photos" / "a.png").write_bytes(b"")
    (here / "photo.png").rename(here / "photos" / "b.png")
    check(command("run", "model.onnx", "photos", "--strict", "--to", "out/a.jsonl"), 1, "a.png")
    outcome = command("run", "model.onnx", "photos", "--to", "out/a.jsonl")
    assert outcome.code == 0
    assert "a.png" in outcome.err
    assert len((here / "out" / "a.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("sink", ["a.jsonl", "a.mp4", "a.png", "a/"])
def test_unwritable_output_is_1(here: Path, command: Command, sink: str) -> None:
    (here / "file").write_text("in the way")
    check(command("run", "model.onnx", "photo.png", "--to", f"file/{sink}"), 1, "cannot write", "file")


@pytest.mark.parametrize("verb", ["run model.onnx photo.png", "inspect model.onnx", "bench model.onnx --runs 1"])
def test_unwritable_json_is_1(here: Path, command: Command, verb: str) -> None:
    check(command(*verb.split(), "--json", "missing/a.json"), 1, "missing")


def test_second_frame_for_one_picture_leaves_nothing(here: Path, command: Command) -> None:
    check(command("run", "model.onnx", "test://64x48?frames=2", "--to", "out/a.png"), 1, "out/a.png", "--to out/a/")


def _data(path: Path, names: tuple[str, ...]) -> None:
    content = {
        "images": [{"id": 1, "file_name": "photo.png", "height": PICTURE_HW[0], "width": PICTURE_HW[1]}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, 1)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}],
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda path: None, ["there is no annotation file"]),
        (lambda path: path.write_text("{"), ["not valid JSON"]),
        (lambda path: _data(path, ("mug",)), ["class-count mismatch", "the model: bottle", "--classes common"]),
        (lambda path: _data(path, ("mug", "jar")), ["the names differ", "the model: bottle", "the data: jar"]),
    ],
)
def test_unusable_data_is_1(here: Path, command: Command, make: Any, parts: list[str]) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    make(here / "truth.json")
    check(command("eval", "model.onnx", "truth.json", "--json", "out/a.json"), 1, *parts)


def _saved(change: Callable[[dict[str, Any]], Any], classes: int = 7) -> Callable[[Path], None]:
    """Saves the weights of `maskrcnn_edge` after `change`, which returns what to save instead or None."""

    def save(path: Path) -> None:
        import torch

        from edge_mrcnn.training.zoo import build_model

        state = build_model("maskrcnn_edge", classes).state_dict()
        replaced = change(state)
        torch.save(state if replaced is None else replaced, path)

    return save


def _spoil(state: dict[str, Any]) -> None:
    state["rpn.head.cls_logits.bias"][0] = float("nan")


def _truncated(path: Path) -> None:
    _saved(lambda state: None)(path)
    cut(path)


CHECKPOINTS: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    ("missing", lambda path: None, ["w.pth", "does not exist"]),
    ("zero bytes", lambda path: path.write_bytes(b""), ["0 bytes"]),
    ("truncated", _truncated, ["truncated or damaged"]),
    ("text", lambda path: path.write_text("hello"), ["w.pth", "damaged", "download"]),
    ("with code", _saved(lambda state: Path("x")), ["was not loaded", "foreign code"]),
    ("a list", _saved(lambda state: [1, 2]), ["not a state dict"]),
    ("other entries", _saved(lambda state: {"epoch": 3}), ["no tensors", "'epoch'"]),
    (
        "foreign",
        _saved(lambda state: state.update(stam=state.pop("backbone.body.stem.0.weight"))),
        ["backbone.body.stem.0.weight", "unexpected (stam)"],
    ),
    ("other classes", _saved(lambda state: None, 4), ["has 4 classes", "built for 7", "--num-classes 4"]),
    ("NaN", _saved(_spoil), ["NaN", "rpn.head.cls_logits.bias"]),
]


@pytest.mark.torch
@pytest.mark.parametrize(("make", "parts"), [row[1:] for row in CHECKPOINTS], ids=[row[0] for row in CHECKPOINTS])
def test_unusable_checkpoint_is_1(here: Path, command: Command, make: Any, parts: list[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    make(here / "w.pth")
    outcome = command("export", "maskrcnn_edge", "--weights", "w.pth", "--num-classes", "7", "-o", "out/a.onnx")
    check(outcome, 1, *parts)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ("maskrcnn_edgy", 2, ["not in the zoo", "'maskrcnn_edge'"]),
        ("maskrcnn_edge --size 100x100", 2, ["multiples of 32", "96x96"]),
        ("maskrcnn_edge --size big", 2, ["HxW"]),
        ("maskrcnn_edge --num-classes 1", 2, ["at least 2"]),
        ("maskrcnn_edge --weights COCO_V9", 1, ["COCO_V9"]),
        ("maskrcnn_edge --class-names mug,jar --num-classes 7", 1, ["2 class names", "7 classes", "6 names"]),
        ("maskrcnn_edge -o missing/a.onnx", 1, ["missing", "mkdir"]),
    ],
)
def test_export_says_what_it_cannot_do(
    here: Path, command: Command, arguments: str, code: int, parts: list[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    output = [] if " -o " in arguments else ["-o", "out/a.onnx"]
    check(command("export", *arguments.split(), *output), code, *parts)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda path: None, ["truth.json"]),
        (lambda path: path.write_text("{"), ["truth.json", "JSON"]),
        (lambda path: path.write_text('{"images": [], "annotations": [], "categories": []}'), ["truth.json"]),
    ],
)
def test_training_needs_data(here: Path, command: Command, make: Any, parts: list[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    make(here / "truth.json")
    check(command("train", "maskrcnn_edge", "truth.json", "--out", "run"), 1, *parts)
    assert not list(here.glob("run/*.pt"))


def spawn(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "edge_mrcnn", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **kwargs)


def test_traceback_only_with_debug(here: Path) -> None:
    quiet, loud = spawn("run", "gone.onnx", "photo.png"), spawn("run", "gone.onnx", "photo.png", "--debug")
    assert (quiet.returncode, quiet.stderr.count("\n")) == (1, 1)
    assert quiet.stderr.startswith("edge-mrcnn: there is no")
    assert "Traceback" in loud.stderr
    assert loud.returncode == 1


@pytest.fixture
def full_disk(here: Path) -> Iterator[Path]:
    """A disk with a few kilobytes left."""
    disk = here / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted: not root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize(
    "arguments",
    [
        "run model.onnx test://640x480?frames=1 --to disk/a.png",
        "run model.onnx test://640x480?frames=9 --to disk/a/",
        "inspect model.onnx --layers --json disk/a.json",
    ],
)
def test_full_disk_is_1_and_leaves_no_half_file(full_disk: Path, command: Command, arguments: str) -> None:
    fill(full_disk)
    outcome = command(*arguments.split())
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "space" in outcome.err
    assert [path.name for path in full_disk.rglob("*") if path.is_file()] == ["filler"]


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("name", ["a.jsonl", "a.mp4", "a.mkv"])
def test_full_disk_is_1_and_ends_a_recording(full_disk: Path, command: Command, name: str) -> None:
    fill(full_disk)
    outcome = command("run", "model.onnx", "test://640x480?frames=120", "--rle", "--to", f"disk/{name}")
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "No space left" in outcome.err
    (full_disk / name).unlink()  # and nobody holds it open: the disk can be unmounted


def fill(disk: Path) -> None:
    """Leave no room on a disk."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"\0" * 4096):
            pass
