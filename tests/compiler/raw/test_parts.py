"""What the reading of a raw file is made of, on graphs of a few nodes: values of shapes, layers moved, the survey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
import pytest

from edge_mrcnn.compiler.raw.regions import Regions, simplify
from edge_mrcnn.compiler.raw.survey import MismatchError, Survey, sure
from edge_mrcnn.compiler.raw.transplant import Transplant
from edge_mrcnn.compiler.raw.writer import Writer
from edge_mrcnn.errors import ExportError

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


class Old:
    """A graph of an old opset, written node by node."""

    def __init__(self, shape: tuple[int, ...] = (1, 3, 8, 12)) -> None:
        self.x = gs.Variable("x", np.float32, list(shape))
        self.graph = gs.Graph(inputs=[self.x], opset=11)

    def add(self, op: str, *inputs: Any, **attributes: Any) -> gs.Variable:
        name = f"t{len(self.graph.nodes)}"
        given = [
            each if isinstance(each, gs.Tensor) else gs.Constant(f"{name}_{place}", np.asarray(each))
            for place, each in enumerate(inputs)
        ]
        output = gs.Variable(name, np.float32)
        self.graph.nodes.append(gs.Node(op, name, attributes, given, [output]))
        return output

    def move(self, end: gs.Tensor, canvas: tuple[int, ...] | None = None) -> tuple[Transplant, gs.Tensor]:
        """Write everything up to `end` into a new graph, whose pictures may be of another size."""
        self.graph.outputs = [end]
        simplify(self.graph)
        transplant = Transplant(Regions(self.graph), Writer())
        new = gs.Variable("picture", np.float32)
        transplant.begin(self.x, new, (self.x.shape, canvas or self.x.shape))
        (moved,) = transplant.copy([end], "part")
        return transplant, moved

    def run(self, value: Any) -> Any:
        return run(self.graph, {"x": value})


def run(graph: gs.Graph, feeds: dict[str, Any]) -> Any:
    model = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = 9
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def run_new(transplant: Transplant, end: gs.Tensor, value: Any) -> Any:
    graph = transplant.writer.graph
    picture = gs.Variable("picture", np.float32, list(value.shape))
    for node in graph.nodes:
        for place, tensor in enumerate(node.inputs):
            if tensor.name == "picture":
                node.inputs[place] = picture
    graph.inputs, graph.outputs = [picture], [end]
    end.shape = None
    return run(graph, {"picture": value})


# -------------------------------------------------------------------------------------------------------------- values
def test_a_value_that_follows_from_a_shape() -> None:
    old = Old(("N", "C", "H", "W"))
    half = old.add("Div", old.add("Gather", old.add("Shape", old.x), np.int64(3)), np.int64(2))
    pixel = old.add("ReduceMax", old.x, keepdims=0)
    regions = Regions(old.graph)
    assert regions.value(half) is None
    regions.assume(old.x, [1, 3, 8, 12])
    assert regions.number(half) == 6
    assert regions.value(pixel) is None
    regions.forget()
    assert regions.value(old.x) is None


def test_identities_and_constants_are_seen_through() -> None:
    old = Old()
    nothing = gs.Variable("nothing")
    old.graph.nodes.append(gs.Node("Identity", "i", {}, [old.x], [nothing]))
    two = gs.Variable("two", np.float32)
    old.graph.nodes.append(gs.Node("Constant", "c", {"value_float": 2.0}, [], [two]))
    end = old.add("Mul", nothing, two)
    old.graph.outputs = [end]
    simplify(old.graph)
    (node,) = old.graph.nodes
    assert node.inputs[0] is old.x
    assert Regions(old.graph).number(node.inputs[1]) == 2


# -------------------------------------------------------------------------------------------------------------- layers
def norm_plain(old: Old, x: gs.Tensor) -> gs.Tensor:
    return old.add("BatchNormalization", x, weights(4), weights(4), weights(4), np.abs(weights(4)) + 0.5)


def norm_frozen(old: Old, x: gs.Tensor) -> gs.Tensor:
    """As torchvision's frozen batch norms are traced."""
    return old.add("Add", old.add("Mul", x, weights(1, 4, 1, 1)), weights(1, 4, 1, 1))


@pytest.mark.parametrize("norm", [norm_plain, norm_frozen])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_norms_become_weights(op: str, norm: Any) -> None:
    old = Old()
    shape = (4, 3, 3, 3) if op == "Conv" else (3, 4, 3, 3)
    end = old.add("Relu", norm(old, old.add(op, old.x, weights(*shape), weights(4), kernel_shape=[3, 3])))
    transplant, moved = old.move(end)
    assert [node.op for node in transplant.writer.graph.nodes] == [op, "Relu"]
    picture = weights(1, 3, 8, 12)
    np.testing.assert_allclose(run_new(transplant, moved, picture), old.run(picture), atol=1e-4)


def test_a_norm_of_a_tensor_that_others_read_stays_or_is_refused() -> None:
    old = Old()
    x = old.add("Conv", old.x, weights(4, 3, 1, 1), kernel_shape=[1, 1])
    end = old.add("Add", norm_frozen(old, x), x)
    transplant, moved = old.move(end)
    assert [node.op for node in transplant.writer.graph.nodes] == ["Conv", "Mul", "Add", "Add"]
    picture = weights(1, 3, 8, 12)
    np.testing.assert_allclose(run_new(transplant, moved, picture), old.run(picture), atol=1e-4)
    old = Old()
    x = old.add("Conv", old.x, weights(4, 3, 1, 1), kernel_shape=[1, 1])
    with pytest.raises(MismatchError, match="directly behind a convolution"):
        old.move(old.add("Add", norm_plain(old, x), x))


def test_sizes_of_one_picture_become_those_of_any_batch() -> None:
    old = Old()
    small = old.add("MaxPool", old.x, kernel_shape=[2, 2], strides=[2, 2])
    size = old.add("Concat", old.add("Shape", old.x), axis=0)
    end = old.add("Resize", small, np.zeros(0, np.float32), np.zeros(0, np.float32), size, mode="nearest")
    transplant, moved = old.move(end, canvas=(1, 3, 16, 20))
    assert transplant.writer.shapes[id(moved)] == ((1, 3, 8, 12), (1, 3, 16, 20))
    pictures = weights(2, 3, 16, 20)
    blocks = pictures.reshape(2, 3, 8, 2, 10, 2).max(axis=(3, 5))
    np.testing.assert_array_equal(run_new(transplant, moved, pictures), blocks.repeat(2, 2).repeat(2, 3))


def test_a_row_of_each_roi_whatever_their_number() -> None:
    old = Old((7, 3, 2, 2))
    product = old.add("MatMul", old.add("Reshape", old.x, np.array([7, 12])), weights(12, 5))
    transplant, moved = old.move(old.add("Add", product, weights(5)))
    assert [node.op for node in transplant.writer.graph.nodes] == ["Reshape", "Gemm"]
    assert run_new(transplant, moved, weights(3, 3, 2, 2)).shape == (3, 5)


@pytest.mark.parametrize(
    ("op", "constant", "attributes"),
    [
        ("NonZero", None, {}),
        ("Reshape", np.array([3, 96]), {}),
        ("ReduceMean", None, {"axes": [0, 2]}),
        ("Resize", (np.zeros(0, np.float32), np.float32([1, 1, 1.5, 1.5])), {}),
    ],
)
def test_what_is_no_layer_is_refused(op: str, constant: Any, attributes: dict[str, Any]) -> None:
    old = Old((7, 3, 8, 12))
    given = () if constant is None else constant if isinstance(constant, tuple) else (constant,)
    with pytest.raises(MismatchError) as error:
        old.move(old.add(op, old.x, *given, **attributes))
    assert error.value.expected
    assert error.value.found


# -------------------------------------------------------------------------------------------------------------- survey
@dataclass
class Found:
    text: str

    def describe(self) -> str:
        return self.text


def test_a_survey_goes_on_behind_what_is_missing() -> None:
    def miss(*known: Any) -> Found:
        raise MismatchError("a wheel", "none")

    def stumble(*known: Any) -> Found:
        raise IndexError("list index out of range")

    survey = Survey()
    body = survey.find("body", lambda: Found("of steel"))
    wheel = survey.find("wheel", miss, body)
    assert survey.find("tyre", lambda _: Found("round"), wheel) is None
    assert survey.find("brake", stumble, body) is None
    assert sure(body).text == "of steel"
    with pytest.raises(ExportError) as error:
        survey.conclude()
    said = str(error.value)
    assert "Not as expected: wheel, brake." in said
    assert "body: of steel" in said
    assert "wheel: DOES NOT MATCH: found none; expected a wheel" in said
    assert "tyre: not examined" in said
    assert "IndexError" in said
