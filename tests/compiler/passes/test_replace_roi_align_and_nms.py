"""The pass alone: what a raw graph has become once its regions are replaced."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_graphsurgeon as gs
import pytest

from edge_mrcnn.compiler.contract import check_node, custom_nodes
from edge_mrcnn.compiler.passes import replace_roi_align_and_nms
from edge_mrcnn.compiler.raw import describe_model
from edge_mrcnn.compiler.raw.reading import Reader
from edge_mrcnn.import_options import ImportOptions
from tests.compiler.raw.seeded_weights import load

FIXTURES = Path(__file__).parents[1] / "raw" / "fixtures"
DETECTIONS = ["num_detections", "boxes", "scores", "labels"]


@pytest.mark.parametrize(
    ("fixture", "heads"),
    [
        ("torch2.15_boxes_17", []),
        ("torch2.15_mask_11", ["mask_logits"]),
        ("torch2.15_keypoint_11", ["keypoint_maps"]),
    ],
)
def test_three_ops_stand_between_layers(fixture: str, heads: list[str]) -> None:
    graph = gs.import_onnx(load(FIXTURES / f"{fixture}.onnx.xz"))
    old = list(graph.nodes)  # kept alive, so that no new node gets the id of an old one
    reading = Reader(graph, (96, 128)).read()
    spec = describe_model(reading, ImportOptions(detections=30, proposals=40, score_threshold=0.5))
    replace_roi_align_and_nms(graph, spec, reading=reading)
    assert not {id(node) for node in old} & {id(node) for node in graph.nodes}
    ops = Counter(node.op for node in graph.nodes)
    assert (ops["RpnProposals"], ops["PyramidRoiAlign"], ops["DetectionNms"]) == (1, 1 + len(heads), 1)
    assert not {"RoiAlign", "NonMaxSuppression", "If", "Loop", "NonZero", "TopK"} & set(ops)
    for node, op in custom_nodes(graph):
        check_node(node, op)
    assert [(tensor.name, tensor.shape) for tensor in graph.inputs] == [
        ("images", ["batch", 96, 128, 3]),
        ("image_hw", ["batch", 2]),
    ]
    assert [tensor.name for tensor in graph.outputs] == [*DETECTIONS, *heads]
    attributes = {node.op: node.attrs for node in graph.nodes}
    assert attributes["RpnProposals"]["post_nms_top_n"] == 40
    assert attributes["DetectionNms"]["detections_per_image"] == 30
    assert attributes["DetectionNms"]["score_threshold"] == 0.5
