"""A robot's view of a table: pictures and clips with exact ground truth, rendered by MuJoCo on a CPU or GPU."""

from .objects import CLASS_NAMES
from .render import DEFAULT_SIZE, Instance, Picture, render_picture

__all__ = ["CLASS_NAMES", "DEFAULT_SIZE", "Instance", "Picture", "render_picture"]
