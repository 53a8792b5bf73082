"""What is looked for in a foreign graph, part by part, and the report of one that does not match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from edge_mrcnn.errors import ExportError

REMEDY = (
    "Export torchvision's model as it is, with the legacy exporter: "
    "torch.onnx.export(model.eval(), ([image],), FILE, dynamo=False, opset_version=17); or import the checkpoint that "
    "it was made of: edge-mrcnn import CHECKPOINT"
)


class MismatchError(Exception):
    """A part of the graph is not as expected.

    Attributes:
        expected: What should be there.
        found: What is.
    """

    def __init__(self, expected: str, found: object) -> None:
        """Keep both."""
        super().__init__(f"expected {expected}; found {found}")
        self.expected, self.found = expected, str(found)


class Describable(Protocol):
    """A part that was found."""

    def describe(self) -> str:
        """What it is, in a few words."""
        ...


Part = TypeVar("Part", bound=Describable)


@dataclass
class Survey:
    """The parts that were looked for so far, in their order.

    Attributes:
        lines: What to say of each part.
        missing: Names of the parts that do not match.
    """

    lines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def find(self, part: str, look: Callable[..., Part], *known: Any) -> Part | None:
        """Look for a part that depends on others.

        Args:
            part: What it is called in the report.
            look: Finds it, or raises `MismatchError`.
            known: The parts that `look` takes; where one of them was not found, this one is not looked for.

        Returns:
            The part, or None.
        """
        if any(each is None for each in known):
            self.lines.append(f"{part}: not examined, for want of the above")
            return None
        try:
            found = look(*known)
        except MismatchError as error:
            mismatch = error
        except (AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
            # nodes without the inputs or attributes that their ops have to have; ONNX's checker is not asked before
            mismatch = MismatchError("nodes that can be followed", f"{type(error).__name__}: {error}")
        else:
            self.lines.append(f"{part}: {found.describe()}")
            return found
        self.missing.append(part)
        self.lines.append(f"{part}: DOES NOT MATCH: found {mismatch.found}; expected {mismatch.expected}")
        return None

    def conclude(self) -> None:
        """End the survey.

        Raises:
            ExportError: Something does not match; the message lists all parts.
        """
        if self.missing:
            parts = "\n".join(f"  {line}" for line in self.lines)
            raise ExportError(
                "this ONNX file is not what torch's legacy exporter makes of torchvision's Faster, Mask or Keypoint "
                f"R-CNN. Not as expected: {', '.join(self.missing)}. Part by part:\n{parts}\n{REMEDY}"
            )


def sure(part: Part | None) -> Part:
    """A part after `Survey.conclude`, which raises where one was not found."""
    assert part is not None
    return part
