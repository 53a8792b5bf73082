"""A robot's view of a table: pictures and clips with exact ground truth, rendered by MuJoCo on a CPU or GPU."""

from .keypoints import KEYPOINT_NAMES
from .objects import CLASS_NAMES
from .render import DEFAULT_SIZE, Instance, Picture, render_picture

__all__ = ["CLASS_NAMES", "DEFAULT_SIZE", "KEYPOINT_NAMES", "Instance", "Picture", "render_picture"]
