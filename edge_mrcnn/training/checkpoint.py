"""Checkpoints: read from anywhere with care, written so that no half-written file bears the final name."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.files import atomic_path
from edge_mrcnn.training.keypoint_labels import KeypointNames

CLASS_KEY = "roi_heads.box_predictor.cls_score.weight"
"""The tensor whose first dimension counts a Mask R-CNN's classes."""

CLASS_LAYERS = (
    "roi_heads.box_predictor.cls_score.",
    "roi_heads.box_predictor.bbox_pred.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
)
"""Prefixes of the layers whose shape depends on the number of classes."""

KEYPOINT_KEY = "roi_heads.keypoint_predictor.kps_score_lowres.weight"
"""The tensor whose second dimension counts the keypoints."""

KEYPOINT_DIMS = 4
"""Dimensions of that tensor: of a transposed convolution."""

KEYPOINT_LAYERS = ("roi_heads.keypoint_predictor.kps_score_lowres.",)
"""Prefixes of the layers whose shape depends on the number of keypoints."""

HEADS = ("roi_heads.mask_", "roi_heads.keypoint_")
"""Prefixes of what predicts masks and keypoints: a network has both, either or none."""

LISTED = 10
"""How many names of a kind an error lists."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what is known about them.

    Attributes:
        state_dict: Tensors by name, without `module.` prefixes.
        source: Path or address, for messages.
        model_name: Name in the zoo, where the file records it.
        class_names: Name of each label, the background first, where the file records them.
        size: Canvas (H, W) the weights were trained at, where the file records it.
        keypoints: Names and lines of the keypoints and which labels have them, where the file records them.
        zero_norm_eps: The frozen batch norms were trained with an epsilon of 0, as torchvision's COCO_V1 weights.
        extra: Everything else in the file: optimizer, scheduler, random states.
    """

    state_dict: dict[str, Tensor]
    source: str = ""
    model_name: str | None = None
    class_names: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    keypoints: KeypointNames | None = None
    zero_norm_eps: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """Number of classes with the background, where the file records their names."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def num_keypoints(self) -> int | None:
        """Number of keypoints that the weights are of; None where they have no such head."""
        weight = self.state_dict.get(KEYPOINT_KEY)
        return None if weight is None or weight.dim() != KEYPOINT_DIMS else int(weight.shape[1])


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; code inside it is never run.

    Args:
        path: A file of `torch.save` holding a state dict, or a dict with one under `model` or `state_dict`.

    Raises:
        EdgeMrcnnError: The file is missing, empty, truncated or foreign, or a weight is NaN or infinite.
    """
    path = Path(path)
    content = _read(path)
    if not isinstance(content, Mapping):
        raise EdgeMrcnnError(
            f"{path} holds a {type(content).__name__}, not a state dict: save it with "
            "`torch.save(model.state_dict(), path)`"
        )
    nested = next((key for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
    state = _strip_prefix(_tensors(content[nested] if nested else content, path))
    _check_finite(state, path)
    extra = {key: value for key, value in content.items() if key not in (nested, "meta")} if nested else {}
    meta = content.get("meta") if nested else None
    return Checkpoint(state, str(path), extra=extra, **_meta_fields(meta if isinstance(meta, Mapping) else {}))


def load_weights(model: nn.Module, path: str | Path) -> Checkpoint:
    """Read a checkpoint and load it into `model`.

    Returns:
        The checkpoint, for what else it records.

    Raises:
        EdgeMrcnnError: As `load_checkpoint` and `load_state`.
    """
    checkpoint = load_checkpoint(path)
    load_state(model, checkpoint)
    return checkpoint


def load_state(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    keep_class_layers: bool = True,
    keep_keypoint_layers: bool = True,
    same_heads: bool = True,
) -> None:
    """Load a checkpoint's weights into `model`.

    Args:
        model: The network.
        checkpoint: Its weights.
        keep_class_layers: If False, layers whose shape depends on the number of classes are left as they are: to
            fine-tune on other classes.
        keep_keypoint_layers: If False, likewise those whose shape depends on the number of keypoints.
        same_heads: If False, mask and keypoint heads that only one side has are left as they are: to teach a network
            keypoints that has learnt masks.

    Raises:
        EdgeMrcnnError: The number of classes or of keypoints differs, or names or shapes do not fit; the message lists
            them.
    """
    found, own = checkpoint.state_dict, model.state_dict()
    left_out = () if same_heads else tuple(head for head in HEADS if _has(found, head) != _has(own, head))
    left_out += (() if keep_class_layers else CLASS_LAYERS) + (() if keep_keypoint_layers else KEYPOINT_LAYERS)
    state = {key: value for key, value in found.items() if not key.startswith(left_out)}
    _check_counts(state, own, checkpoint.source)
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in state
        if key in own and state[key].shape != own[key].shape
    ]
    if shapes:
        raise EdgeMrcnnError(
            f"{checkpoint.source} does not fit the model: {len(shapes)} tensors have another shape "
            f"({listed(shapes)}). Pick the model of the zoo that the checkpoint was trained as"
        )
    result = model.load_state_dict(state, strict=False)
    missing = [key for key in result.missing_keys if not key.startswith(left_out)]
    _check_keys(missing, result.unexpected_keys, checkpoint.source)


def _has(state: Mapping[str, Tensor], head: str) -> bool:
    return any(key.startswith(head) for key in state)


def save_checkpoint(
    path: str | Path,
    model: nn.Module | Mapping[str, Tensor],
    *,
    model_name: str | None = None,
    class_names: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    keypoints: KeypointNames | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically: it appears under its name complete, or not at all.

    Args:
        path: Where to; the folder must exist.
        model: The network or its state dict.
        model_name: Name in the zoo.
        class_names: Name of each label, the background first.
        size: Canvas (H, W).
        keypoints: Names and lines of the keypoints, and which labels have them.
        extra: Further entries beside `model` and `meta`; plain containers and tensors only, so that
            `weights_only=True` reads them.

    Raises:
        EdgeMrcnnError: The file cannot be written, such as on a full disk.
    """
    path = Path(path)
    state = dict(model.state_dict() if isinstance(model, nn.Module) else model)
    meta = {
        "model_name": model_name,
        "class_names": list(class_names) if class_names is not None else None,
        "size": list(size) if size is not None else None,
        "keypoints": None if keypoints is None else keypoints._asdict(),
    }
    content = {**(extra or {}), "model": state, "meta": meta}
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:
        raise EdgeMrcnnError(
            f"{path} cannot be written: {error}. Free some space or choose another folder; "
            "nothing was left under that name, and an older file is as it was"
        ) from error


def _read(path: Path) -> object:
    """The content of a file of `torch.save`, without running code."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise EdgeMrcnnError(f"checkpoint {path} {what}: give the path of a file written by torch.save")
    size = path.stat().st_size
    if size == 0:
        raise EdgeMrcnnError(f"checkpoint {path} is empty (0 bytes): copy or download it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EdgeMrcnnError(
            f"checkpoint {path} ({size} bytes) holds more than weights, or is no checkpoint, and was not loaded, "
            "since that could run foreign code. In the program that made it, save `model.state_dict()` only"
        ) from error  # torch's own message advises to load it all the same
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise EdgeMrcnnError(
            f"checkpoint {path} ({size} bytes) is truncated or damaged: {_first_line(error)}. Copy or download it again"
        ) from error


def _tensors(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The state dict, checked to be one."""
    foreign = [repr(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if foreign or not content:
        what = f"has entries that are no tensors ({listed(foreign)})" if foreign else "is an empty dict"
        raise EdgeMrcnnError(f"{path} {what}: expected a state dict, or a dict with one under 'model' or 'state_dict'")
    return dict(content)


def _strip_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove `module.`, which DistributedDataParallel and DataParallel put before each name."""
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _meta_fields(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Checkpoint` from the `meta` entry that `save_checkpoint` writes; foreign ones are passed over."""
    name, names, size = meta.get("model_name"), meta.get("class_names"), meta.get("size")
    return {
        "model_name": name if isinstance(name, str) else None,
        "class_names": tuple(str(item) for item in names) if isinstance(names, list | tuple) else None,
        "size": (int(size[0]), int(size[-1])) if isinstance(size, list | tuple) and size else None,
        "keypoints": KeypointNames.from_meta(meta.get("keypoints")),
    }


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    bad = [key for key, value in state.items() if value.is_floating_point() and not math.isfinite(_extreme(value))]
    if bad:
        raise EdgeMrcnnError(
            f"{path} holds NaN or infinite values in {len(bad)} of {len(state)} tensors ({listed(bad)}): "
            "the training diverged or the file is damaged; take an earlier checkpoint"
        )


def _extreme(value: Tensor) -> float:
    """A number that is finite only if every element is; cheaper than a boolean tensor of that size."""
    return float(value.abs().max()) if value.numel() else 0.0


def _check_counts(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Name the number that differs, rather than the shapes that follow from it."""
    remedies = (
        (CLASS_KEY, 0, "classes", "pass --num-classes {0}"),
        (KEYPOINT_KEY, 1, "keypoints", "give {0} names with --keypoint-names, or none"),
    )
    for key, dim, what, remedy in remedies:
        if key not in state or key not in own or state[key].dim() != own[key].dim():
            continue
        found, built = state[key].shape[dim], own[key].shape[dim]
        if found != built:
            raise EdgeMrcnnError(
                f"{source}: checkpoint has {found} {what}, the model was built for {built}: {remedy.format(found)}"
            )


def _check_keys(missing: Sequence[str], unexpected: Sequence[str], source: str) -> None:
    if missing or unexpected:
        raise EdgeMrcnnError(
            f"{source} does not fit the model: {len(missing)} keys are missing ({listed(missing) or 'none'}), "
            f"{len(unexpected)} are unexpected ({listed(unexpected) or 'none'}). "
            "Pick the model of the zoo that the checkpoint was trained as"
        )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
