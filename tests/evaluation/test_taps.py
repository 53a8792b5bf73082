"""The network cut at its proposals and boxes computes what the whole one computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import ExportError
from edge_mrcnn.evaluation.taps import CHOOSERS, MASK_LOGITS, TAPS, cut
from tests.compiler.ranges import BUNDLED, bundled_inputs, measured_ranges
from tests.compiler.tiny_model import build_tiny_model, feeds


def run(model: onnx.ModelProto, names: list[str], inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("name", ["tiny", "bundled"])
def test_the_cut_network_computes_what_the_whole_one_does(name: str) -> None:
    model = build_tiny_model(batch=1) if name == "tiny" else onnx.load(BUNDLED)
    inputs = feeds() if name == "tiny" else bundled_inputs(1)[0]
    chosen = {node.op_type: node.output for node in model.graph.node if node.op_type in CHOOSERS}
    boxes = [chosen["RpnProposals"][0], chosen["DetectionNms"][1]]
    shortened, taps = cut(model)
    names = [tensor for tensors in taps.values() for tensor in tensors]
    whole = run(model, [*boxes, *names], inputs)
    given = {"proposals_given": whole[boxes[0]], "boxes_given": whole[boxes[1]]}
    alone = run(shortened, names, {**inputs, **given})
    for tensor in names:
        np.testing.assert_allclose(alone[tensor], whole[tensor], rtol=1e-4, atol=1e-4, err_msg=tensor)


def test_the_taps_are_what_the_custom_ops_read_and_the_mask_logits() -> None:
    _, taps = cut(onnx.load(BUNDLED))
    assert set(taps) == {*TAPS.values(), MASK_LOGITS}
    assert taps[MASK_LOGITS] == ("mask_logits",)
    assert len(taps["features"]) == 4
    assert [len(taps[tap]) for tap in ("rpn logits", "rpn deltas")] == [5, 5]


def test_a_network_without_the_ops_is_refused() -> None:
    model = build_tiny_model()
    keep = [node for node in model.graph.node if node.op_type != "DetectionNms"]
    del model.graph.node[:]
    model.graph.node.extend(keep)
    with pytest.raises(ExportError, match="no box deltas, class logits"):
        cut(model)


def test_taps_hold_in_what_passes_make_of_the_network() -> None:
    """In dialect ort the poolings are other nodes, the features are codes, and the mask logits are moved last."""
    model = onnx.load(BUNDLED)
    _, exported = cut(model)
    inputs = bundled_inputs(1)
    changed = run_passes(model, Recipe("int8", measured_ranges(model, inputs), dialect="ort"))
    shortened, taps = cut(changed, exported)
    assert {tap: len(names) for tap, names in taps.items()} == {tap: len(names) for tap, names in exported.items()}
    boxes = np.array([[[10, 10, 90, 90], [100, 50, 300, 200]]], np.float32)
    given = {**inputs[0], "proposals_given": boxes, "boxes_given": boxes}
    found = run(shortened, [names[0] for names in taps.values()], given)
    plain = run(cut(model)[0], [names[0] for names in exported.values()], given)
    for tap in exported:
        mine, its = plain[exported[tap][0]], found[taps[tap][0]]
        assert mine.shape == its.shape
        assert np.square(mine - its).mean() < 0.05 * mine.var(), tap
