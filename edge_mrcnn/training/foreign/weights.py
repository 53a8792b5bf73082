"""The weights in a file of another project: a pickle of NumPy arrays, or a file of `torch.save`, old or new.

Nothing in the file is run: `pickles.py` gives records of what it holds, and here the few that mean a tensor or an array
are turned into tensors. Whatever else lies beside the weights, such as an optimizer or logs, is not even looked at.

Source: torch/serialization.py (`_legacy_save`, `_save`) and torch/_utils.py (`_rebuild_tensor_v2`) for files of
`torch.save`; NumPy's `ndarray.__reduce__` and `dtype.__reduce__` for arrays.
"""

from __future__ import annotations

import contextlib
import functools
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from edge_mrcnn.errors import ExportError
from edge_mrcnn.training.foreign.pickles import read_pickle
from edge_mrcnn.training.foreign.records import Call, External, Global

STATE_KEYS = ("model", "state_dict", "model_state")
"""Where files keep the weights, if these are not all there is: detectron2, mmdetection, pycls."""

LISTED = 8
"""How many names an error lists."""

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a file of torch.save before 1.6. Source: torch/serialization.py."""

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_ARRAY_MAKERS = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_BUFFER_MAKERS = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
_SCALAR_MAKERS = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}

ReadBytes = Callable[[str], bytes]
"""A storage's key to its bytes."""


@dataclass(frozen=True)
class ForeignFile:
    """What a file of another project holds.

    Attributes:
        tensors: Weights by their names in the file, without `module.`; floats as float32.
        source: Path, for messages.
        extra: Whatever else the file holds beside the weights, by its name: plain data, and records of what was not
            loaded.
    """

    tensors: dict[str, Tensor]
    source: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_weights(path: Path) -> ForeignFile:
    """Read the weights of a checkpoint; code inside it is never run.

    Args:
        path: A pickle of NumPy arrays (detectron2's `.pkl`) or a file of `torch.save`; told apart by content.

    Raises:
        ExportError: The file is missing, truncated, damaged, malicious, or holds no weights.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ExportError(f"checkpoint {path} {what}: give the path of a .pkl or .pth file")
    if path.stat().st_size == 0:
        raise ExportError(f"checkpoint {path} is empty (0 bytes): copy or download it again")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        start = file.read(2)
        file.seek(0)
        content, read_bytes = _read_zip(path, stack) if start == b"PK" else _read_pickles(file, str(path))
        # of a storage that many tensors share, each would read it all
        return _make_file(content, functools.lru_cache(1)(read_bytes), str(path))


# -------------------------------------------------------------------------------------------------------------- files
def _read_zip(path: Path, stack: contextlib.ExitStack) -> tuple[object, ReadBytes]:
    """A file of torch.save since 1.6: an archive of a pickle and a file for each storage."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
        (pickle,) = (name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        folder = pickle.removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ExportError(f"{path} is a compressed archive, which torch.save does not write: unpack it first")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ExportError(f"{path} was written on a big-endian machine; save it again on another")
        with archive.open(pickle) as file:
            content = read_pickle(_unwrap(file), str(path))
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise _damaged(str(path), error) from error
    except ValueError as error:
        raise ExportError(
            f"{path} is an archive, but not one of torch.save, which has one data.pkl: give the checkpoint itself"
        ) from error

    def read_bytes(key: str) -> bytes:
        try:
            return archive.read(f"{folder}data/{key}")
        except (zipfile.BadZipFile, EOFError, OSError, KeyError, RuntimeError) as error:
            raise _damaged(str(path), error) from error

    return content, read_bytes


def _unwrap(file: Any) -> BinaryIO:
    binary: BinaryIO = file
    return binary


def _read_pickles(file: BinaryIO, source: str) -> tuple[object, ReadBytes]:
    """A plain pickle, or a file of torch.save before 1.6: five pickles, and the storages one after the other."""
    first = read_pickle(file, source)
    if first != _TORCH_MAGIC:
        return first, lambda key: _no_storage(source, key)
    read_pickle(file, source)  # the protocol's version
    read_pickle(file, source)  # the sizes of C's types
    content = read_pickle(file, source)
    keys = read_pickle(file, source)
    sizes, path = _storage_sizes(content), Path(source)
    size = path.stat().st_size
    places: dict[str, tuple[int, int]] = {}
    for key in keys if isinstance(keys, list) else ():
        count = int.from_bytes(file.read(8), "little")
        start, length = file.tell(), count * sizes.get(str(key), 0)
        if start + length > size:
            raise ExportError(
                f"{source} is truncated or damaged: its {size} bytes end within a tensor. Copy or download it again"
            )
        places[str(key)] = (start, length)
        file.seek(length, 1)

    def read_bytes(key: str) -> bytes:
        if key not in places:
            return _no_storage(source, key)
        with path.open("rb") as again:
            again.seek(places[key][0])
            return again.read(places[key][1])

    return content, read_bytes


def _storage_sizes(content: object) -> dict[str, int]:
    """Bytes of an element of every storage that a file's records refer to: old files do not say it elsewhere."""
    sizes: dict[str, int] = {}
    todo, seen = [content], set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, External):
            key = each.key
            if isinstance(key, tuple) and len(key) >= 5 and isinstance(key[1], Global):
                sizes[str(key[2])] = _STORAGES.get(key[1].name, torch.uint8).itemsize
        elif isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, list | tuple):
            todo += each
        elif isinstance(each, Call):
            todo += (each.arguments, each.state)
    return sizes


def _no_storage(source: str, key: str) -> bytes:
    raise ExportError(f"{source} is damaged: a tensor's numbers ({key!r}) are not in it. Copy or download it again")


def _damaged(source: str, error: BaseException) -> ExportError:
    return ExportError(f"{source} is truncated or damaged: {_reason(error)}. Copy or download it again")


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# ------------------------------------------------------------------------------------------------------------ content
def _make_file(content: object, read_bytes: ReadBytes, source: str) -> ForeignFile:
    if not isinstance(content, dict):
        raise ExportError(f"{source} holds no weights by name, but a {type(content).__name__}: it is no checkpoint")
    if isinstance(content.get("blobs"), dict) or any(str(key).endswith("_momentum") for key in content):
        raise ExportError(
            f"{source} is a model of Detectron 1 (Caffe2), whose anchors and boxes count pixels in another way, so it "
            "cannot be imported exactly: take the model of detectron2's zoo, or train it there"
        )
    nested = next((key for key in STATE_KEYS if isinstance(content.get(key), dict)), None)
    state = content if nested is None else content[nested]
    tensors = {}
    for key, value in state.items():
        tensor = _make_tensor(value, read_bytes, f"{source}: {key}")
        if tensor is not None:
            tensors[str(key)] = tensor.float() if tensor.is_floating_point() else tensor
    if not tensors:
        raise ExportError(
            f"{source} holds no weights: expected tensors by name, or such a dictionary under one of "
            f"{', '.join(STATE_KEYS)}; found {', '.join(map(str, list(content)[:LISTED])) or 'nothing'}"
        )
    if all(key.startswith("module.") for key in tensors):  # put there by DistributedDataParallel
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    _check_finite(tensors, source)
    extra = {} if nested is None else {str(key): value for key, value in content.items() if key != nested}
    return ForeignFile(tensors, source, extra)


def _make_tensor(value: object, read_bytes: ReadBytes, where: str) -> Tensor | None:
    """The tensor that a record means, or None if it means something else."""
    if not isinstance(value, Call):
        return None
    try:
        match str(value.function):
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
                assert isinstance(value.arguments, tuple)
                return _make_tensor(value.arguments[0], read_bytes, where)
            case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor":
                return _torch_tensor(value, read_bytes)
            case name if name in _ARRAY_MAKERS | _BUFFER_MAKERS | _SCALAR_MAKERS:
                return torch.from_numpy(_numpy_array(value))
            case _:
                raise ValueError("it is something else")
    except (ValueError, TypeError, IndexError, KeyError, AssertionError, RuntimeError, OverflowError) as error:
        raise ExportError(
            f"{where} is no tensor as torch or NumPy write them, or damaged ({_reason(error)}): nothing of it was run. "
            "Copy or download it again"
        ) from error


def _torch_tensor(value: Call, read_bytes: ReadBytes) -> Tensor:
    storage, offset, size, stride = value.arguments[:4]  # type: ignore[index]
    assert isinstance(storage, External)
    assert isinstance(storage.key, tuple)
    assert storage.key[0] == "storage"
    kind, key = storage.key[1], storage.key[2]
    dtype = _STORAGES[kind.name]
    _check_counts(offset, *size, *stride)
    numbers = read_bytes(str(key))
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if math.prod(size) == 0:
        return torch.empty(size, dtype=dtype)
    if (last + 1) * dtype.itemsize > len(numbers):
        raise ValueError(f"it has {len(numbers)} bytes and needs {(last + 1) * dtype.itemsize}")
    flat = torch.frombuffer(bytearray(numbers), dtype=dtype, count=len(numbers) // dtype.itemsize)
    return flat.as_strided(size, stride, offset).clone()


def _check_counts(*values: object) -> None:
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise ValueError(f"its shape is {values}")


def _numpy_array(value: Call) -> np.ndarray[Any, Any]:
    """The array of numbers that NumPy's pickles describe."""
    name = str(value.function)
    assert isinstance(value.arguments, tuple)
    if name in _SCALAR_MAKERS:
        dtype, numbers = value.arguments
        shape: tuple[int, ...] = ()
        fortran = False
    elif name in _BUFFER_MAKERS:
        numbers, dtype, shape, order = value.arguments
        fortran = order == "F"
    else:
        assert isinstance(value.state, tuple)
        _version, shape, dtype, fortran, numbers = value.state
    kind = _numpy_dtype(dtype)
    if isinstance(numbers, str):
        numbers = numbers.encode("latin-1")  # Python 2 wrote bytes as text
    assert isinstance(numbers, bytes | bytearray)
    _check_counts(*shape)
    array = np.frombuffer(bytearray(numbers), kind)
    array = array.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(shape)


def _numpy_dtype(value: object) -> np.dtype[Any]:
    """A type of numbers; of others, such as objects, a `ValueError`."""
    assert isinstance(value, Call)
    assert str(value.function) == "numpy.dtype"
    assert isinstance(value.arguments, tuple)
    kind = str(value.arguments[0])
    if kind not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "b1"):
        raise ValueError(f"its numbers are of type {kind[:20]!r}")
    order = value.state[1] if isinstance(value.state, tuple) else "<"
    dtype: np.dtype[Any] = np.dtype(kind).newbyteorder(">" if order == ">" else "<")
    return dtype


def _check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise ExportError(
            f"{source} holds NaN or infinite values in {len(bad)} of {len(tensors)} tensors "
            f"({', '.join(bad[:LISTED])}): the training diverged or the file is damaged; take an earlier checkpoint"
        )
