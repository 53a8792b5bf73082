"""Checkpoints from anywhere: what loads, what is refused and with which words, and that writing is atomic."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from edge_mrcnn.errors import EdgeMrcnnError  # noqa: E402
from edge_mrcnn.training import checkpoint as module  # noqa: E402
from edge_mrcnn.training.checkpoint import load_checkpoint, load_weights, save_checkpoint  # noqa: E402
from edge_mrcnn.training.zoo import build_model  # noqa: E402

pytestmark = pytest.mark.torch


class Tripwire:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    ],
    ids=["raw", "model", "state_dict", "ddp", "ddp in model"],
)
def test_reads_the_usual_forms(tmp_path, net, wrap):
    torch.save(wrap(net.state_dict()), tmp_path / "a.pt")
    state = load_checkpoint(tmp_path / "a.pt").state_dict
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_meta_comes_back(tmp_path, net):
    names = ("__background__", "mug")
    path = tmp_path / "a.pt"
    save_checkpoint(path, net, model_name="n", class_names=names, size=(320, 416), extra={"step": 7})
    read = load_checkpoint(path)
    assert (read.model_name, read.class_names, read.size, read.num_classes) == ("n", names, (320, 416), 2)
    assert read.extra == {"step": 7}


@pytest.mark.parametrize("meta", [3, {"class_names": "mug"}, {"size": []}, {"model_name": 1}])
def test_foreign_meta_is_passed_over(tmp_path, net, meta):
    torch.save({"model": net.state_dict(), "meta": meta}, tmp_path / "a.pt")
    read = load_checkpoint(tmp_path / "a.pt")
    assert (read.model_name, read.class_names, read.size) == (None, None, None)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(EdgeMrcnnError, match=r"nothing\.pt does not exist: give the path"):
        load_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(EdgeMrcnnError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_zero_bytes(tmp_path):
    (tmp_path / "a.pt").touch()
    with pytest.raises(EdgeMrcnnError, match=r"empty \(0 bytes\): copy or download"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("part", [0.05, 0.5, 0.98])
def test_truncated(tmp_path, net, part):
    torch.save(net.state_dict(), tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(EdgeMrcnnError, match=r"a\.pt \(\d+ bytes\) .*"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_never_runs(tmp_path, writer):
    tripped = tmp_path / "tripped"
    writer({"model": Tripwire(tripped)}, tmp_path / "a.pt")
    with pytest.raises(EdgeMrcnnError, match=r"save `model\.state_dict\(\)` only"):
        load_checkpoint(tmp_path / "a.pt")
    assert not tripped.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "is an empty dict"),
        ({"a": 3}, r"entries that are no tensors \('a'\)"),
        ({"model": {"a": "b"}}, "no tensors"),
    ],
)
def test_foreign_content(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(EdgeMrcnnError, match=message):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_weights_are_named(tmp_path, net, value):
    state = net.state_dict()
    state["1.weight"][0, 0] = value
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(EdgeMrcnnError, match=r"in 1 of 4 tensors \(1\.weight\)"):
        load_checkpoint(tmp_path / "a.pt")


def test_missing_and_unexpected_keys_are_counted_and_listed(tmp_path, net):
    state = {f"other.{number}": torch.zeros(1) for number in range(12)}
    torch.save({**state, "0.weight": net[0].weight.detach()}, tmp_path / "a.pt")
    with pytest.raises(EdgeMrcnnError) as caught:
        load_weights(net, tmp_path / "a.pt")
    text = str(caught.value)
    assert "3 keys are missing (0.bias, 1.weight, 1.bias)" in text
    assert "12 are unexpected (other.0, " in text
    assert "other.9 and 2 more" in text


def test_other_shapes_are_listed(tmp_path, net):
    torch.save({**net.state_dict(), "0.bias": torch.zeros(5)}, tmp_path / "a.pt")
    with pytest.raises(EdgeMrcnnError, match=r"1 tensors have another shape \(0\.bias \(5,\) instead of \(4,\)\)"):
        load_weights(net, tmp_path / "a.pt")


def test_class_count_mismatch_names_the_flag(tmp_path):
    torch.save(build_model("maskrcnn_edge", 7).state_dict(), tmp_path / "a.pt")
    expected = "checkpoint has 7 classes, the model was built for 91: pass --num-classes 7"
    with pytest.raises(EdgeMrcnnError, match=expected):
        load_weights(build_model("maskrcnn_edge", 91), tmp_path / "a.pt")


class TestSaving:
    def test_others_may_read_it_as_any_new_file(self, tmp_path, net):
        save_checkpoint(tmp_path / "a.pt", net)
        (tmp_path / "usual").touch()
        assert (tmp_path / "a.pt").stat().st_mode == (tmp_path / "usual").stat().st_mode

    def test_a_full_disk_leaves_nothing_under_the_name(self, tmp_path, net, monkeypatch):
        def full(content, file):
            file.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(module.torch, "save", full)
        with pytest.raises(EdgeMrcnnError, match="No space left on device"):
            save_checkpoint(tmp_path / "a.pt", net)
        assert list(tmp_path.iterdir()) == []

    def test_an_older_file_survives_a_failure(self, tmp_path, net, monkeypatch):
        save_checkpoint(tmp_path / "a.pt", net)
        before = (tmp_path / "a.pt").read_bytes()
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
        with pytest.raises(EdgeMrcnnError, match="an older file is as it was"):
            save_checkpoint(tmp_path / "a.pt", net)
        assert (tmp_path / "a.pt").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    def test_a_missing_folder_is_an_error_with_a_remedy(self, tmp_path, net):
        with pytest.raises(EdgeMrcnnError, match="cannot be written"):
            save_checkpoint(tmp_path / "no" / "a.pt", net)

    def test_an_interrupt_leaves_no_temporary_file(self, tmp_path, net, monkeypatch):
        def interrupted(content, file):
            raise KeyboardInterrupt

        monkeypatch.setattr(module.torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "a.pt", net)
        assert list(tmp_path.iterdir()) == []
