"""Weights out of files of torch.save, new and old, and of NumPy's pickles: equal to what was saved, or refused."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import Tensor, nn  # noqa: E402

from edge_mrcnn.errors import ExportError  # noqa: E402
from edge_mrcnn.import_options import ImportOptions  # noqa: E402
from edge_mrcnn.training.foreign import import_checkpoint  # noqa: E402
from edge_mrcnn.training.foreign.records import Call  # noqa: E402
from edge_mrcnn.training.foreign.weights import read_weights  # noqa: E402

pytestmark = pytest.mark.torch

SAVES: dict[str, Callable[[object, Path], None]] = {
    "new": torch.save,
    "old": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
}


def state_dict() -> dict[str, Tensor]:
    """Tensors of all sorts that a checkpoint may hold."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    state = {
        "float": torch.randn(2, 3, 4),
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(5).bfloat16(),
        "double": torch.randn(5).double(),
        "long": torch.arange(4),
        "byte": torch.arange(4, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "transposed": base.t(),
        "part": base[2:4, 1::3],
        "shared": base,
        "expanded": torch.randn(3, 1).expand(3, 5),
        "parameter": nn.Parameter(torch.randn(3)),
    }
    return OrderedDict(state)


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
@pytest.mark.parametrize("nested", ["model", "state_dict", None])
def test_files_of_torch_save(nested: str | None, save: Callable[[object, Path], None], tmp_path: Path) -> None:
    state = state_dict()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    beside = {"optimizer": optimizer.state_dict(), "iteration": 3, "meta": {"CLASSES": ("a", "b")}}
    save(state if nested is None else {nested: state, **beside}, tmp_path / "a.pth")
    file = read_weights(tmp_path / "a.pth")
    assert file.tensors.keys() == state.keys()
    for name, value in state.items():
        found = file.tensors[name]
        assert torch.equal(found, value.float() if value.is_floating_point() else value), name
        assert found.dtype == (torch.float32 if value.is_floating_point() else value.dtype)
    if nested:
        assert (file.extra["iteration"], file.extra["meta"]) == (3, {"CLASSES": ("a", "b")})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_numpy(protocol: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "float": rng.normal(size=(2, 3)).astype(np.float32),
        "columns": np.asfortranarray(rng.normal(size=(2, 3))),
        "half": rng.normal(size=4).astype(np.float16),
        "other order": np.arange(4, dtype=">f4"),
        "long": np.arange(3),
        "scalar": np.float32(2.5),
        "point": np.array(2.5),
        "empty": np.zeros((0, 4), np.float32),
        "part": rng.normal(size=(6, 8))[::2, 1::3],
    }
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    file = read_weights(tmp_path / "a.pkl")
    assert file.tensors.keys() == arrays.keys()
    for name, value in arrays.items():
        expected = np.asarray(value)
        assert file.tensors[name].shape == expected.shape
        assert np.array_equal(file.tensors[name].numpy(), expected.astype("f4" if expected.dtype.kind == "f" else "i8"))
    assert file.extra["__author__"] == "Detectron2 Model Zoo"


def test_arrays_of_python_2(tmp_path: Path) -> None:
    """Detectron's files were written by Python 2, whose bytes are texts."""
    content = pickle.dumps({"model": {"a": np.arange(3, dtype=np.float32)}}, 3)
    numbers = np.arange(3, dtype=np.float32).tobytes()
    assert b"C\x0c" + numbers in content
    (tmp_path / "a.pkl").write_bytes(content.replace(b"C\x0c" + numbers, b"U\x0c" + numbers))
    assert read_weights(tmp_path / "a.pkl").tensors["a"].tolist() == [0, 1, 2]


def test_what_lies_beside_the_weights_is_not_loaded(tmp_path: Path) -> None:
    """A log's class need not be there; it is none of ours, and neither are its numbers."""
    torch.save({"state_dict": {"a": torch.ones(3)}, "message_hub": {"loss": Log(torch.zeros(9))}}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for entry in old.namelist():
            if entry.endswith("data.pkl"):
                here, there = Log.__module__.encode(), b"mmengine.logging.history_buffer"
                assert here in old.read(entry)
                new.writestr(entry, old.read(entry).replace(here, there))
            elif not entry.endswith("data/1"):
                new.writestr(entry, old.read(entry))
    file = read_weights(tmp_path / "b.pth")
    assert file.tensors["a"].tolist() == [1, 1, 1]
    log = file.extra["message_hub"]["loss"]
    assert isinstance(log, Call)
    assert "mmengine.logging.history_buffer.Log" in f"{log.function} {log.arguments}"


class Log:
    """Stands for mmengine's `HistoryBuffer`."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers


def test_the_prefix_of_parallel_training_is_taken_off(tmp_path: Path) -> None:
    torch.save({"model": {"module.a.weight": torch.ones(1), "module.b": torch.ones(1)}}, tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth").tensors) == ["a.weight", "b"]


# ------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize("kind", ["new", "old", "pkl"])
def test_files_cut_anywhere(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    if kind == "pkl":
        path.write_bytes(pickle.dumps({"model": {"a": np.arange(500.0), "b": np.arange(9)}}, 2))
    else:
        SAVES[kind]({"model": {"a": torch.arange(500.0), "b": torch.arange(9)}}, path)
    content = path.read_bytes()
    for length in {0, 1, 2, 10, len(content) - 1, *range(3, len(content), len(content) // 60)}:
        path.write_bytes(content[:length])
        with pytest.raises(ExportError, match=r"a\.pth.*(truncated|damaged|empty).*opy or download"):
            read_weights(path)


@pytest.mark.parametrize("kind", ["new", "old"])
def test_flipped_bytes_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    SAVES[kind]({"model": {"a": torch.arange(50.0), "b": torch.randn(2, 3).t()}}, path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(600):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            read_weights(path)
        except ExportError:
            refused += 1
    assert refused > 50


def test_a_shape_larger_than_its_numbers(tmp_path: Path) -> None:
    for save, name in ((torch.save, "new"), (SAVES["old"], "old")):
        path = tmp_path / f"{name}.pth"
        save({"model": {"a": torch.zeros(3, 7)}}, path)
        whole = path.read_bytes()
        assert whole.count(b"K\x03K\x07") == 1
        path.write_bytes(whole.replace(b"K\x03K\x07", b"K\xffK\xff"))
        if name == "old":  # the archive's checksum tells it in the new format
            with pytest.raises(ExportError, match=r"a is no tensor .* 84 bytes and needs"):
                read_weights(path)
        else:
            with pytest.raises(ExportError, match="truncated or damaged"):
                read_weights(path)


def test_nan(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2), "b": torch.tensor([1, float("nan")])}}, tmp_path / "a.pth")
    with pytest.raises(ExportError, match=r"NaN or infinite values in 1 of 2 tensors \(b\)"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "a list: it is no checkpoint"),
        ({}, "holds no weights.*found nothing"),
        ({"epoch": 3, "lr": 0.1}, "holds no weights.*found epoch, lr"),
        ({"model": {}}, "holds no weights.*found model"),
        ({"model": {"a": "text", "b": [1]}}, "holds no weights"),
        ({"model": {"a": np.array(["x"], dtype=object)}}, "a is no tensor.*type 'O8'"),
        ({"model": {"a": np.array(["x"])}}, "a is no tensor.*type 'U1'"),
        ({"model": {"a": np.zeros(2, complex)}}, "a is no tensor.*type 'c16'"),
        ({"blobs": {"conv1_w": np.zeros(3)}, "cfg": "NUM_GPUS: 8"}, "a model of Detectron 1"),
        ({"conv1_w": np.zeros(3), "conv1_w_momentum": np.zeros(3)}, "a model of Detectron 1"),
    ],
)
def test_pickles_without_weights(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ExportError, match=message):
        read_weights(tmp_path / "a.pkl")


def test_archives_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    with pytest.raises(ExportError, match=r"an archive, but not one of torch\.save"):
        read_weights(path)
    torch.save({"model": {"a": torch.zeros(10000)}}, tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "b.pth") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    with pytest.raises(ExportError, match="a compressed archive"):
        read_weights(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nothing\.pkl does not exist"):
        read_weights(tmp_path / "nothing.pkl")
    with pytest.raises(ExportError, match="is a folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backbone.body.layer1.0.conv1.weight", "torchvision's names: export it with edge-mrcnn export"),
        ("model.0.conv.weight", "of no project that is known: its weights are called model.0.conv.weight"),
    ],
)
def test_other_projects(name: str, message: str, tmp_path: Path) -> None:
    torch.save({"model": {name: torch.zeros(3)}}, tmp_path / "a.pth")
    with pytest.raises(ExportError, match=message):
        import_checkpoint(tmp_path / "a.pth", ImportOptions())
