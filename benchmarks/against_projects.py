"""Hold imported checkpoints against detectron2 and mmdetection themselves, on a CPU.

    pip install --no-deps --target projects mmdet==3.3.0 mmengine mmcv-lite fvcore ...   and a checkout of detectron2
    PYTHONPATH=projects:detectron2 python benchmarks/against_projects.py

Neither project is a dependency, and neither needs to be built for this: what they compile of their own is pooling and
suppression, for which torchvision's operators are put in their place (detectron2 calls these itself). Each model is
built from the project's own config with seeded weights; the names and shapes of its state dict are compared with those
of the tests, and its proposals, boxes, scores, classes and masks with those of the tests' restatement. Writes
`benchmarks/results/against_projects.json`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tests.training.foreign import restated, states
from tests.training.foreign.restated_steps import Picture, Settings, Weights
from tests.training.random_models import picture

RESULTS = Path(__file__).parent / "results" / "against_projects.json"

FEW = {"post_nms": 80, "detections": 40}
CLASSES = 6

SURE = 0.052
"""Detections that score less may be lost to a rounding error at the threshold, 0.05."""

DETECTRON2: Mapping[str, tuple[states.Run, Mapping[str, Any], Mapping[str, Any], int]] = {
    "mask_rcnn_R_50_FPN_3x": (restated.detectron2_fpn, {}, {}, 100),
    "mask_rcnn_X_101_32x8d_FPN_3x": (
        restated.detectron2_fpn,
        {"depth": 101, "groups": 32, "width": 8},
        restated.X101_32X8D,
        100,
    ),
    "mask_rcnn_R_50_C4_3x": (restated.detectron2_c4, {"c4": True}, {}, 96),
}
"""Config to the restatement, its architecture and settings, and the picture's height: without a pyramid detectron2 does
not pad."""

MMDETECTION: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "mask-rcnn_r50_fpn_1x_coco": ({}, restated.PYTORCH_STYLE),
    "mask-rcnn_r50-caffe_fpn_1x_coco": ({}, {}),
    "mask-rcnn_x101-32x8d_fpn_1x_coco": ({"depth": 101, "groups": 32, "width": 8}, restated.X101_32X8D),
}

PARTS_OF_OPS = (
    "nms",
    "roi_align",
    "carafe",
    "merge_cells",
    "deform_conv",
    "modulated_deform_conv",
    "point_sample",
    "multi_scale_deform_attn",
    "focal_loss",
)
"""Modules of mmcv.ops that mmdetection imports from."""


def compare_detectron2(name: str) -> dict[str, Any]:
    """Build a model of detectron2's, run it and the restatement, and tell the differences."""
    sys.modules.setdefault("detectron2._C", types.ModuleType("detectron2._C"))
    import detectron2
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    run, architecture, conventions, height = DETECTRON2[name]
    settings, image = Settings(**conventions, **FEW), picture(height, 160, seed=3)
    config = get_cfg()
    config.merge_from_file(str(Path(detectron2.__file__).parents[1] / f"configs/COCO-InstanceSegmentation/{name}.yaml"))
    config.MODEL.DEVICE, config.MODEL.WEIGHTS, config.MODEL.ROI_HEADS.NUM_CLASSES = "cpu", "", CLASSES
    config.MODEL.RPN.POST_NMS_TOPK_TEST = settings.post_nms
    config.TEST.DETECTIONS_PER_IMAGE = settings.detections
    model = build_model(config).eval()
    state = states.seeded_state(states.detectron2_shapes(classes=CLASSES, **architecture), run, settings, image)
    names = load(model, state)
    with torch.no_grad():
        images = model.preprocess_image([{"image": blue_first(image).float()}])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        (found,), _ = model.roi_heads(images, features, proposals, None)
    want = run(Weights(state), image, states.canvas_of(image), settings)
    theirs = restated.Found(
        found.pred_boxes.tensor,
        found.scores,
        found.pred_classes,
        found.pred_masks[:, 0],
        proposals[0].proposal_boxes.tensor,
    )
    return {**names, **differences(want, theirs)}


def compare_mmdetection(name: str) -> dict[str, Any]:
    """Build a model of mmdetection's, run it and the restatement, and tell the differences."""
    replace_compiled_ops()
    import mmdet
    import mmdet.models
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    DefaultScope.get_instance("against_projects", scope_name="mmdet")
    architecture, conventions = MMDETECTION[name]
    settings, image = Settings(**conventions, **FEW), picture(100, 160, seed=3)
    config = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim/configs/mask_rcnn" / f"{name}.py")).model
    config.backbone.init_cfg = None
    config.roi_head.bbox_head.num_classes = config.roi_head.mask_head.num_classes = CLASSES
    config.test_cfg.rpn.max_per_img, config.test_cfg.rcnn.max_per_img = settings.post_nms, settings.detections
    model = MODELS.build(config).eval()
    shapes = states.mmdetection_shapes(classes=CLASSES, **architecture)
    state = states.seeded_state(shapes, restated.mmdetection, settings, image)
    names = load(model, state)
    sample = DetDataSample()
    size = image.shape[:2]
    sample.set_metainfo({"img_shape": size, "ori_shape": size, "pad_shape": size, "scale_factor": (1.0, 1.0)})
    with torch.no_grad():
        batch = model.data_preprocessor({"inputs": [blue_first(image)], "data_samples": [sample]}, False)
        features = model.extract_feat(batch["inputs"])
        proposals = model.rpn_head.predict(features, batch["data_samples"], rescale=False)
        described = [each.metainfo for each in batch["data_samples"]]
        head = model.roi_head
        (found,) = head.predict_bbox(features, described, proposals, head.test_cfg, rescale=False)
        regions = torch.cat([torch.zeros(len(found.bboxes), 1), found.bboxes], 1)
        masks = head._mask_forward(features, regions)["mask_preds"][range(len(found.labels)), found.labels].sigmoid()
    want = restated.mmdetection(Weights(state), image, states.canvas_of(image), settings)
    theirs = restated.Found(found.bboxes, found.scores, found.labels, masks, proposals[0].bboxes)
    return {**names, **differences(want, theirs)}


def blue_first(image: Picture) -> Tensor:
    """A picture as both projects read it from a file, `(3, h, w)` uint8 blue, green, red."""
    return torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)


def load(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Load the tests' state dict into a project's model; what it has more or less, and other shapes."""
    own = model.state_dict()
    model.load_state_dict(state, strict=False)
    return {
        "tensors": len(state),
        "missing": sorted(name for name in set(own) - set(state) if "anchor_generator" not in name),
        "unexpected": sorted(set(state) - set(own)),
        "misshapen": sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape),
    }


def differences(want: restated.Found, found: restated.Found) -> dict[str, Any]:
    """The largest differences of proposals and of detections, both best first, of all that are sure."""
    count = int((want.scores >= SURE).sum())
    if count != int((found.scores >= SURE).sum()) or not torch.equal(want.classes[:count], found.classes[:count]):
        return {"detections": len(found.scores), "restated": len(want.scores), "agree": False}
    pairs = ((name, getattr(want, name)[:count], getattr(found, name)[:count]) for name in ("boxes", "scores", "masks"))
    largest = {name: float((one - other).abs().max()) for name, one, other in pairs}
    largest["proposals"] = float((want.proposals - found.proposals).abs().max())
    return {"compared": count, "agree": True, "largest_difference": largest}


def replace_compiled_ops() -> None:
    """Put torchvision's RoIAlign and NMS in the place of mmcv's, where mmcv is the one without compiled operators."""
    import mmcv

    if "mmcv.ops" in sys.modules or importlib.util.find_spec("mmcv._ext"):
        return

    class RoIAlign(nn.Module):
        """mmcv's, by its option `use_torchvision`."""

        def __init__(self, output_size: int, spatial_scale: float, sampling_ratio: int, aligned: bool = True) -> None:
            super().__init__()
            self.output_size, self.arguments = (output_size, output_size), (spatial_scale, sampling_ratio, aligned)

        def forward(self, x: Tensor, rois: Tensor) -> Tensor:
            return torchvision.ops.roi_align(x, rois, self.output_size, *self.arguments)

    def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, config: Any, **_: Any) -> tuple[Tensor, Tensor]:
        kept = torchvision.ops.batched_nms(boxes, scores, groups, config["iou_threshold"])
        return torch.cat([boxes[kept], scores[kept, None]], 1), kept

    def fill(module: Any) -> Any:
        module.__getattr__, module.RoIAlign, module.batched_nms = absent, RoIAlign, batched_nms
        sys.modules[module.__name__] = module
        return module

    def absent(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})

    mmcv.ops = fill(types.ModuleType("mmcv.ops"))
    mmcv.ops.__path__ = []
    for name in PARTS_OF_OPS:
        setattr(mmcv.ops, name, fill(types.ModuleType(f"mmcv.ops.{name}")))


def main() -> None:
    """Run the comparisons asked for, by default all, and add them to what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {**dict.fromkeys(DETECTRON2, compare_detectron2), **dict.fromkeys(MMDETECTION, compare_mmdetection)}
    parser.add_argument("--models", nargs="+", choices=tuple(names), default=tuple(names))
    torch.set_num_threads(2)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    for name in parser.parse_args().models:
        results["models"][name] = names[name](name)
        print(name, results["models"][name], flush=True)
        packages = ("mmdet", "mmengine", "torch", "torchvision")
        results["versions"] = {package: importlib.metadata.version(package) for package in packages}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
