"""The passes together: order, spec, and what must not change."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
import pytest

from edge_mrcnn.compiler.passes import apply_passes, infer_types, passes_of, run_passes
from edge_mrcnn.compiler.recipe import Dialect, Precision, Recipe
from edge_mrcnn.errors import ExportError, PluginError
from edge_mrcnn.spec import METADATA_KEY
from tests.compiler.tiny_model import SPEC, build_tiny_model

FIRST = ["infer_types", "bind_plugins", "fold_constants"]


@pytest.mark.parametrize(
    ("precision", "dialect", "order"),
    [
        ("fp32", "tensorrt", [*FIRST, "remove_function_bodies"]),
        ("fp16", "tensorrt", [*FIRST, "cast_to_fp16", "remove_function_bodies"]),
        ("int8", "tensorrt", [*FIRST, "cast_to_fp16", "insert_qdq", "remove_function_bodies"]),
        ("fp32", "ort", FIRST),
    ],
)
def test_the_order_is_the_designs(precision: Precision, dialect: Dialect, order: list[str]) -> None:
    recipe = Recipe(precision, dialect=dialect)
    assert [change.__name__ for change in passes_of(recipe)] == order
    kept = [name for name in order if name != "remove_function_bodies"]
    assert [change.__name__ for change in passes_of(recipe, keep_bodies=True)] == kept


def test_integers_for_a_cpu_come_after_the_constants_and_keep_the_bodies() -> None:
    names = [change.__name__ for change in passes_of(Recipe("int8", dialect="ort"))]
    assert names[:3] == FIRST
    assert "insert_qdq_ort" in names[3:]
    assert not {"cast_to_fp16", "remove_function_bodies"} & set(names)


def test_float16_is_nothing_for_a_cpu() -> None:
    with pytest.raises(ValueError, match="fp16: ONNX Runtime computes float16 in float32"):
        passes_of(Recipe("fp16", dialect="ort"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_result_is_the_same_each_time_and_the_model_is_left_alone(precision: Precision) -> None:
    model = build_tiny_model()
    before = model.SerializeToString(deterministic=True)
    first, second = (run_passes(model, Recipe(precision)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second, "the engine cache goes by this"
    assert model.SerializeToString(deterministic=True) == before


def test_the_spec_travels_on(tiny: onnx.ModelProto) -> None:
    metadata = {entry.key: entry.value for entry in run_passes(tiny, Recipe("fp16")).metadata_props}
    assert metadata == {METADATA_KEY: SPEC.to_json()}


def test_a_model_without_spec_is_refused(tiny: onnx.ModelProto) -> None:
    tiny.ClearField("metadata_props")
    with pytest.raises(ExportError, match=r"carries no edge_mrcnn spec.*edge-mrcnn export"):
        run_passes(tiny, Recipe("fp32"))


def test_types_that_a_pass_spoils_are_seen_before_tensorrt_sees_them(tiny: onnx.ModelProto) -> None:
    def spoil(graph: gs.Graph, spec: object) -> None:
        node = next(node for node in graph.nodes if node.op == "DetectionNms")
        node.inputs[2].dtype = "int8"

    with pytest.raises(PluginError, match="class_logits: expected float32 or float16, found int8"):
        apply_passes(tiny, [*passes_of(Recipe("fp32")), spoil])


def test_a_graph_that_contradicts_itself_is_refused(tiny: onnx.ModelProto) -> None:
    tiny.graph.node[0].attribute[0].i = onnx.TensorProto.FLOAT16
    with pytest.raises(ExportError, match="contradicts itself"):
        apply_passes(tiny, [infer_types])
