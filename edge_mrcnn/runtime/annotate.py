"""Annotated frames a person wants to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import KEYPOINT_SCORE, Detections
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.labels import Label, draw_labels
from edge_mrcnn.runtime.palette import Color, color_of, mix
from edge_mrcnn.runtime.paste import iter_masks
from edge_mrcnn.runtime.skeletons import draw_keypoints

Picture = npt.NDArray[np.uint8]
"""`(H, W, 3)` uint8, RGB."""

AnnotatedPicture = Picture | Callable[[], Picture] | None
"""An annotated picture, what draws one on request, or None."""

_FRACTION_BITS = 4
"""OpenCV draws at sixteenths of a pixel."""

_CORNER_SIXTEENTHS = 5
"""An outline may be off by this much where that saves corners: thick lines cost time by the corner."""

_WHITE: Color = (255, 255, 255)
_BLACK: Color = (0, 0, 0)
_UNTRACKED: Color = (148, 150, 156)


@dataclass(frozen=True)
class AnnotateOptions:
    """What to draw and how."""

    color_by: Literal["class", "instance", "track"] = "class"
    """What a colour stands for. With `track` a thing keeps its colour from frame to frame, and what has no number is
    grey; where nothing is tracked it is `instance`."""

    masks: bool = True
    """Fill masks with a translucent colour and outline them."""

    boxes: bool | None = None
    """Draw boxes; by default only of detections without a mask."""

    labels: bool = True
    """Write the class beside each detection."""

    scores: bool = True
    """Write the score after the class."""

    opacity: float = 0.4
    """Of the masks' filling, 0 to 1."""

    mask_threshold: float = 0.5
    """A pixel belongs to a mask where its probability is at least this."""

    scale: float = 1.0
    """Times the line width and the text size that suit the picture's size."""

    keypoints: bool = True
    """Draw keypoints as dots, and the lines of the skeleton between them."""

    keypoint_threshold: float = KEYPOINT_SCORE
    """Keypoints with a lower score are not drawn."""

    skeleton: tuple[tuple[int, int], ...] = ()
    """Pairs of keypoints to draw a line between, such as `ModelSpec.skeleton`."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: `opacity` or `keypoint_threshold` is not from 0 to 1, `scale` is not positive or `color_by` is
                unknown.
        """
        for name in ("opacity", "keypoint_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"AnnotateOptions.{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.scale <= 0:
            raise ValueError(f"AnnotateOptions.scale must be positive, got {self.scale}")
        if self.color_by not in ("class", "instance", "track"):
            raise ValueError(f"AnnotateOptions.color_by must be class, instance or track, got {self.color_by!r}")


_DEFAULTS = AnnotateOptions()


def annotate(
    frame: Frame | Picture,
    detections: Detections,
    class_names: Sequence[str] = (),
    options: AnnotateOptions = _DEFAULTS,
) -> Picture:
    """Draw detections into a copy of a frame.

    The best detection is on top. Line width and text grow with the picture.

    Args:
        frame: A frame, or `(H, W, 3)` uint8 RGB.
        detections: Of this frame.
        class_names: `class_names[class_id]`; without a name the number is written.
        options: What to draw and how.

    Returns:
        `(H, W, 3)` uint8 RGB; the frame itself stays as it was.

    Raises:
        ValueError: The detections belong to a picture of another size, or have no such keypoints as the skeleton's.

    Example:
        >>> picture = annotate(np.zeros((48, 64, 3), np.uint8), Detections.empty((48, 64)), ("background", "mug"))
        >>> picture.shape
        (48, 64, 3)
    """
    image = frame.image if isinstance(frame, Frame) else frame
    if detections.image_hw != image.shape[:2]:
        raise ValueError(f"the detections are of a {detections.image_hw} picture (H, W), got one of {image.shape[:2]}")
    canvas = np.array(image, order="C")
    if not len(detections):
        return canvas
    colors = _choose_colors(detections, options.color_by)
    line = max(1.0, 2 * options.scale * (min(image.shape[:2]) / 480) ** 0.7)
    masked: set[int] = set()
    if options.masks and detections.mask is not None:
        canvas, masked = _draw_masks(canvas, detections, colors, line, options)
    for row in reversed(range(len(detections))):
        if options.boxes or (options.boxes is None and row not in masked):
            _draw_box(canvas, detections.xyxy[row], colors[row], line)
    if options.keypoints and detections.keypoints is not None:
        draw_keypoints(canvas, detections.keypoints, colors, options.skeleton, options.keypoint_threshold, line)
    if options.labels:
        texts = _write_texts(detections, class_names, options.scores)
        boxes = [_finite_box(box) for box in detections.xyxy]
        labels = [Label(text, box, color) for text, box, color in zip(texts, boxes, colors, strict=True)]
        draw_labels(canvas, labels, max(7.5, 9 * options.scale * (min(image.shape[:2]) / 480) ** 0.7))
    return canvas


def annotated_picture(
    frame: Frame,
    detections: Detections,
    annotated: AnnotatedPicture,
    class_names: Sequence[str] = (),
    options: AnnotateOptions = _DEFAULTS,
) -> Picture:
    """The annotated picture of a frame: the one given, what the function given draws, or else one drawn here."""
    if annotated is None:
        return annotate(frame, detections, class_names, options)
    return annotated() if callable(annotated) else annotated


def contact_sheet(
    pictures: Sequence[Picture],
    columns: int = 4,
    *,
    cell_width: int = 480,
    gap: int = 8,
    background: Color = (24, 26, 30),
) -> Picture:
    """Many pictures on one sheet, row by row.

    Every cell has the shape of the first picture; others are fitted into it whole.

    Args:
        pictures: Each `(H, W, 3)` uint8 RGB.
        columns: Pictures in a row.
        cell_width: Width of a cell in pixels.
        gap: Pixels between cells and around the sheet.
        background: RGB of what is left free.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: There are no pictures, or a number is not positive.
    """
    if not pictures or columns < 1 or cell_width < 1 or gap < 0:
        raise ValueError(
            f"a contact sheet needs pictures, columns and a cell width, got {len(pictures)}, {columns}, {cell_width}"
        )
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell_height = max(1, round(cell_width * pictures[0].shape[0] / pictures[0].shape[1]))
    size = (gap + rows * (cell_height + gap), gap + columns * (cell_width + gap), 3)
    sheet: Picture = np.full(size, background, np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        scale = min(cell_height / picture.shape[0], cell_width / picture.shape[1])
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        small = cv2.resize(
            np.ascontiguousarray(picture),
            (width, height),
            interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
        )
        y = gap + row * (cell_height + gap) + (cell_height - height) // 2
        x = gap + column * (cell_width + gap) + (cell_width - width) // 2
        sheet[y : y + height, x : x + width] = small
    return sheet


def _choose_colors(detections: Detections, color_by: str) -> list[Color]:
    if color_by == "class":
        return [color_of(int(number)) for number in detections.class_id]
    if color_by == "track" and detections.track_id is not None:
        return [color_of(int(number)) if number else _UNTRACKED for number in detections.track_id]
    return [color_of(number) for number in range(1, len(detections) + 1)]


def _write_texts(detections: Detections, class_names: Sequence[str], scores: bool) -> list[str]:
    texts = []
    for row, label in enumerate(detections.class_id):
        name = class_names[label] if 0 <= label < len(class_names) else f"class {label}"
        track = f"#{detections.track_id[row]} " if detections.track_id is not None and detections.track_id[row] else ""
        score = f" {detections.score[row]:.2f}" if scores else ""
        texts.append(f"{track}{name}{score}")
    return texts


def _draw_masks(
    canvas: Picture, detections: Detections, colors: Sequence[Color], line: float, options: AnnotateOptions
) -> tuple[Picture, set[int]]:
    """Fill and outline every mask; the picture, and the rows whose mask has a pixel."""
    filled = canvas.copy()
    outlines: list[tuple[int, list[Any]]] = []
    windows = iter_masks(
        detections._patches(), detections.xyxy, detections.image_hw, options.mask_threshold, last_first=True
    )
    for row, x, y, mask in windows:
        found, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
        if not found:
            continue
        smooth = [_smooth(outline) for outline in found]
        cv2.fillPoly(filled, smooth, colors[row], cv2.LINE_AA, _FRACTION_BITS)
        outlines.append((row, smooth))
    blended: Any = cv2.addWeighted(canvas, 1 - options.opacity, filled, options.opacity, 0)
    for row, smooth in outlines:
        edge = mix(colors[row], _WHITE, 0.12)
        cv2.polylines(blended, smooth, True, edge, max(1, round(line)), cv2.LINE_AA, _FRACTION_BITS)
    return blended, {row for row, _ in outlines}


def _smooth(outline: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """An outline without the steps of its pixels, in sixteenths of a pixel: a running mean, then fewer corners."""
    points: Any = outline.astype(np.float32)
    if len(points) >= 16:
        ring = np.concatenate([points[-2:], points, points[:2]])
        points = cv2.blur(ring, (1, 5))[2:-2]
    fixed: npt.NDArray[np.int32] = np.round(points * (1 << _FRACTION_BITS)).astype(np.int32)
    return np.asarray(cv2.approxPolyDP(fixed, _CORNER_SIXTEENTHS, True), np.int32)


def _draw_box(canvas: Picture, box: npt.NDArray[np.float32], color: Color, line: float) -> None:
    x0, y0, x1, y1 = (round(side * (1 << _FRACTION_BITS)) for side in _finite_box(box))
    corners = ((x0, y0), (x1, y1))
    cv2.rectangle(canvas, *corners, mix(color, _BLACK, 0.55), max(1, round(line)) + 2, cv2.LINE_AA, _FRACTION_BITS)
    cv2.rectangle(canvas, *corners, color, max(1, round(line)), cv2.LINE_AA, _FRACTION_BITS)


def _finite_box(box: npt.NDArray[np.float32]) -> tuple[float, float, float, float]:
    """A box that OpenCV can draw, whatever came out of the network."""
    x0, y0, x1, y1 = np.clip(np.nan_to_num(box), -1e5, 1e5).tolist()
    return x0, y0, x1, y1
