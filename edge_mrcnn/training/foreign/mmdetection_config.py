"""The config that mmdetection keeps as Python text in its checkpoints: read as data, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

CONFIG_KEYS = ("config", "cfg")
"""Where `meta` has the text: mmdetection 2 and 3. Source: mmdet/apis/train.py; mmengine runner/runner.py."""

CLASS_KEYS = ("CLASSES", "classes")
"""Source: mmdetection 2 tools/train.py; mmdetection 3 datasets' `metainfo`."""

Config = Mapping[str, Any]


def read_config(extra: Mapping[str, Any]) -> Config:
    """The config in a checkpoint, as plain dictionaries and lists; empty where it keeps none, or one that is no Python.

    Args:
        extra: What the checkpoint holds beside the weights.
    """
    text = _read_meta(extra, CONFIG_KEYS)
    if not isinstance(text, str):
        return {}
    try:
        assigned = [each for each in ast.parse(text).body if isinstance(each, ast.Assign)]
        named = [(each.targets[0], each.value) for each in assigned]
        return {target.id: _evaluate(value) for target, value in named if isinstance(target, ast.Name)}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def read_class_names(extra: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes, without the background, where a checkpoint keeps them."""
    meta = extra.get("meta")
    described = meta.get("dataset_meta") if isinstance(meta, dict) else None
    for where in (described, meta):
        names = next((where[key] for key in CLASS_KEYS if key in where), None) if isinstance(where, dict) else None
        if isinstance(names, str):
            return (names,)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def look_up(config: Any, *path: str) -> Any:
    """A value within nested dictionaries; None where a part of the path is missing."""
    for key in path:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def find_all(config: Any, *kinds: str) -> Iterator[dict[str, Any]]:
    """Every dictionary of one of these types within a config, at any depth."""
    if isinstance(config, dict):
        if config.get("type") in kinds:
            yield config
        for value in config.values():
            yield from find_all(value, *kinds)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from find_all(value, *kinds)


def numbers(value: Any, count: int | None = None) -> tuple[float, ...] | None:
    """A list of numbers, of so many where a count is given; None for anything else."""
    if not isinstance(value, list | tuple) or not value or (count is not None and len(value) != count):
        return None
    plain = all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
    return tuple(float(item) for item in value) if plain else None


def _read_meta(extra: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    meta = extra.get("meta")
    return next((meta[key] for key in keys if key in meta), None) if isinstance(meta, dict) else None


def _evaluate(node: ast.expr) -> Any:
    """The value of an expression of `dict(...)`, lists and literals; None in place of all else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        merged = [_evaluate(argument) for argument in node.args]
        plain = {key: value for each in merged if isinstance(each, dict) for key, value in each.items()}
        return plain | {word.arg: _evaluate(word.value) for word in node.keywords if word.arg is not None}
    if isinstance(node, ast.Dict):
        keys = [_evaluate(key) if key is not None else None for key in node.keys]
        values = [_evaluate(value) for value in node.values]
        return {key: value for key, value in zip(keys, values, strict=True) if isinstance(key, str)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_evaluate(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
