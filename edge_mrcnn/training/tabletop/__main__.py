"""Command line: `python -m edge_mrcnn.training.tabletop --seed S --images N --out DIR`."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from edge_mrcnn.errors import EdgeMrcnnError

from .writer import OutputExistsError, write_pictures


@dataclass(frozen=True)
class Options:
    """Generates pictures, or a clip, of objects on a table, with exact masks in COCO format."""

    out: Path
    """Folder to make; it must not hold anything yet."""
    seed: int = 0
    """Names the series: the same seed gives the same pictures."""
    images: int | None = None
    """Number of pictures."""
    clip: float | None = None
    """Make one clip of so many seconds instead of single pictures."""
    fps: float = 15.0
    """Frames per second of the clip."""
    size: str = "480x640"
    """Height x width, pixels."""
    workers: int = 1
    """Number of processes; pictures only."""
    quality: int = 90
    """JPEG quality, 1 to 100."""

    def __post_init__(self) -> None:
        if (self.images is None) == (self.clip is None):
            raise ValueError("give either --images N or --clip SECONDS")
        least = {"images": 1, "clip": 0.1, "fps": 1, "workers": 1, "quality": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"--{name} must be at least {low}, not {value}")
        parse_size(self.size)


def parse_size(text: str) -> tuple[int, int]:
    """Reads a picture size.

    Args:
        text: "HxW", such as "480x640".

    Returns:
        Height and width, pixels.

    Raises:
        ValueError: `text` has another form, or a side is outside 32 to 4096.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if not found:
        raise ValueError(f"--size must be HEIGHTxWIDTH, such as 480x640, not {text!r}")
    height, width = int(found[1]), int(found[2])
    if not (32 <= height <= 4096 and 32 <= width <= 4096):
        raise ValueError(f"--size must have sides of 32 to 4096 pixels, not {text!r}")
    return height, width


def run(options: Options) -> None:
    """Does what the options ask for."""
    size = parse_size(options.size)
    if options.clip is not None:
        from .clip_writer import write_clip

        write_clip(options.out, options.seed, options.clip, options.fps, size, options.quality)
    elif options.images is not None:
        write_pictures(options.out, options.seed, options.images, size, options.workers, options.quality)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 1 for a failure, 2 for wrong usage."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("OpenGL").setLevel(logging.WARNING)
    try:
        run(tyro.cli(Options, args=arguments, prog="python -m edge_mrcnn.training.tabletop"))
    except (ValueError, OutputExistsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (EdgeMrcnnError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was left behind\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
