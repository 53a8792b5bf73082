"""Names of weights in other projects, and filling one of our models from such a file.

A project's module writes rules from our names to the file's, so that everything is said in the file's names: what is
missing, what is left over, and which shapes do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from edge_mrcnn.errors import ExportError
from edge_mrcnn.training.foreign.weights import LISTED, ForeignFile
from edge_mrcnn.training.keypoint_labels import KeypointNames

Rules = Sequence[tuple[str, str]]
"""Pairs of a regular expression that matches one of our names whole, and the file's name, `\\1` for a matched group."""

Change = Callable[[Tensor], Tensor]
"""What is done to a tensor of the file on its way into our model."""


class Imported(NamedTuple):
    """A checkpoint of another project as one of our models.

    Attributes:
        model: A torchvision `MaskRCNN` or `KeypointRCNN`, in evaluation mode.
        name: For the spec.
        class_names: Name of each label, the background first; None if nothing says them.
        canvas: Input size (H, W) in pixels.
        keypoints: Names and lines of its keypoints; None if nothing says them, or there are none.
    """

    model: GeneralizedRCNN
    name: str
    class_names: tuple[str, ...] | None
    canvas: tuple[int, int]
    keypoints: KeypointNames | None = None


def fill_model(
    model: nn.Module,
    file: ForeignFile,
    rules: Rules,
    changes: Mapping[str, Change] | None = None,
    unused: Sequence[str] = (),
) -> None:
    """Load a file's weights into a model.

    Args:
        model: Its weights are overwritten.
        file: What was read.
        rules: From our names to the file's; the first that matches counts.
        changes: What is done to tensors, by our names.
        unused: Regular expressions of names in the file that are not needed.

    Raises:
        ExportError: The file lacks weights, has some that are not known, or a shape does not fit; the message lists
            them by the file's names.
    """
    own = model.state_dict()
    names = {key: foreign_name(key, rules) for key in own}
    missing = [name for name in names.values() if name not in file.tensors]
    known = set(names.values())
    unexpected = [name for name in file.tensors if name not in known and not _matches(name, unused)]
    if missing or unexpected:
        raise ExportError(
            f"{file.source} does not fit a {type(model).__name__}: {len(missing)} of its weights are missing "
            f"({listed(missing)}), {len(unexpected)} are not known ({listed(unexpected)}). It is of another "
            "architecture, or was changed after training"
        )
    state = {}
    misfits = []
    for key, name in names.items():
        tensor = file.tensors[name]
        state[key] = changes[key](tensor) if changes and key in changes else tensor
        if state[key].shape != own[key].shape:
            misfits.append(f"{name} {tuple(tensor.shape)}")
    if misfits:
        raise ExportError(
            f"{file.source}: the shapes of {len(misfits)} weights do not fit the rest ({listed(misfits)}): the "
            "architecture is not a supported one"
        )
    model.load_state_dict(state)


def foreign_name(key: str, rules: Rules) -> str:
    """The file's name of one of our weights.

    Raises:
        KeyError: No rule matches: the rules are incomplete.
    """
    for pattern, template in rules:
        found = re.fullmatch(pattern, key)
        if found:
            return found.expand(template)
    raise KeyError(f"no rule names {key}")


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - LISTED
    return (", ".join(names[:LISTED]) or "none") + (f" and {more} more" if more > 0 else "")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
