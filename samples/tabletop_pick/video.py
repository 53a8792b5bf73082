"""A video of the picks: what the robot saw and chose beside what it then did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from edge_mrcnn import Detections
from edge_mrcnn.runtime.annotate import AnnotateOptions, annotate
from edge_mrcnn.runtime.grasp import Grasp, transform_points
from edge_mrcnn.training.tabletop.gl import load_mujoco

from .gripper import HAND, SHOWN_GROUP
from .pick import Choice
from .world import Cell

Picture = NDArray[np.uint8]

_FPS = 25
_SPEED = 1.5
_PANEL = (360, 480)  # Height and width of each half.
_PAUSE_S, _END_S = 0.8, 0.6
_GREEN, _RED, _WHITE = (40, 180, 60), (210, 50, 40), (255, 255, 255)


def draw_grasp(picture: Picture, cell: Cell, grasp: Grasp) -> Picture:
    """A copy of the camera's picture with the open jaws as two bars, and the grasp point."""
    lens, drawn = cell.frame.intrinsics, picture.copy()
    assert lens is not None
    along = np.cross(grasp.approach, grasp.closing) * HAND.finger_width_m / 2
    # At the depth of the surface, where the eye compares it with the object.
    middle = grasp.tip_m - grasp.approach * float((grasp.tip_m - grasp.point_m) @ grasp.approach)
    sides = [middle + sign * grasp.closing * grasp.opening_m / 2 for sign in (-1, 1)]

    def pixel(point: NDArray[np.float64]) -> tuple[int, int]:
        x, y, z = lens @ point
        return round(float(x / z)), round(float(y / z))

    for color, width in (((20, 20, 20), 7), (_WHITE, 3)):
        cv2.line(drawn, pixel(sides[0]), pixel(sides[1]), color, width - 2, cv2.LINE_AA)
        for side in sides:
            cv2.line(drawn, pixel(side - along), pixel(side + along), color, width + 2, cv2.LINE_AA)
    cv2.circle(drawn, pixel(grasp.point_m), 5, _RED, -1, cv2.LINE_AA)
    return drawn


class Recorder:
    """Writes `pick.mp4` and, of the first pick, `pick.jpg` into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = av.open(str(folder / "pick.mp4"), "w", options={"movflags": "faststart"})
        self._stream: Any = self._file.add_stream("libx264", rate=_FPS, options={"crf": "30", "preset": "slow"})
        self._stream.height, self._stream.width = _PANEL[0], 2 * _PANEL[1]
        self._stream.pix_fmt = "yuv420p"
        self._renderer: Any = None
        self._last: Picture | None = None
        self._still_wanted = True

    def begin(self, cell: Cell, detections: Detections, class_names: Sequence[str], choice: Choice) -> None:
        """Starts a pick with a pause on the choice."""
        mujoco = load_mujoco()
        self._data = cell.scene.data
        self._renderer = mujoco.Renderer(cell.scene.model, *_PANEL, max_geom=1000)
        self._option, self._view = mujoco.MjvOption(), mujoco.MjvCamera()
        self._option.geomgroup[SHOWN_GROUP] = 1
        away = cell.camera.eye - cell.camera.target
        point = transform_points(cell.world_from_camera(), choice.grasp.point_m)
        self._view.lookat[:] = *((cell.camera.target + point)[:2] / 2), 0.1
        self._view.distance, self._view.elevation = 0.8, -24
        # MuJoCo counts the azimuth of the looking direction, not of the camera's place.
        self._view.azimuth = np.degrees(np.arctan2(away[1], away[0])) + 180 + 65
        seen = annotate(cell.frame, detections, class_names, AnnotateOptions(opacity=0.3))
        self._seen = cv2.resize(draw_grasp(seen, cell, choice.grasp), _PANEL[::-1], interpolation=cv2.INTER_AREA)
        self._start, self._count = float(self._data.time), 0
        self._show(_PAUSE_S)

    def step(self, time_s: float) -> None:
        """Adds a frame when its time has come."""
        if (time_s - self._start) * _FPS / _SPEED >= self._count:
            self._count += 1
            self._show(1 / _FPS)
            # Lifted, and not yet put away: this is the moment to show.
            if self._still_wanted and time_s - self._start > 3.6:
                assert self._last is not None
                cv2.imwrite(str(self._folder / "pick.jpg"), self._last[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
                self._still_wanted = False

    def end(self, name: str, outcome: str) -> None:
        """Ends a pick with what became of it."""
        self._show(_END_S, f"{name}: {outcome}", _GREEN if outcome == "lifted" else _RED)
        self._renderer.close()

    def close(self) -> None:
        """Finishes the video."""
        for packet in self._stream.encode(None):
            self._file.mux(packet)
        self._file.close()

    def _show(self, seconds: float, banner: str = "", color: tuple[int, int, int] = _GREEN) -> None:
        self._renderer.update_scene(self._data, self._view, self._option)
        both = np.concatenate([self._seen, self._renderer.render()], axis=1)
        if banner:
            (width, height), _ = cv2.getTextSize(banner, cv2.FONT_HERSHEY_SIMPLEX, 0.8, 2)
            left, bottom = both.shape[1] - width - 20, both.shape[0] - 16
            cv2.rectangle(both, (left - 12, bottom - height - 10), (left + width + 12, bottom + 10), color, -1)
            cv2.putText(both, banner, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.8, _WHITE, 2, cv2.LINE_AA)
        self._last = both
        for _ in range(max(1, round(seconds * _FPS))):
            for packet in self._stream.encode(av.VideoFrame.from_ndarray(both, format="rgb24")):
                self._file.mux(packet)
