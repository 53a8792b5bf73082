"""Pickles read without running them: every opcode is interpreted here, nothing is imported and nothing is called.

Python's unpickler calls what a pickle names, which is how a checkpoint can run code. Here a call becomes a `Call`, a
record of what would have been called with what; the few that make weights are understood by `weights.py`. So no list of
forbidden names has to be complete. Names that have no place in a checkpoint are refused all the same, with the name,
since whoever wrote them meant harm.

Source: CPython's Lib/pickletools.py, whose `genops` splits a pickle into opcodes, and Lib/pickle.py for their meaning.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from edge_mrcnn.errors import ExportError
from edge_mrcnn.training.foreign.records import Call, External, Global, make_global

MAX_OPCODES = 5_000_000
"""A checkpoint of the largest models has some ten thousand; one that logs every step of a training, a million."""


class _Bounded:
    """A file that is not asked for more than it holds: a damaged length would otherwise ask for as much memory."""

    def __init__(self, file: BinaryIO) -> None:
        start = file.tell()
        self._size = file.seek(0, io.SEEK_END)
        file.seek(start)
        self._file = file
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        if count > self._size:
            raise ValueError(f"a part of {count} bytes in a file of {self._size}")
        return self._file.read(count)


@dataclass
class _Machine:
    """What the opcodes work on."""

    source: str
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def since_mark(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items


def read_pickle(file: BinaryIO, source: str) -> object:
    """Read one pickle; afterwards the file stands behind it.

    Args:
        file: Open at the pickle's first byte.
        source: Path, for messages.

    Returns:
        Numbers, texts, bytes, lists, tuples and dictionaries (also for `OrderedDict`) as they are; anything else as
        `Global`, `Call` and `External`.

    Raises:
        ExportError: The pickle is truncated, damaged or too large, or names what no checkpoint has.
    """
    machine = _Machine(source)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(_Bounded(file))):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                (result,) = machine.stack
                return result
            if count > MAX_OPCODES:
                raise ExportError(f"{source} is a pickle of more than {MAX_OPCODES} steps: it is no checkpoint")
            _step(machine, opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{source} is truncated or damaged, or is no checkpoint: its pickle cannot be read ({reason}). "
            "Copy or download it again"
        ) from error
    raise ExportError(f"{source} is truncated: its pickle has no end. Copy or download it again")


def _step(machine: _Machine, name: str, argument: Any) -> None:
    if name in _CONSTANTS:
        machine.stack.append(_CONSTANTS[name])
    elif name in _LITERALS:
        machine.stack.append(argument)
    elif name in _ACTIONS:
        _ACTIONS[name](machine, argument)
    elif name not in _IGNORED:
        raise ExportError(f"{machine.source} has the pickle opcode {name}, which no checkpoint has; nothing was run")


# ------------------------------------------------------------------------------------------------------------ opcodes
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)

_IGNORED = frozenset({"PROTO", "FRAME"})

_PLAIN_KEYS = (str, bytes, int, float, type(None))


def _mark(machine: _Machine, _: Any) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine, _: Any) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _drop(machine: _Machine, _: Any) -> None:
    machine.since_mark()


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def act(machine: _Machine, _: Any) -> None:
        if len(machine.stack) < count:
            raise ValueError("a tuple of more items than there are")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return act


def _collect(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    def act(machine: _Machine, _: Any) -> None:
        items = machine.since_mark()
        machine.stack.append(make(items))

    return act


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(key: Any) -> Hashable:
    """A dictionary's key. Others than plain ones, which could be nested deep enough to end the process, give way."""
    parts = key if isinstance(key, tuple) else (key,)
    return key if all(isinstance(part, _PLAIN_KEYS) for part in parts) else id(key)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine.stack[-1], {_key(key): value})


def _set_items(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    _update(machine.stack[-1], _pairs(items))


def _update(target: Any, items: dict[Any, Any]) -> None:
    if isinstance(target, dict):
        target.update(items)
    elif not isinstance(target, Call):  # what a class of its own makes of its items is left out
        raise ValueError("items for what is no dictionary")


def _append(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    _extend(machine.stack[-1], [value])


def _appends(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    _extend(machine.stack[-1], items)


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    elif not isinstance(target, Call):
        raise ValueError("items for what is no list")


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[int(index)] = machine.stack[-1]


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: _Machine, index: Any) -> None:
    machine.stack.append(machine.memo[int(index)])


def _global(machine: _Machine, argument: Any) -> None:
    module, _, name = str(argument).partition(" ")
    machine.stack.append(make_global(module, name, machine.source))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise ValueError("a class whose name is no text")
    machine.stack.append(make_global(module, name, machine.source))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(_call(function, arguments))


def _call(function: Any, arguments: Any) -> Any:
    """A record of a call; of the calls that make plain data, the data."""
    if function == Global("collections", "OrderedDict"):
        return _ordered_dict(arguments)
    if function == Global("_codecs", "encode") and isinstance(arguments, tuple) and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")  # how protocols below 3 write bytes
    if function == Global("builtins", "bytes") and arguments == ():
        return b""
    return Call(function, arguments)


def _ordered_dict(arguments: Any) -> dict[Any, Any]:
    if arguments == ():
        return {}
    (items,) = arguments
    return {_key(key): value for key, value in items}


def _new_object_with_keywords(machine: _Machine, _: Any) -> None:
    machine.stack.pop()
    _reduce(machine, _)


def _instance(machine: _Machine, argument: Any) -> None:
    arguments = tuple(machine.since_mark())
    _global(machine, argument)
    machine.stack[-1] = Call(machine.stack[-1], arguments)


def _object(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.since_mark()
    machine.stack.append(Call(function, tuple(arguments)))


def _build(machine: _Machine, _: Any) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], Call):
        machine.stack[-1].state = state


def _external(machine: _Machine, argument: Any) -> None:
    machine.stack.append(External(argument))


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _drop,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _collect(tuple),
    "LIST": _collect(list),
    "DICT": _collect(_pairs),
    "FROZENSET": _collect(lambda items: frozenset(map(_key, items))),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(Call(Global("builtins", "set"), ())),
    "ADDITEMS": _drop,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "APPEND": _append,
    "APPENDS": _appends,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_object_with_keywords,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": _build,
    "PERSID": _external,
    "BINPERSID": lambda machine, _: _external(machine, machine.stack.pop()),
}
