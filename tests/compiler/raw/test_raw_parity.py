"""Raw files of torchvision's models, imported, find what the same files find in ONNX Runtime on the same pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_mrcnn.compiler.raw import import_raw
from edge_mrcnn.import_options import ImportOptions
from tests.compiler.raw.parity import PATCH, PIXELS, Found, Score, read_spec, run_imported, run_raw
from tests.compiler.raw.renaming import list_weights_as_inputs, optimise, rename, shuffle
from tests.compiler.raw.seeded_weights import load, picture

FIXTURES = Path(__file__).parent / "fixtures"

HW = (128, 160)
OTHER_HW = (160, 128)
"""A picture of dynamic files that stands where theirs lay."""

CASES = {
    # file without torch's version: size of the pictures, their scale, input size
    "mask_11": (HW, 1.0, HW),
    "mask_13_dynamic": (HW, 1.0, HW),
    "mask_16_anchors": ((120, 170), 1.0, (128, 192)),
    "mask_17_batched_dynamic": (HW, 1.0, HW),
    "mask_18_limits_patches": (HW, 1.0, HW),
    "mask_18_dynamic": (HW, 1.0, HW),
    "mask_17_resized": ((256, 320), 0.5, HW),
    "mask_v2_17": (HW, 1.0, HW),
    "keypoint_11": (HW, 1.0, HW),
    "keypoint_17_dynamic": (HW, 1.0, HW),
    "boxes_17": (HW, 1.0, HW),
}
QUICK = (
    "torch2.0_keypoint_17_dynamic",
    "torch2.0_mask_11",
    "torch2.15_mask_17_batched_dynamic",
    "torch2.15_mask_16_anchors",
)
"""Files that are compared between edits too; the others take as long each."""

FILES = sorted(path.name for name in CASES for path in FIXTURES.glob(f"torch*_{name}.onnx.xz"))


def case_of(file: str) -> str:
    return file.partition("_")[2].removesuffix(".onnx.xz")


def pictures_of(hw: tuple[int, int], scale: float) -> list[Any]:
    """Two pictures; those to be shrunk come in squares of equal pixels, so that shrinking loses nothing."""
    step = round(1 / scale)
    small = [picture((hw[0] // step, hw[1] // step), seed) for seed in (7, 8)]
    return [image.repeat(step, 0).repeat(step, 1) for image in small]


def compare(want: list[Found], got: list[Found], least: float, *, patches: bool, keypoints: bool) -> Score:
    score = Score(least)
    for one, other in zip(want, got, strict=True):
        score.add(one, other)
    has_masks = want[0].masks is not None
    score.check((PATCH if patches else PIXELS) if has_masks else None, keypoints)
    return score


@pytest.fixture(scope="module")
def reference() -> Callable[[str], tuple[onnx.ModelProto, list[Any], list[Found]]]:
    """A raw file, pictures and what it finds in them; the last one is kept."""
    kept: dict[str, tuple[onnx.ModelProto, list[Any], list[Found]]] = {}

    def make(file: str) -> tuple[onnx.ModelProto, list[Any], list[Found]]:
        if file not in kept:
            kept.clear()
            raw = load(FIXTURES / file)
            pictures = pictures_of(*CASES[case_of(file)][:2])
            kept[file] = raw, pictures, run_raw(raw, pictures)
        return kept[file]

    return make


def test_every_file_is_compared() -> None:
    made = {path.name for path in FIXTURES.glob("*.onnx.xz")}
    left = {name for name in made if case_of(name) != "two_pictures_17"}
    assert left == set(FILES)
    assert len({name.partition("_")[0] for name in FILES}) >= 2, "files of two versions of torch"


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=() if file.startswith(QUICK) else pytest.mark.slow) for file in FILES]
)
def test_what_is_found_is_the_files(file: str, reference: Any) -> None:
    raw, pictures, want = reference(file)
    _, scale, canvas = CASES[case_of(file)]
    options = ImportOptions(size=f"{canvas[0]}x{canvas[1]}") if "dynamic" in file else ImportOptions()
    model = import_raw(raw, options)
    spec = read_spec(model)
    assert spec.input_hw == canvas
    patches, keypoints = "patches" in file, "keypoint" in file
    got = run_imported(model, pictures, scale, paste=not patches)
    compare(want, got, max(0.05, spec.score_threshold + 0.01), patches=patches, keypoints=keypoints)


@pytest.mark.parametrize("file", [file for file in FILES if "mask_18_dynamic" in file])
def test_a_picture_of_another_shape(file: str) -> None:
    """A file of any size, imported for pictures that stand."""
    raw, pictures = load(FIXTURES / file), pictures_of(OTHER_HW, 1.0)
    model = import_raw(raw, ImportOptions(size="160x128"))
    compare(run_raw(raw, pictures), run_imported(model, pictures), 0.05, patches=False, keypoints=False)


@pytest.mark.parametrize("file", [file for file in FILES if "mask_18_dynamic" in file])
def test_a_file_of_any_size_gets_the_largest_its_rule_allows(file: str) -> None:
    spec = read_spec(import_raw(load(FIXTURES / file), ImportOptions()))
    assert spec.input_hw == (128, 192), "shortest side 128, longest 176, in multiples of 32"


def test_a_file_of_one_size_can_have_another() -> None:
    """Nothing in it depends on the size but what is replaced: what is read out of it is the same."""
    raw = load(FIXTURES / "torch2.15_mask_11.onnx.xz")
    own, other = (read_spec(import_raw(raw, ImportOptions(size=size))) for size in (None, "96x192"))
    assert (own.input_hw, other.input_hw) == (HW, (96, 192))
    assert other.ops == own.ops


@pytest.mark.parametrize("file", [file for file in FILES if "keypoint_17" in file])
def test_names_and_order_do_not_matter(file: str) -> None:
    raw, pictures = load(FIXTURES / file), pictures_of(HW, 1.0)
    models = [import_raw(each, ImportOptions()) for each in (raw, shuffle(rename(raw)))]
    first, *others = (run_imported(model, pictures, paste=False) for model in models)
    for model, found in zip(models[1:], others, strict=True):
        assert dataclasses.replace(read_spec(model), name="") == dataclasses.replace(read_spec(models[0]), name="")
        for one, other in zip(first, found, strict=True):
            assert np.allclose(one.boxes, other.boxes, atol=1e-3)
            assert np.array_equal(one.labels, other.labels)
            assert np.allclose(one.scores, other.scores, atol=1e-5)


@pytest.mark.parametrize("file", ["torch2.15_mask_11.onnx.xz", "torch2.0_keypoint_17_dynamic.onnx.xz"])
def test_a_file_that_was_simplified(file: str, tmp_path: Path) -> None:
    """With constants folded a graph of fixed size has lost its anchors' making and a division by 1."""
    raw, pictures = load(FIXTURES / file), pictures_of(HW, 1.0)
    simple = optimise(raw, tmp_path / "simple.onnx")
    assert len(simple.graph.node) < 0.7 * len(raw.graph.node)
    first, second = (import_raw(each, ImportOptions(size="128x160")) for each in (raw, list_weights_as_inputs(simple)))
    assert read_spec(first).ops == read_spec(second).ops
    both = (run_imported(model, pictures, paste=False) for model in (first, second))
    for one, other in zip(*both, strict=True):
        assert np.allclose(one.boxes, other.boxes, atol=1e-3)
        assert np.array_equal(one.labels, other.labels)


def test_every_attribute_is_read_out_of_the_graph() -> None:
    """Anchors, levels, thresholds and limits, each another than torchvision's."""
    (file,) = (file for file in FILES if file.startswith("torch2.15_mask_18_limits"))
    ops = read_spec(import_raw(load(FIXTURES / file), ImportOptions())).ops
    rpn, nms = ops["rpn_proposals"], ops["detection_nms"]
    assert (rpn["pre_nms_top_n"], rpn["post_nms_top_n"]) == (250, 180)
    assert (rpn["nms_threshold"], rpn["score_threshold"]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert (nms["nms_threshold"], nms["score_threshold"]) == (pytest.approx(0.4), pytest.approx(0.12))
    assert nms["detections_per_image"] == 80
    assert nms["box_weights"] == pytest.approx([10, 10, 5, 5])
    assert rpn["box_weights"] == pytest.approx([1, 1, 1, 1])
    assert rpn["strides"] == [4, 8, 16, 32, 64]
    for role, size in (("box_roi_align", 7), ("mask_roi_align", 14)):
        assert (ops[role]["strides"], ops[role]["output_size"]) == ([4, 8, 16, 32], size)
        assert (ops[role]["sampling_ratio"], ops[role]["aligned"]) == (2, 0)


def test_anchors_are_read_out_of_the_graph() -> None:
    """Two sizes and three ratios a level, rounded as torchvision rounds them."""
    (file,) = (file for file in FILES if file.startswith("torch2.15_mask_16_anchors"))
    rpn = read_spec(import_raw(load(FIXTURES / file), ImportOptions())).ops["rpn_proposals"]
    expected = []
    for sizes in ((12, 20), (28, 40), (56, 80), (112, 160), (220, 300)):
        for ratio in np.sqrt(np.array((0.6, 1.0, 1.7), np.float32)):
            for size in sizes:
                half = np.array([size / ratio, size * ratio], np.float32) / 2
                expected += np.concatenate([-half, half]).round().tolist()
    assert np.array_equal(rpn["cell_anchors"], expected)
