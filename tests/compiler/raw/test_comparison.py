"""The comparison that the tests of raw imports rest on sees what it is there to see."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.compiler.raw import seeded_weights
from tests.compiler.raw.parity import PIXELS, Found, Score
from tests.compiler.raw.renaming import rename, shuffle


def forty(*, masks: bool = True) -> Found:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corners, corners + random.uniform(10, 50, (40, 2))], axis=1).astype(np.float32)
    found = Found(boxes, random.integers(1, 4, 40), random.uniform(0.1, 0.9, 40).astype(np.float32))
    found.masks = random.uniform(size=(40, 32, 32)) > 0.5 if masks else None
    found.keypoints = None if masks else random.uniform(0, 60, (40, 3, 2)).astype(np.float32)
    return found


def check(want: Found, got: Found) -> None:
    score = Score()
    score.add(want, got)
    score.check(PIXELS if want.masks is not None else None, want.keypoints is not None)


def replaced(found: Found, **fields: object) -> Found:
    return dataclasses.replace(found, **fields)


SPOILT: dict[str, Callable[[Found], Found]] = {
    "a box": lambda x: replaced(x, boxes=x.boxes + np.eye(40, 4, dtype=np.float32)),
    "a score": lambda x: replaced(x, scores=x.scores + np.eye(40, dtype=np.float32)[3] * 0.01),
    "a label": lambda x: replaced(x, labels=x.labels % 3 + 1),
    "one less": lambda x: Found(x.boxes[1:], x.labels[1:], x.scores[1:], x.masks[1:]),
    "one twice": lambda x: Found(*(np.concatenate([a, a[:1]]) for a in (x.boxes, x.labels, x.scores, x.masks))),
    "masks": lambda x: replaced(x, masks=np.roll(x.masks, 1, axis=2)),
}


def test_the_same_is_the_same() -> None:
    check(forty(), forty())
    check(forty(masks=False), forty(masks=False))


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_spoilt_is_seen(name: str) -> None:
    with pytest.raises(AssertionError):
        check(forty(), SPOILT[name](forty()))


def test_keypoints_that_moved_are_seen() -> None:
    got = forty(masks=False)
    with pytest.raises(AssertionError):
        check(forty(masks=False), replaced(got, keypoints=got.keypoints + 0.6))


def branched() -> onnx.ModelProto:
    """A weight, a choice whose branches read from outside, and nodes that may stand in any order."""
    value = helper.make_tensor_value_info
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["a", "w"], [f"{name}_out"])], name, [], [value(f"{name}_out", 1, None)]
        )
        for name, op in (("then_branch", "Add"), ("else_branch", "Mul"))
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["x"], ["b"]),
        helper.make_node("If", ["choice"], ["c"], **branches),
        helper.make_node("Sub", ["b", "c"], ["y"]),
    ]
    weight = numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    graph = helper.make_graph(
        nodes, "main", [value("x", 1, [3]), value("choice", 9, [])], [value("y", 1, [3])], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("choice", [True, False])
def test_a_renamed_and_shuffled_copy_computes_the_same(choice: bool) -> None:
    model = branched()
    x = np.array([-1, 2, 3], np.float32)
    expected = seeded_weights.open_session(model).run(None, {"x": x, "choice": np.array(choice)})
    copy = shuffle(rename(model))
    assert not {name for node in copy.graph.node for name in node.output} & {"a", "b", "c", "y"}
    names = [value.name for value in copy.graph.input]
    found = seeded_weights.open_session(copy).run(None, dict(zip(names, (x, np.array(choice)), strict=True)))
    assert np.array_equal(found[0], expected[0])
