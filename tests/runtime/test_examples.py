"""The examples in the runtime's docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import edge_mrcnn.runtime

MODULES = [item.name for item in pkgutil.walk_packages(edge_mrcnn.runtime.__path__, "edge_mrcnn.runtime.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
