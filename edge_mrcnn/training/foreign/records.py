"""What a pickle says, as records: names that were not imported, calls that were not made, parts that lie elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from edge_mrcnn.errors import ExportError

SHOWN = 80
"""Characters of a name in a message: a damaged one may be long."""

HARMLESS_MODULES = {
    *("addict", "argparse", "collections", "datetime", "detectron2", "fvcore", "iopath", "mmcv", "mmdet", "mmengine"),
    *("numpy", "omegaconf", "pathlib", "torch", "yacs"),
}
"""First part of the modules that checkpoints name: in the weights, or in settings and logs beside them."""

HARMLESS_BUILTINS = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "object"),
    *("range", "set", "slice", "str", "tuple"),
}
"""`getattr` is how protocol 2 writes a method."""

HARMLESS_NAMES = {"_codecs": {"encode"}, "copyreg": {"_reconstructor"}, "builtins": HARMLESS_BUILTINS}
"""Names of other modules that checkpoints have."""

_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names; it was not imported.

    Attributes:
        module: Such as `collections`.
        name: Such as `OrderedDict`.
    """

    module: str
    name: str

    def __str__(self) -> str:
        """The name with its module."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """A call that a pickle asks for; it was not made.

    Attributes:
        function: What would have been called: a `Global`, or whatever else the pickle puts there.
        arguments: What with.
        state: What the result's state would have been set to.
    """

    function: object
    arguments: object
    state: object = None


@dataclass(frozen=True)
class External:
    """A reference to something beside the pickle, such as a tensor's numbers.

    Attributes:
        key: How the pickle calls it.
    """

    key: object


def make_global(module: str, name: str, source: str) -> Global:
    """A record of a name, if checkpoints have such names.

    Args:
        module: As the pickle says it; Python 2's modules get their new names.
        name: Within the module.
        source: Path, for messages.

    Raises:
        ExportError: They have not: whoever wrote it meant harm, or it is no checkpoint.
    """
    module = _PYTHON_2_MODULES.get(module, module)
    if module.partition(".")[0] in HARMLESS_MODULES or name in HARMLESS_NAMES.get(module, ()):
        return Global(module, name)
    shown = ascii(f"{module}.{name}")[1:-1][:SHOWN]
    raise ExportError(
        f"{source} asks to load {shown}, which has no place among weights: nothing of it was run. Take the checkpoint "
        "from a source that you trust, or save the state dict alone in the program that made it"
    )
