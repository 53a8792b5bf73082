"""`export_model`: what is in the file, that it runs, and what is said and left behind when it cannot be made."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d

from edge_mrcnn.compiler.function_attachment import read_attributes
from edge_mrcnn.compiler.model_file import write_model
from edge_mrcnn.errors import EdgeMrcnnError, ExportError
from edge_mrcnn.ops import DOMAIN, OPS, PLUGIN_ATTRIBUTES
from edge_mrcnn.spec import METADATA_KEY, ModelSpec
from edge_mrcnn.training import export
from edge_mrcnn.training.checkpoint import save_checkpoint
from edge_mrcnn.training.export import ExportOptions, export_model, trace_model
from edge_mrcnn.training.exportable import Exportable
from edge_mrcnn.training.zoo import build_model
from tests.training.random_models import Reference, letterboxed

pytestmark = pytest.mark.torch

NAME = "maskrcnn_edge"
CANVAS = (64, 96)
NAMES = ("__background__", "cup", "fork")
ROLES = {"rpn_proposals", "box_roi_align", "detection_nms", "mask_roi_align"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "cups.pt"
    save_checkpoint(path, build_model(NAME, 3), model_name=NAME, class_names=NAMES, size=CANVAS)
    return path


@pytest.fixture(scope="module")
def options(checkpoint: Path) -> ExportOptions:
    return ExportOptions(weights=str(checkpoint), score_threshold=0.0, detections=7, proposals=20)


@pytest.fixture(scope="module")
def exported(options: ExportOptions, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSpec]:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return path, export_model(NAME, options, path)


@pytest.fixture(scope="module")
def proto(exported: tuple[Path, ModelSpec]) -> onnx.ModelProto:
    return onnx.load(exported[0])


@pytest.fixture(scope="module")
def session(exported: tuple[Path, ModelSpec]) -> onnxruntime.InferenceSession:
    return open_session(str(exported[0]))


def open_session(model: str | bytes) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


# ----------------------------------------------------------------------------------------------------------- the file
def test_the_spec_travels_in_the_metadata(exported: tuple[Path, ModelSpec], proto: onnx.ModelProto) -> None:
    _, spec = exported
    found = ModelSpec.from_metadata({prop.key: prop.value for prop in proto.metadata_props})
    assert found == spec
    assert spec.class_names == NAMES
    assert (spec.name, spec.input_hw, spec.proposals, spec.detections, spec.mask_size) == (NAME, CANVAS, 20, 7, 28)
    assert spec.score_threshold == 0.0
    assert set(spec.ops) == ROLES


def test_every_custom_node_carries_the_attributes_of_its_contract(
    exported: tuple[Path, ModelSpec], proto: onnx.ModelProto
) -> None:
    nodes = {node.name: node for node in proto.graph.node if node.domain == DOMAIN}
    assert set(nodes) == ROLES
    for role, node in nodes.items():
        attributes = read_attributes(node)
        OPS[node.op_type].check_attributes(attributes)
        assert {name: attributes.pop(name) for name in PLUGIN_ATTRIBUTES} == PLUGIN_ATTRIBUTES
        assert set(attributes) == set(exported[1].ops[role])
        for name, value in exported[1].ops[role].items():
            assert attributes[name] == (pytest.approx(value) if not isinstance(value, str) else value), name
    assert {function.name for function in proto.functions} == set(OPS)
    assert {function.domain for function in proto.functions} == {DOMAIN}


def test_attributes_come_from_the_modules(exported: tuple[Path, ModelSpec]) -> None:
    model, ops = build_model(NAME, 3), exported[1].ops
    generator = model.rpn.anchor_generator
    assert ops["rpn_proposals"]["cell_anchors"] == torch.cat(generator.cell_anchors).flatten().tolist()
    assert ops["rpn_proposals"]["strides"] == [4, 8, 16, 32, 64]
    assert ops["rpn_proposals"]["pre_nms_top_n"] == model.rpn._pre_nms_top_n["testing"]
    assert ops["box_roi_align"]["strides"] == [4, 8, 16, 32]
    assert (ops["box_roi_align"]["output_size"], ops["mask_roi_align"]["output_size"]) == (7, 14)
    assert ops["detection_nms"]["box_weights"] == [10.0, 10.0, 5.0, 5.0]


def test_inputs_and_outputs_are_as_documented(proto: onnx.ModelProto) -> None:
    def describe(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]

    uint8, float32, int32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    assert [describe(value) for value in proto.graph.input] == [
        ("images", uint8, ["batch", *CANVAS, 3]),
        ("image_hw", float32, ["batch", 2]),
    ]
    assert [describe(value) for value in proto.graph.output] == [
        ("num_detections", int32, ["batch"]),
        ("boxes", float32, ["batch", "detections", 4]),
        ("scores", float32, ["batch", "detections"]),
        ("labels", int32, ["batch", "detections"]),
        ("masks", float32, ["batch", "detections", 28, 28]),
    ]


def test_nothing_of_this_machine_is_left(exported: tuple[Path, ModelSpec], proto: onnx.ModelProto) -> None:
    content = exported[0].read_bytes()
    for trace in (os.getcwd(), sys.prefix, str(Path.home()), "stack_trace", ".py", "torch.nn", "pkg."):
        assert trace.encode() not in content, trace
    assert [prop.key for prop in proto.metadata_props] == [METADATA_KEY]


def test_the_graph_is_plain(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    assert not {"BatchNormalization", "If", "Loop", "NonZero"} & {node.op_type for node in graph.node}
    assert all(node.name for node in graph.node)
    assert len({node.name for node in graph.node}) == len(graph.node)
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer)
    assert "rpn_head.cls_logits" in {node.name for node in graph.node}
    cast = next(node for node in graph.node if "images" in node.input)
    assert cast.op_type == "Cast"  # TensorRT cannot transpose bytes


def test_every_tensor_between_nodes_has_a_type(proto: onnx.ModelProto) -> None:
    typed = {value.name for value in [*proto.graph.value_info, *proto.graph.output]}
    appended = {name for name in (n for node in proto.graph.node for n in node.output) if name.startswith("masks.")}
    missing = {name for node in proto.graph.node for name in node.output} - typed - appended
    assert not missing


# --------------------------------------------------------------------------------------------------------- that it runs
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_any_batch_runs_and_pictures_do_not_mix(session: onnxruntime.InferenceSession, batch: int) -> None:
    images, image_hw = letterboxed(CANVAS, [(64, 96), (40, 96), (64, 50), (33, 61)][:batch], seed=3)
    together = session.run(None, {"images": images, "image_hw": image_hw})
    assert [output.shape[0] for output in together] == [batch] * 5
    assert together[0].dtype == together[3].dtype == np.int32
    alone = session.run(None, {"images": images[-1:], "image_hw": image_hw[-1:]})
    count = alone[0][0]
    assert together[0][-1] == count > 0
    for whole, single in zip(together[1:], alone[1:], strict=True):
        np.testing.assert_allclose(whole[-1][:count], single[0][:count], atol=1e-3)
        assert not whole[-1][count:].any()


def test_the_padding_is_not_seen(session: onnxruntime.InferenceSession) -> None:
    images, image_hw = letterboxed(CANVAS, [(40, 64)], seed=5)
    usual = session.run(None, {"images": images, "image_hw": image_hw})
    images[:, 40:], images[:, :, 64:] = 255, 0
    for want, got in zip(usual, session.run(None, {"images": images, "image_hw": image_hw}), strict=True):
        np.testing.assert_array_equal(want, got)
    assert (usual[1][0, :, 2:] <= (64, 40)).all()


def test_no_detections_give_one_row_of_zeros(checkpoint: Path, tmp_path: Path) -> None:
    settings = ExportOptions(weights=str(checkpoint), score_threshold=0.999)
    export_model(NAME, settings, tmp_path / "model.onnx")
    images, image_hw = letterboxed(CANVAS, [CANVAS], seed=1)
    outputs = open_session(str(tmp_path / "model.onnx")).run(None, {"images": images, "image_hw": image_hw})
    assert outputs[0].tolist() == [0]
    assert [output.shape for output in outputs[1:]] == [(1, 1, 4), (1, 1), (1, 1), (1, 1, 28, 28)]
    assert not any(output.any() for output in outputs)


class OneLevel(nn.Sequential):
    """A backbone without a pyramid, as torchvision's documentation shows, with a frozen batch norm."""

    out_channels = 8

    def __init__(self) -> None:
        frozen = FrozenBatchNorm2d(8)
        for buffer in frozen.buffers():
            buffer.uniform_(0.5, 1.5)
        super().__init__(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 4, 1, bias=False), frozen, nn.ReLU())


def one_level_model(**changes: Any) -> MaskRCNN:
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 7, 2),
        "mask_roi_pool": MultiScaleRoIAlign(["0"], 14, 2),
        "rpn_post_nms_top_n_test": 30,
        "box_detections_per_img": 10,
        "box_score_thresh": 0.3,
    }
    return MaskRCNN(OneLevel(), 3, **{**settings, **changes}).eval()


def boxes_and_masks(model: MaskRCNN, images: Any, image_hw: Any) -> list[dict[str, torch.Tensor]]:
    """What torchvision itself finds with a model of one level."""
    for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
        pool.scales, pool.map_levels = [1 / 16], object()
    return Reference(model, images, image_hw).detect()


def test_a_backbone_without_a_pyramid_and_with_frozen_norms() -> None:
    model = one_level_model()
    proto, spec = trace_model(model, "one_level", CANVAS, NAMES)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules()), "the model was changed"
    assert spec.ops["rpn_proposals"]["strides"] == [16]
    images, image_hw = letterboxed(CANVAS, [CANVAS], seed=2)
    (want,) = boxes_and_masks(model, images, image_hw)
    found = open_session(proto.SerializeToString()).run(None, {"images": images, "image_hw": image_hw})
    count = len(want["scores"])
    assert found[0].tolist() == [count]
    assert count > 0
    np.testing.assert_allclose(found[1][0], want["boxes"].numpy(), atol=1e-2)
    np.testing.assert_allclose(found[4][0], want["masks"][:, 0].numpy(), atol=1e-4)


def test_a_network_without_masks_gives_boxes() -> None:
    whole = one_level_model()
    heads = whole.roi_heads
    faster = FasterRCNN(
        OneLevel(),
        3,
        rpn_anchor_generator=whole.rpn.anchor_generator,
        box_roi_pool=heads.box_roi_pool,
        rpn_post_nms_top_n_test=30,
        box_detections_per_img=10,
        box_score_thresh=0.3,
    ).eval()
    faster.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("roi_heads.mask_")})
    proto, spec = trace_model(faster, "boxes", CANVAS, NAMES)
    assert set(spec.ops) == ROLES - {"mask_roi_align"}
    assert (spec.mask_size, spec.keypoint_size, spec.keypoint_names) == (0, 0, ())
    images, image_hw = letterboxed(CANVAS, [CANVAS], seed=2)
    found = open_session(proto.SerializeToString()).run(None, {"images": images, "image_hw": image_hw})
    (want,) = boxes_and_masks(whole, images, image_hw)
    assert [output.shape[0] for output in found] == [1] * 4
    assert found[0].tolist() == [len(want["scores"])]
    np.testing.assert_allclose(found[1][0], want["boxes"].numpy(), atol=1e-2)


def test_the_same_weights_give_the_same_bytes(
    options: ExportOptions, exported: tuple[Path, ModelSpec], tmp_path: Path
) -> None:
    export_model(NAME, options, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported[0].read_bytes()


def test_normalising_is_torchvisions() -> None:
    module = Exportable(build_model(NAME, 3), CANVAS)
    images, image_hw = letterboxed(CANVAS, [(40, 64)], seed=1)
    found = module.normalise(torch.from_numpy(images), torch.from_numpy(image_hw))
    content = torch.from_numpy(images[0, :40, :64]).permute(2, 0, 1).float() / 255
    expected = build_model(NAME, 3).transform.normalize(content)
    torch.testing.assert_close(found[0, :, :40, :64], expected)
    assert not found[:, :, 40:].any()
    assert not found[:, :, :, 64:].any()


# ------------------------------------------------------------------------------------------------- what cannot be made
def test_nan_weights_are_named(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["rpn.head.cls_logits.bias"][0] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    with pytest.raises(EdgeMrcnnError, match=r"rpn\.head\.cls_logits\.bias"):
        export_model(NAME, ExportOptions(weights=str(tmp_path / "nan.pt")), tmp_path / "model.onnx")
    model = build_model(NAME, 3)
    model.load_state_dict(content["model"])
    with pytest.raises(ExportError, match=r"rpn\.head\.cls_logits\.bias"):
        trace_model(model, NAME, CANVAS, NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["nan.pt"]


def test_another_number_of_classes_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeMrcnnError, match="3 classes"):
        export_model(NAME, ExportOptions(weights=str(checkpoint), num_classes=5), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="give 2 names"):
        export_model(NAME, ExportOptions(weights=str(checkpoint), class_names="a,b,c,d"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("output", "message"),
    [("missing/model.onnx", "mkdir -p"), ("", "is a folder"), ("file/model.onnx", "does not exist")],
)
def test_an_impossible_place_is_refused_before_the_work(
    output: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(export, "build_model", lambda *_: pytest.fail("the work had begun"))
    with pytest.raises(ExportError, match=message):
        export_model(NAME, ExportOptions(), tmp_path / output)


@pytest.fixture
def small_model(proto: onnx.ModelProto, exported: tuple[Path, ModelSpec]) -> tuple[onnx.ModelProto, ModelSpec]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy, exported[1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_full_disk_leaves_nothing(
    code: int, small_model: tuple[onnx.ModelProto, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_file: int) -> None:
        raise OSError(code, os.strerror(code))

    output = tmp_path / "model.onnx"
    output.write_bytes(b"older")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ExportError, match=os.strerror(code)):
        write_model(*small_model, output)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert output.read_bytes() == b"older"


def test_a_model_that_does_not_run_is_not_left(small_model: tuple[onnx.ModelProto, ModelSpec], tmp_path: Path) -> None:
    proto, spec = small_model
    del proto.functions[:]
    with pytest.raises(ExportError, match="does not run"):
        write_model(proto, spec, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_gives_no_numbers_is_not_left(
    small_model: tuple[onnx.ModelProto, ModelSpec], tmp_path: Path
) -> None:
    proto, spec = small_model
    (bias,) = [x for x in proto.graph.initializer if x.name == "mask_predictor.mask_fcn_logits.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), bias.name))
    with pytest.raises(ExportError, match="not finite in masks"):
        write_model(proto, spec, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class OwnAnchors(AnchorGenerator):
    pass


class OwnPool(MultiScaleRoIAlign):
    pass


class OwnModel(MaskRCNN):
    def forward(self, images: list[torch.Tensor], targets: Any = None) -> Any:
        return images


def test_unsupported_parts_are_named() -> None:
    anchors = OwnAnchors(((16, 32),), ((0.5, 1.0, 2.0),))
    with pytest.raises(ExportError, match=r"model\.rpn\.anchor_generator is a OwnAnchors.*supported: AnchorGenerator"):
        Exportable(one_level_model(rpn_anchor_generator=anchors), CANVAS)
    with pytest.raises(ExportError, match=r"model\.roi_heads\.mask_roi_pool is a OwnPool"):
        Exportable(one_level_model(mask_roi_pool=OwnPool(["0"], 14, 2)), CANVAS)
    own = one_level_model()
    own.__class__ = OwnModel
    with pytest.raises(ExportError, match=r"model is a OwnModel.*supported: torchvision's MaskRCNN, KeypointRCNN"):
        Exportable(own, CANVAS)
    retina = RetinaNet(OneLevel(), 3, anchor_generator=AnchorGenerator(((16,),), ((1.0,),)))
    with pytest.raises(ExportError, match="model is a RetinaNet, which cannot be exported"):
        Exportable(retina, CANVAS)


def test_masks_for_all_classes_in_one_are_refused() -> None:
    model = one_level_model()
    model.roi_heads.mask_predictor = MaskRCNNPredictor(256, 8, 1)
    with pytest.raises(ExportError, match="gives 1 masks for 3 classes"):
        Exportable(model, CANVAS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_roi_pool": MultiScaleRoIAlign(["none"], 7, 2)}, "box_roi_pool takes the feature maps"),
        ({"mask_roi_pool": MultiScaleRoIAlign(["0"], (14, 7), 2)}, "only square ones"),
        ({"image_mean": [0.5]}, "one for R, G and B"),
    ],
)
def test_unsupported_shapes_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Exportable(one_level_model(**changes), CANVAS)


def test_a_canvas_of_other_sides_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        Exportable(one_level_model(), (50, 96))
