"""Pickles read without running them: plain data comes back, and nothing that is malicious, cut or damaged does harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch

from edge_mrcnn.errors import ExportError
from edge_mrcnn.training.foreign import pickles
from edge_mrcnn.training.foreign.pickles import read_pickle
from edge_mrcnn.training.foreign.records import Call, Global
from edge_mrcnn.training.foreign.weights import read_weights

pytestmark = pytest.mark.torch

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(content: bytes) -> Any:
    return read_pickle(io.BytesIO(content), "a.pkl")


# ---------------------------------------------------------------------------------------------------------- plain data
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_comes_back(protocol: int) -> None:
    shared = [1, 2]
    data = {
        "numbers": [0, -1, 255, 65536, 2**40, -(2**90), 1.5, True, False, None],
        "texts": ("", "a", "ü\n\\", "x" * 300, b"", b"\x00\xff", b"y" * 70000),
        "nested": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {1: {2.5: [shared, shared]}}],
        ("a", 1): OrderedDict([("z", 1), ("a", 2)]),
    }
    found = read(pickle.dumps(data, protocol))
    assert found == data
    assert list(found["a", 1]) == ["z", "a"]
    assert found["nested"][-1][1][2.5][0] is found["nested"][-1][1][2.5][1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_anything_else_is_a_record(protocol: int) -> None:
    found = read(pickle.dumps({"a": Path("/x"), "b": deque([1]), "c": {3}}, protocol))
    assert all(isinstance(value, Call) for value in found.values())
    function = found["a"].function
    assert isinstance(function, Global) or isinstance(function.arguments[0], Global)


def test_several_pickles_in_a_file() -> None:
    file = io.BytesIO(pickle.dumps(1) + pickle.dumps([2]) + b"rest")
    assert (read_pickle(file, "a"), read_pickle(file, "a"), file.read()) == (1, [2], b"rest")


# ----------------------------------------------------------------------------------------------------------- malicious
class Runs:
    """What it is unpickled to is the result of a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


class RunsWhenBuilt:
    """A NumPy array of objects, in whose state there is a call."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def __reduce__(self) -> tuple[object, ...]:
        make, arguments, _ = np.zeros(1, object).__reduce__()
        return make, arguments, (1, (1,), np.dtype(object), False, [self.inner])


def by_system(path: Path) -> object:
    return Runs(os.system, f"mkdir {path}")


def by_eval(path: Path) -> object:
    return Runs(eval, f"__import__('os').mkdir({str(path)!r})")


def by_exec(path: Path) -> object:
    return Runs(exec, f"import os; os.mkdir({str(path)!r})")


def by_mkdir(path: Path) -> object:
    return Runs(os.mkdir, str(path))


def by_import(path: Path) -> object:
    return Runs(getattr, Runs(__import__, "os"), "mkdir"), path


MALICIOUS = (by_system, by_eval, by_exec, by_mkdir)
PLACES: dict[str, Callable[[object], object]] = {
    "alone": lambda evil: evil,
    "in the weights": lambda evil: {"model": {"conv1.weight": evil}},
    "beside the weights": lambda evil: {"model": {"a": np.zeros(2)}, "optimizer": evil},
    "in tuples": lambda evil: {"model": {"a": np.zeros(2)}, "meta": ((1, (2, [(evil,)])),)},
    "in an array of objects": lambda evil: {"model": {"a": RunsWhenBuilt(evil)}},
    "as a key": lambda evil: {"model": {evil: np.zeros(2)}},
    "as an argument": lambda evil: {"model": Runs(OrderedDict, evil)},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", MALICIOUS)
@pytest.mark.parametrize("save", ["pickle 0", "pickle 2", "pickle 4", "torch", "torch of old"])
def test_nothing_in_a_file_runs(save: str, make: Callable[[Path], object], place: str, tmp_path: Path) -> None:
    for name in ("control", "marker"):
        marker, path = tmp_path / name, tmp_path / f"{name}.pth"
        content = PLACES[place](make(marker))
        if save.startswith("pickle"):
            path.write_bytes(pickle.dumps(content, int(save[-1])))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=save == "torch")
    try:
        if save.startswith("pickle"):
            pickle.loads((tmp_path / "control.pth").read_bytes())
        else:
            torch.load(tmp_path / "control.pth", weights_only=False)
    except (TypeError, ValueError):
        pass  # what was made of the call's result is of no matter
    assert (tmp_path / "control").is_dir(), "the file is harmless to Python, too: the test tests nothing"
    with pytest.raises(
        ExportError, match=r"marker\.pth asks to load .*(system|eval|exec|mkdir), .*nothing of it was run"
    ):
        read_weights(tmp_path / "marker.pth")
    assert not (tmp_path / "marker").exists()


def test_a_detour_through_harmless_modules_runs_nothing_either(tmp_path: Path) -> None:
    """`torch.serialization.os` is the module `os`: a list of allowed modules alone would be passed by."""
    for name in ("control", "marker"):
        call = b"cbuiltins\ngetattr\n(ctorch.serialization\nos\nVmkdir\ntR(V" + str(tmp_path / name).encode() + b"\ntR"
        (tmp_path / f"{name}.pkl").write_bytes(b"(dVmodel\n(dVa\n" + call + b"ss.")
    pickle.loads((tmp_path / "control.pkl").read_bytes())
    assert (tmp_path / "control").is_dir()
    with pytest.raises(ExportError, match=r"marker\.pkl: a is no tensor .*nothing of it was run"):
        read_weights(tmp_path / "marker.pkl")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cos\nsystem\nq\x00.",  # a global alone
        b"(S'echo'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'echo'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x80\x02c__builtin__\neval\n.",
        b"\x80\x02csubprocess\nPopen\n.",
        b"\x80\x02cposix\nsystem\n.",
        b"\x80\x02crunpy\nrun_path\n.",
        b"\x80\x02cbuiltins\n__import__\n.",
    ],
)
def test_foreign_names_are_refused_by_name(content: bytes) -> None:
    with pytest.raises(ExportError, match=r"asks to load (os\.system|builtins\.|subprocess|posix|runpy)"):
        read(content)


# -------------------------------------------------------------------------------------------------------------- damage
def test_cut_anywhere() -> None:
    content = pickle.dumps({"model": {"a": np.arange(6.0)}, "b": [1, "two", (3,)]}, 2)
    for length in range(len(content)):
        with pytest.raises(ExportError, match="truncated"):
            read(content[:length])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_flipped_bytes_are_read_or_refused() -> None:
    content = pickle.dumps({"model": {"a": np.arange(6.0)}, "b": [1, "two", (3,), {4}, OrderedDict(c=5)]}, 2)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        try:
            read(bytes(damaged))
        except ExportError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        b"\x80\x02.",  # nothing to give
        b"\x80\x02K\x01K\x02.",  # two things
        b"\x80\x02a.",
        b"\x80\x02K\x01u.",
        b"\x80\x02h\x05.",  # of a memo that is empty
        b"\x80\x02K\x01K\x02s.",
        b"\x80\x02B\xff\xff\xff\x7f.",  # 2 GB that are not there
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02(K\x01d.",
        b"\x80\x02\x86.",
        b"I" + b"9" * 6000 + b"\n.",
    ],
)
def test_what_is_no_pickle(content: bytes) -> None:
    with pytest.raises(ExportError, match=r"a\.pkl is truncated"):
        read(content)


@pytest.mark.parametrize("opcode", [b"\x82\x01", b"\x97", b"\x98"])
def test_opcodes_that_no_checkpoint_has(opcode: bytes) -> None:
    """Extension registries and out-of-band buffers."""
    with pytest.raises(ExportError, match="which no checkpoint has"):
        read(b"\x80\x05" + opcode + b".")


def test_depth_does_no_harm() -> None:
    """Hashing such a key, or comparing it, would end the process."""
    deep = b")" + b"\x85" * 100_000
    assert len(read(b"\x80\x02}" + deep + b"K\x01s.")) == 1
    assert len(read(b"\x80\x04(" + deep + b"\x91.")) == 1
    assert isinstance(read(b"\x80\x02" + deep + b")R."), Call)


def test_endless_pickles_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPCODES", 1000)
    with pytest.raises(ExportError, match="more than 1000 steps"):
        read(b"\x80\x02" + b"K\x010" * 1000 + b"N.")


def test_shared_parts_are_not_multiplied() -> None:
    """A list of two of a list of two of ... is small in the file, and here."""
    content = b"\x80\x02]q\x000" + b"".join(
        b"](h" + struct.pack("B", level) + b"h" + struct.pack("B", level) + b"eq" + struct.pack("B", level + 1) + b"0"
        for level in range(200)
    )
    assert len(read(content + b"h\xc8.")) == 2
