"""Look up paths of attributes in a TensorRT module: `python api_resolve.py MODULE < paths.json > missing.json`.

Runs in a process of its own, because the module's libraries may be stubs that nothing else should meet. What a method
or a property gives is read from the signature that pybind11 writes into its docstring; where that names no class of the
module, the path's remainder counts as there.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from types import ModuleType
from typing import Any

CALL = "()"
RESULTS = {"get_plugin_registry": "IPluginRegistry", "get_error": "ParserError"}
"""What functions give whose signature does not tell."""


class Instance:
    """Some object of a class."""

    def __init__(self, cls: type) -> None:
        self.cls = cls


def missing_step(module: ModuleType, path: list[str]) -> str | None:
    """The first attribute of a path that is not there, with its owner's name; None where all are."""
    here: Any = module
    for step in path:
        if step == CALL:
            here = _result(module, here)
        else:
            owner = here.cls if isinstance(here, Instance) else here
            if not hasattr(owner, step):
                return step if owner is module else f"{getattr(owner, '__name__', owner)}.{step}"
            found = inspect.getattr_static(owner, step) if isinstance(here, Instance) else getattr(owner, step)
            here = _returned(module, found.fget) if isinstance(found, property) else found
        if here is None:
            return None
    return None


def _result(module: ModuleType, called: Any) -> Any:
    return Instance(called) if inspect.isclass(called) else _returned(module, called)


def _returned(module: ModuleType, function: Any) -> Instance | None:
    """An object of the class that a signature says is returned."""
    doc = getattr(function, "__doc__", None) or ""
    match = re.search(r"-> (?:Optional\[)?(?:\w+\.)*(\w+)(?:\]| \| None)?$", doc, re.MULTILINE)
    name = RESULTS.get(getattr(function, "__name__", "")) or (match.group(1) if match else "")
    cls = getattr(module, name, None)
    return Instance(cls) if inspect.isclass(cls) else None


if __name__ == "__main__":
    module = importlib.import_module(sys.argv[1])
    json.dump([missing_step(module, path) for path in json.load(sys.stdin)], sys.stdout)
