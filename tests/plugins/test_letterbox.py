"""letterbox: the kernel against `edge_mrcnn.runtime.preprocess.letterbox` and OpenCV's colour conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edge_mrcnn.gpu.kernels import letterbox as plan
from edge_mrcnn.gpu.launches import Tensor
from edge_mrcnn.runtime.preprocess import fit, letterbox
from tests.plugins.executor import Executor, KernelError, Kernels, Launched, compile_kernels

Pixels = npt.NDArray[np.uint8]

ANY_TYPE = "float32"
"""The launcher takes none."""

GREY_LEVELS = 1
"""By which the kernel may differ: OpenCV's weights have 11 bits."""


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compile_kernels(plan.SOURCE, plan.Args)


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """A picture with smooth parts and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 5 + y, 255 - y * 3, x * y // 7], -1) % 256
    return np.where(rng.random((height, width, 1)) < 0.3, rng.integers(0, 256, (height, width, 3)), smooth).astype(
        np.uint8
    )


def run(
    kernels: Kernels, given: Sequence[Any], canvas_hw: tuple[int, int], spare_rows: int = 0, seed: int = 0
) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """Canvases and content sizes. `given`: arrays, or functions that put a picture into the executor's memory."""
    rows = len(given) + spare_rows
    with Executor(kernels, seed) as gpu:
        pictures = [put(gpu) if callable(put) else gpu.array(put).tensor for put in given]
        sizes = [p.hw if isinstance(p, plan.Picture) else p.shape[:2] for p in pictures]
        contents = [fit((hw[0], hw[1]), canvas_hw).content_hw for hw in sizes]
        results = []
        for by_plan in (True, False):
            canvas, image_hw = gpu.empty((rows, *canvas_hw, 3), "uint8"), gpu.empty((rows, 2), "float32")
            launches = plan.launches(pictures, contents, canvas.tensor, image_hw.tensor)
            if by_plan:
                gpu.run(launches)
            else:
                launched = [one for launch in launches for one in gpu.launch_host(launch.args, ANY_TYPE)]
                assert launched == [Launched.of(launch) for launch in launches]
            results.append((canvas.read(), image_hw.read()))
    for one, other in zip(*results, strict=True):
        assert one.tobytes() == other.tobytes()
    canvases, sizes_written = results[0]
    np.testing.assert_array_equal(sizes_written[: len(given)], np.array(contents, np.float32).reshape(-1, 2))
    assert (canvases[len(given) :] == 255).all()  # spare rows stay as they were
    return canvases[: len(given)], sizes_written


def assert_close(found: Pixels, expected: Pixels, levels: int = GREY_LEVELS) -> None:
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= levels
    assert difference.mean() <= 0.15 * levels


SIZES = [
    ((48, 64), (48, 64)),  # the same
    ((30, 40), (48, 64)),  # up
    ((31, 57), (96, 128)),
    ((100, 150), (64, 64)),  # down, less than half
    ((480, 640), (64, 96)),  # far down
    ((96, 128), (48, 64)),  # half: OpenCV averages
    ((20, 200), (64, 64)),  # wide: rows of zeros below
    ((200, 20), (64, 64)),
    ((1, 1), (40, 32)),
    ((1, 50), (32, 64)),
    ((50, 1), (32, 64)),
    ((3, 500), (16, 32)),
    ((37, 41), (33, 35)),  # rows that do not begin at a word
    ((37, 41), (33, 34)),
    ((40, 30), (31, 1)),
    ((40, 30), (7, 100)),
    ((3, 5000), (8, 1344)),
]


@pytest.mark.parametrize(("hw", "canvas_hw"), SIZES, ids=str)
def test_sizes(kernels: Kernels, hw: tuple[int, int], canvas_hw: tuple[int, int]) -> None:
    image = picture(*hw)
    (found,), _ = run(kernels, [image], canvas_hw)
    expected, geometry = letterbox(image, canvas_hw)
    assert_close(found, expected)
    height, width = geometry.content_hw
    assert not found[height:].any()
    assert not found[:, width:].any()


def test_the_same_size_is_a_copy(kernels: Kernels) -> None:
    image = picture(45, 67)
    (found,), _ = run(kernels, [image], (48, 67))
    np.testing.assert_array_equal(found[:45], image)


def test_a_batch_of_different_sizes(kernels: Kernels) -> None:
    images = [picture(*hw, seed=i) for i, hw in enumerate([(40, 60), (100, 30), (48, 64), (5, 9)])]
    found, _ = run(kernels, images, (48, 64), spare_rows=2)
    for canvas, image in zip(found, images, strict=True):
        assert_close(canvas, letterbox(image, (48, 64))[0])


def test_more_pictures_than_a_launch_takes(kernels: Kernels) -> None:
    images = [picture(10 + i, 20, seed=i) for i in range(plan.MAX_PICTURES + 3)]
    found, _ = run(kernels, images, (16, 16))
    for canvas, image in zip(found, images, strict=True):
        assert_close(canvas, letterbox(image, (16, 16))[0])


def test_no_pictures(kernels: Kernels) -> None:
    assert plan.launches([], [], Tensor(64, (2, 16, 16, 3), "uint8")) == []


def test_without_content_sizes(kernels: Kernels) -> None:
    image = picture(40, 60)
    with Executor(kernels) as gpu:
        canvas = gpu.empty((1, 48, 64, 3), "uint8")
        gpu.run(plan.launches([gpu.array(image).tensor], [fit((40, 60), (48, 64)).content_hw], canvas.tensor))
        assert_close(canvas.read()[0], letterbox(image, (48, 64))[0])


def with_pitch(rows: Pixels, pitch: int) -> Pixels:
    """Rows of bytes with garbage between them; the last one ends where its pixels end."""
    flat = rows.reshape(len(rows), -1)
    padded = np.full((len(rows), pitch), 255, np.uint8)
    padded[:, : flat.shape[1]] = flat
    return padded.reshape(-1)[: pitch * (len(rows) - 1) + flat.shape[1]]


@pytest.mark.parametrize("gap", [0, 1, 6, 53])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_pitch_and_order_of_channels(kernels: Kernels, channels: plan.PixelFormat, gap: int) -> None:
    image = picture(37, 50)
    stored = image if channels == "rgb" else image[..., ::-1]

    def put(gpu: Executor) -> plan.Picture:
        pitch = 150 + gap
        address = gpu.array(with_pitch(stored, pitch)).address
        return plan.Picture(address, (37, 50), channels, pitch if gap else None)

    (found,), _ = run(kernels, [put], (32, 64))
    assert_close(found, letterbox(image, (32, 64))[0])


def nv12(height: int, width: int, seed: int = 0) -> tuple[Pixels, Pixels]:
    """Luma `(h, w)` and pairs `(ceil(h / 2), 2 * ceil(w / 2))` of every value, also out of the limited range."""
    rng = np.random.default_rng(seed)
    luma = rng.integers(0, 256, (height, width)).astype(np.uint8)
    return luma, rng.integers(0, 256, ((height + 1) // 2, (width + 1) // 2 * 2)).astype(np.uint8)


def put_nv12(gpu: Executor, luma: Pixels, chroma: Pixels, gap: int | None, color: plan.Color = "bt601") -> plan.Picture:
    """With a gap the planes are apart and have other pitches; without, they lie as one block."""
    hw = luma.shape[0], luma.shape[1]
    if gap is None:
        return plan.Picture(
            gpu.array(np.concatenate([luma.reshape(-1), chroma.reshape(-1)])).address, hw, "nv12", color=color
        )
    pitch, chroma_pitch = luma.shape[1] + gap, chroma.shape[1] + 2 * gap
    place = [gpu.array(with_pitch(*plane)).address for plane in ((luma, pitch), (chroma, chroma_pitch))]
    return plan.Picture(place[0], hw, "nv12", pitch, place[1], chroma_pitch, color)


@pytest.mark.parametrize("gap", [None, 0, 3, 64])
@pytest.mark.parametrize(
    ("hw", "canvas_hw"), [((48, 64), (48, 64)), ((48, 64), (96, 96)), ((120, 160), (64, 64)), ((2, 2), (16, 16))]
)
def test_nv12_as_opencv_converts_it(
    kernels: Kernels, hw: tuple[int, int], canvas_hw: tuple[int, int], gap: int | None
) -> None:
    luma, chroma = nv12(*hw)
    rgb = cv2.cvtColorTwoPlane(luma, chroma.reshape(hw[0] // 2, hw[1] // 2, 2), cv2.COLOR_YUV2RGB_NV12)
    (found,), _ = run(kernels, [lambda gpu: put_nv12(gpu, luma, chroma, gap)], canvas_hw)
    assert_close(found, letterbox(np.asarray(rgb, np.uint8), canvas_hw)[0], levels=2)


@pytest.mark.parametrize("hw", [(33, 45), (1, 1), (7, 10), (10, 7)], ids=str)
def test_nv12_of_odd_sizes(kernels: Kernels, hw: tuple[int, int]) -> None:
    luma, chroma = nv12(*hw)
    even = np.pad(luma, ((0, hw[0] % 2), (0, hw[1] % 2)))
    pairs = chroma.reshape(len(chroma), -1, 2)
    rgb = np.asarray(cv2.cvtColorTwoPlane(even, pairs, cv2.COLOR_YUV2RGB_NV12), np.uint8)[: hw[0], : hw[1]]
    (found,), _ = run(kernels, [lambda gpu: put_nv12(gpu, luma, chroma, 0)], (48, 64))
    assert_close(found, letterbox(rgb, (48, 64))[0], levels=2)


def yuv_of(rgb: npt.NDArray[np.float64], red: float, blue: float, full: bool) -> npt.NDArray[np.float64]:
    """Y, U, V of R, G, B. Source: ITU-R BT.601 and BT.709, where E'Y and its differences are defined."""
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    differences = (rgb[2] - luma) / (2 * (1 - blue)), (rgb[0] - luma) / (2 * (1 - red))
    luma_range, chroma_range = (255, 255) if full else (219, 224)
    return np.array(
        [luma * luma_range / 255 + (0 if full else 16), *(128 + d * chroma_range / 255 for d in differences)]
    )


@pytest.mark.parametrize(
    ("color", "red", "blue"),
    [("bt601", 0.299, 0.114), ("bt601-full", 0.299, 0.114), ("bt709", 0.2126, 0.0722), ("bt709-full", 0.2126, 0.0722)],
)
def test_colors_come_back(kernels: Kernels, color: plan.Color, red: float, blue: float) -> None:
    colors = np.array([(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (90, 90, 90)])
    pictures = []
    for rgb in colors:
        y, u, v = np.round(yuv_of(rgb.astype(float), red, blue, color.endswith("full"))).clip(0, 255).astype(np.uint8)
        planes = np.full((4, 4), y), np.tile(np.array([u, v], np.uint8), (2, 2))
        pictures.append(lambda gpu, planes=planes: put_nv12(gpu, *planes, None, color))
    found, _ = run(kernels, pictures, (4, 4))
    for canvas, rgb in zip(found, colors, strict=True):
        np.testing.assert_allclose(canvas.reshape(-1, 3), np.tile(rgb, (16, 1)), atol=3)


def test_formats_in_one_batch(kernels: Kernels) -> None:
    image, (luma, chroma) = picture(30, 40), nv12(24, 36)
    rgb = np.asarray(cv2.cvtColorTwoPlane(luma, chroma.reshape(12, 18, 2), cv2.COLOR_YUV2RGB_NV12), np.uint8)

    def put_bgr(gpu: Executor) -> plan.Picture:
        return plan.Picture(gpu.array(np.ascontiguousarray(image[..., ::-1])).address, (30, 40), "bgr")

    found, _ = run(kernels, [image, put_bgr, lambda gpu: put_nv12(gpu, luma, chroma, 4)], (32, 32))
    assert_close(found[0], letterbox(image, (32, 32))[0])
    np.testing.assert_array_equal(found[0], found[1])
    assert_close(found[2], letterbox(rgb, (32, 32))[0], levels=2)


def test_the_order_of_threads_does_not_matter(kernels: Kernels) -> None:
    results = {run(kernels, [picture(50, 77)], (64, 64), seed=seed)[0].tobytes() for seed in range(4)}
    assert len(results) == 1


@pytest.mark.parametrize("canvas_hw", [(32, 64), (9, 35)])
def test_no_races(canvas_hw: tuple[int, int]) -> None:
    racing = compile_kernels(plan.SOURCE, plan.Args, check="races")
    luma, chroma = nv12(20, 30)
    run(racing, [picture(50, 77), lambda gpu: put_nv12(gpu, luma, chroma, 1)], canvas_hw)


CANVAS = Tensor(64, (2, 32, 32, 3), "uint8")
RGB = plan.Picture(64, (20, 40))
NV12 = replace(RGB, format="nv12")


@pytest.mark.parametrize(
    ("pictures", "contents", "message"),
    [
        ([RGB], [], "1 pictures, 0 contents and 2 canvases"),
        ([RGB] * 3, [(16, 32)] * 3, "3 pictures, 3 contents and 2 canvases"),
        ([RGB], [(33, 32)], "cannot become"),
        ([RGB], [(16, 0)], "cannot become"),
        ([replace(RGB, hw=(0, 40))], [(16, 32)], "cannot become"),
        ([replace(RGB, pitch=119)], [(16, 32)], "pitch of 119"),
        ([replace(NV12, pitch=39)], [(16, 32)], "pitch of 39"),
        ([replace(NV12, chroma_pitch=38)], [(16, 32)], "and 38 bytes"),
        ([Tensor(64, (20, 40, 4), "uint8")], [(16, 32)], "uint8"),
        ([Tensor(64, (20, 40, 3), "float32")], [(16, 32)], "uint8"),
    ],
)
def test_wrong_arguments_are_refused(pictures: list[Any], contents: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.launches(pictures, contents, CANVAS)


def test_content_sizes_need_a_row_each() -> None:
    with pytest.raises(ValueError, match="a row for each of 2 pictures"):
        plan.launches([RGB, RGB], [(16, 32)] * 2, CANVAS, Tensor(64, (1, 2), "float32"))


def test_the_launcher_refuses_what_the_kernel_cannot_do(kernels: Kernels) -> None:
    (launch,) = plan.launches([RGB], [(16, 32)], CANVAS)
    launch.args.count = plan.MAX_PICTURES + 1
    with Executor(kernels) as gpu, pytest.raises(KernelError):
        gpu.launch_host(launch.args, ANY_TYPE)
