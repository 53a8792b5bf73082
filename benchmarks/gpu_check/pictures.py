"""The kernels around the network: `letterbox` and `paste_masks`, against the CPU's way and, in time, torch's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu_check.cases import Array, random_boxes
from benchmarks.gpu_check.comparison import Agreement, compare_values
from benchmarks.gpu_check.correctness import Memory, report_row
from benchmarks.gpu_check.device import GpuMemory, Launcher, open_gpu
from benchmarks.gpu_check.isolation import Emit, Skipped
from benchmarks.gpu_check.timing import Bench, open_bench, time_calls, time_plans
from edge_mrcnn.gpu.kernels import letterbox, paste_masks
from edge_mrcnn.gpu.launches import Tensor

Size = tuple[int, int]
"""Height and width in pixels."""

OpenMemory = Callable[[str], AbstractContextManager[Memory]]
"""Opens memory for the kernels of a source file."""

SAME_PIXELS = 0.9995
"""Of an instance map: at a mask's edge a probability of one half may round either way."""

TIMED_PICTURE, TIMED_CANVAS, TIMED_SETS = (1080, 1920), (800, 1344), 24
PASTED = ("masks", "boxes", "scores", "numbers")
"""What the kernel takes of a case."""


@dataclass(frozen=True)
class Paste:
    """What a network found on pictures of one size.

    Attributes:
        masks: `(B, D, M, M)` probabilities.
        boxes: `(B, D, 4)` float32, pixels of the canvas.
        scores: `(B, D)` float32, descending.
        numbers: `(B,)` int32.
        picture_hw: Of every picture.
        canvas_hw: Of the network's input.
    """

    masks: Array
    boxes: Array
    scores: Array
    numbers: Array
    picture_hw: Size
    canvas_hw: Size


# ---------------------------------------------------------------------------------------------------------------- Cases
def letterbox_cases() -> Iterator[tuple[str, Array, letterbox.PixelFormat, Size]]:
    """Name, bytes, format and canvas; NV12 has `(h * 3 / 2, w)` bytes."""
    rng = np.random.default_rng(0)
    sizes: list[tuple[Size, Size]] = [
        ((48, 64), (48, 64)), ((100, 37), (64, 96)), ((33, 201), (64, 96)), ((480, 640), (320, 416)),
        ((1, 1), (32, 32)), ((30, 40), (96, 128)),
    ]  # fmt: skip
    for (height, width), canvas in sizes:
        rough = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
        picture = np.ascontiguousarray(rough.repeat(4, 0).repeat(4, 1)[:height, :width])
        yield f"rgb {height}x{width} to {canvas[0]}x{canvas[1]}", picture, "rgb", canvas
        yield f"bgr {height}x{width} to {canvas[0]}x{canvas[1]}", picture, "bgr", canvas
        if height % 2 == 0 and width % 2 == 0:
            planes = rng.integers(16, 236, (height * 3 // 2, width), np.uint8)
            yield f"nv12 {height}x{width} to {canvas[0]}x{canvas[1]}", planes, "nv12", canvas


def paste_cases() -> Iterator[tuple[str, Paste]]:
    """Name and case."""
    for name, batch, count, size, hw in (
        ("one", 1, 1, 28, (64, 96)),
        ("100 of 28x28", 1, 100, 28, (360, 500)),
        ("14x14, three pictures", 3, 20, 14, (120, 90)),
        ("300 detections", 1, 300, 28, (200, 300)),
    ):
        yield name, make_paste(batch, count, size, hw, (96, 128))
    empty = make_paste(2, 10, 28, (64, 64), (96, 128))
    empty.numbers[:] = 0
    yield "none found", empty
    strange = make_paste(1, 30, 28, (100, 100), (96, 128))
    strange.boxes[0, :6] = [
        (np.nan, 0, 9, 9), (0, 0, np.inf, 9), (-50, -50, 300, 300), (20, 20, 20, 20), (40, 40, 30, 30), (0, 0, 0.4, 1),
    ]  # fmt: skip
    yield "strange boxes", strange


def make_paste(batch: int, count: int, size: int, picture_hw: Size, canvas_hw: Size, seed: int = 0) -> Paste:
    """Blobs in boxes of all sizes."""
    rng = np.random.default_rng((seed, count))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    shift = rng.uniform(-0.4, 0.4, (2, batch, count, 1, 1))
    masks = 1 / (1 + np.exp(6 * ((x - shift[0]) ** 2 + (y - shift[1]) ** 2) - 3))
    boxes = random_boxes(rng, batch * count, canvas_hw).reshape(batch, count, 4)
    scores = -np.sort(-rng.uniform(0.05, 1, (batch, count)))
    numbers = np.array([count - 2 * i for i in range(batch)], np.int32)
    return Paste(masks.astype(np.float32), boxes, scores.astype(np.float32), numbers, picture_hw, canvas_hw)


# ---------------------------------------------------------------------------------------------------------- References
def expected_canvas(picture: Array, pixel_format: letterbox.PixelFormat, canvas_hw: Size) -> tuple[Array, Size]:
    """The canvas and the content's size as the CPU makes them."""
    import cv2

    from edge_mrcnn.runtime.preprocess import letterbox as letterbox_on_cpu

    if pixel_format == "nv12":
        picture = cv2.cvtColor(picture, cv2.COLOR_YUV2RGB_NV12)
    elif pixel_format == "bgr":
        picture = picture[..., ::-1]
    canvas, geometry = letterbox_on_cpu(np.ascontiguousarray(picture), canvas_hw)
    return canvas, geometry.content_hw


def expected_map(case: Paste, row: int) -> Array:
    """The instance map of one picture as the CPU makes it."""
    from edge_mrcnn.runtime.paste import paste_instance_map
    from edge_mrcnn.runtime.preprocess import fit

    count = case.numbers[row]
    boxes = fit(case.picture_hw, case.canvas_hw).unletterbox_boxes(case.boxes[row, :count])
    sound = np.isfinite(case.boxes[row, :count]).all(1)  # clipping would make numbers of what is infinite
    boxes[~sound] = np.nan
    return paste_instance_map(case.masks[row, :count].astype(np.float32), boxes, case.picture_hw)


# -------------------------------------------------------------------------------------------------------- Correctness
def check_pictures(emit: Emit) -> None:
    """Compare both kernels with the CPU's way on the GPU.

    Raises:
        Skipped: OpenCV, which is the CPU's way, is not installed.
    """
    launcher = Launcher(open_gpu())
    try:
        check_in(lambda source: GpuMemory(launcher), emit)
    except ModuleNotFoundError as error:
        raise Skipped(f"{error.name} is not installed") from error


def check_in(open_memory: OpenMemory, emit: Emit) -> None:
    """Compare both kernels with the CPU's way, in some memory."""
    for name, picture, pixel_format, canvas_hw in letterbox_cases():
        expected, content = expected_canvas(picture, pixel_format, canvas_hw)
        with open_memory(letterbox.SOURCE) as memory:
            canvas, image_hw = run_letterbox(memory, picture, pixel_format, content, canvas_hw)
        agreement = compare_values(canvas[0], expected, 2 if pixel_format == "nv12" else 1)
        if tuple(image_hw[0]) != content:
            agreement = Agreement(False, 0, 1, 0, float("inf"))
        emit(report_row("letterbox", name, "OpenCV", agreement))
    for name, case in paste_cases():
        for dtype in ("float32", "float16"):
            typed = dataclasses.replace(case, masks=case.masks.astype(dtype))
            with open_memory(paste_masks.SOURCE) as memory:
                maps = run_paste(memory, typed)
            expected = np.stack([expected_map(typed, row) for row in range(len(maps))])
            emit(report_row("paste_masks", f"{name}, {dtype}", "OpenCV", compare_maps(maps, expected)))


def compare_maps(found: Array, expected: Array) -> Agreement:
    """Compare instance maps pixel by pixel; a few may differ."""
    same = int((found == expected).sum())
    return Agreement(same >= SAME_PIXELS * expected.size, same, expected.size, 0, 0.0)


def run_letterbox(
    memory: Memory, picture: Array, pixel_format: letterbox.PixelFormat, content: Size, canvas_hw: Size
) -> tuple[Array, Array]:
    """Canvas `(1, H, W, 3)` and content's size `(1, 2)` from the kernel."""
    height = len(picture) * 2 // 3 if pixel_format == "nv12" else len(picture)
    pixels = memory.array(picture)
    canvas, image_hw = memory.empty((1, *canvas_hw, 3), "uint8"), memory.empty((1, 2), "float32")
    given = letterbox.Picture(pixels.tensor.address, (height, picture.shape[1]), pixel_format)
    memory.run(letterbox.launches([given], [content], canvas.tensor, image_hw.tensor))
    return canvas.read(), image_hw.read()


def run_paste(memory: Memory, case: Paste) -> Array:
    """Instance maps `(B, h, w)` from the kernel."""
    from edge_mrcnn.runtime.preprocess import fit

    batch = len(case.masks)
    inputs = [memory.array(x).tensor for x in (getattr(case, name) for name in PASTED)]
    maps = [memory.empty(case.picture_hw, "uint16") for _ in range(batch)]
    contents = [fit(case.picture_hw, case.canvas_hw).content_hw] * batch
    memory.run(paste_masks.launches(*inputs, [item.tensor for item in maps], contents))
    return np.stack([item.read() for item in maps])


# -------------------------------------------------------------------------------------------------------------- Timing
def time_pictures(emit: Emit) -> None:
    """Both kernels at full HD, beside what torch and torchvision have for it."""
    bench = open_bench()
    try:
        bench_letterbox(bench, emit)
        bench_paste(bench, emit)
    except ModuleNotFoundError as error:
        raise Skipped(f"{error.name} is not installed") from error


def bench_letterbox(
    bench: Bench, emit: Emit, picture_hw: Size = TIMED_PICTURE, canvas_hw: Size = TIMED_CANVAS, sets: int = TIMED_SETS
) -> None:
    """A picture onto the canvas: RGB and NV12, and torch's `interpolate`."""
    import torch

    from edge_mrcnn.runtime.preprocess import fit

    content = fit(picture_hw, canvas_hw).content_hw
    name = f"{picture_hw[0]}x{picture_hw[1]} to {canvas_hw[0]}x{canvas_hw[1]}"
    formats: tuple[letterbox.PixelFormat, ...] = ("rgb", "nv12")
    for pixel_format in formats:
        shape = (picture_hw[0] * 3 // 2, picture_hw[1]) if pixel_format == "nv12" else (*picture_hw, 3)
        pictures = [torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device) for _ in range(sets)]
        canvas = torch.empty((1, *canvas_hw, 3), dtype=torch.uint8, device=bench.device)
        plans = [
            letterbox.launches([letterbox.Picture(x.data_ptr(), picture_hw, pixel_format)], [content], _tensor(canvas))
            for x in pictures
        ]
        nbytes = pictures[0].numel() + canvas.numel()
        emit(time_plans(bench, ("letterbox", name, "uint8", pixel_format), plans, nbytes))
    pictures = [torch.randint(0, 256, (*picture_hw, 3), dtype=torch.uint8, device=bench.device) for _ in range(sets)]
    calls = [functools.partial(_interpolate, x, content, canvas_hw) for x in pictures]
    emit(time_calls(bench, ("letterbox", name, "float32", "rgb"), "torch interpolate, pad", calls))


def _interpolate(picture: Any, content: Size, canvas_hw: Size) -> Any:
    import torch

    planes = picture.permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(planes, size=content, mode="bilinear", align_corners=False)
    return torch.nn.functional.pad(scaled, (0, canvas_hw[1] - content[1], 0, canvas_hw[0] - content[0])).byte()


def bench_paste(bench: Bench, emit: Emit, picture_hw: Size = TIMED_PICTURE, sets: int = 8) -> None:
    """A hundred masks into one map, and torchvision's full-size masks of them."""
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    from edge_mrcnn.runtime.preprocess import fit

    geometry = fit(picture_hw, TIMED_CANVAS)
    found = [make_paste(1, 100, 28, picture_hw, TIMED_CANVAS, seed) for seed in range(sets)]
    name = f"100 of 28x28 to {picture_hw[0]}x{picture_hw[1]}"
    instances = torch.empty(picture_hw, dtype=torch.uint16, device=bench.device)
    for dtype in (torch.float32, torch.float16):
        tensors = [[torch.from_numpy(getattr(case, key)).to(bench.device) for key in PASTED] for case in found]
        for given in tensors:
            given[0] = given[0].to(dtype)
        plans = [
            paste_masks.launches(*map(_tensor, given), [_tensor(instances)], [geometry.content_hw]) for given in tensors
        ]
        nbytes = 2 * instances.numel() + sum(x.numel() * x.element_size() for x in tensors[0])
        emit(time_plans(bench, ("paste_masks", name, str(dtype).removeprefix("torch."), "linear"), plans, nbytes))
    boxes = [torch.from_numpy(geometry.unletterbox_boxes(case.boxes[0])).to(bench.device) for case in found]
    masks = [torch.from_numpy(case.masks[0, :, None]).to(bench.device) for case in found]
    calls = [functools.partial(paste_masks_in_image, *pair, picture_hw) for pair in zip(masks, boxes, strict=True)]
    subject = "torchvision paste_masks_in_image"
    emit(time_calls(bench, ("paste_masks", name, "float32", "linear"), subject, calls))


def _tensor(tensor: Any) -> Tensor:
    return Tensor(tensor.data_ptr(), tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
