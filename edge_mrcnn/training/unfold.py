"""Start training from an exported model: the weights in the ONNX file, with the batch norms taken apart again.

An export folds each batch norm into the convolution before it. What the norm was is lost, but not needed: any norm
that leaves the network's function as it is will do, provided that its statistics are those of the data. Then training
mode, which norms with the statistics of each batch, starts from nearly the same function too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from edge_mrcnn.compiler.preparation import load_model
from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.training.checkpoint import HEADS, listed
from edge_mrcnn.training.step import CanvasModel

FOLDED = "_bias"
"""What the exporter adds to a weight's name for the bias that a batch norm became."""


def load_exported(model: GeneralizedRCNN, path: str | Path, pictures: Tensor) -> None:
    """Load what `edge-mrcnn export` wrote into a network with batch norms.

    Mask and keypoint heads that the file lacks are left as they are.

    Args:
        model: The network; it is left in evaluation mode.
        path: The FP32 ONNX file.
        pictures: `(B, H, W, 3)` uint8 RGB canvases of the model's data, for the norms' statistics.

    Raises:
        EdgeMrcnnError: The file is missing or no ONNX file, or lacks weights of the network, or one has another shape.
    """
    weights = _read_weights(Path(path))
    norms = _norms_after(model)
    state, missing = {}, []
    for key, own in model.state_dict().items():
        owner = key.rpartition(".")[0]
        name = key.removeprefix("roi_heads.").replace("rpn.head.", "rpn_head.")
        if owner in norms.values():
            continue
        if name not in weights:
            missing.append(key)
        elif weights[name].shape != own.shape:
            raise EdgeMrcnnError(
                f"{path}: {key} is {tuple(weights[name].shape)}, the network has {tuple(own.shape)}. Pick the model of "
                "the zoo, and the number of classes, that the file was exported from"
            )
        else:
            state[key] = weights[name]
    lacking = [key for key in missing if not key.startswith(HEADS)]
    if lacking:
        raise EdgeMrcnnError(f"{path} lacks {listed(lacking)}: give an FP32 file of edge-mrcnn export of this network")
    model.load_state_dict(state, strict=False)
    folded = {norm: weights.get(_folded_name(conv)) for conv, norm in norms.items()}
    modules = dict(model.named_modules())
    _fit_norms(model, {modules[norm]: bias for norm, bias in folded.items() if bias is not None}, pictures)


def _read_weights(path: Path) -> dict[str, Tensor]:
    weights = load_model(path).graph.initializer
    return {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in weights}


def _folded_name(conv: str) -> str:
    return f"{conv.removeprefix('roi_heads.')}.weight{FOLDED}"


def _norms_after(model: nn.Module) -> dict[str, str]:
    """Names of the batch norms by the name of the convolution right before each in its sequence."""
    found = {}
    for name, parent in model.named_modules():
        if not isinstance(parent, nn.Sequential):
            continue
        children = list(parent.named_children())
        for (key, child), (following, norm) in itertools.pairwise(children):
            if isinstance(child, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                found[f"{name}.{key}"] = f"{name}.{following}"
    return found


@torch.no_grad()
def _fit_norms(model: GeneralizedRCNN, biases: dict[nn.Module, Tensor], pictures: Tensor) -> None:
    """Make each norm add its bias and nothing else, with the mean and variance that its input has on `pictures`."""
    seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in biases}

    def watch(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].transpose(0, 1).flatten(1).double()
        count = torch.full_like(rows[:, 0], rows.shape[1])
        seen[norm].append(torch.stack([count, rows.sum(1), (rows * rows).sum(1)]))

    for norm, bias in biases.items():
        _set_norm(norm, torch.zeros_like(bias), torch.ones_like(bias), bias)
    hooks = [norm.register_forward_pre_hook(watch) for norm in biases]
    canvas, size = CanvasModel(model.eval()), (int(pictures.shape[1]), int(pictures.shape[2]))
    for picture in pictures:
        canvas(picture[None], [{"image_hw": size}])
    for hook in hooks:
        hook.remove()
    for norm, bias in biases.items():
        if seen[norm]:
            count, total, squares = torch.stack(seen[norm]).sum(0)
            mean = total / count.clamp(min=1)
            variance = (squares / count.clamp(min=1) - mean * mean).clamp(min=0)
            _set_norm(norm, mean.float(), variance.float(), bias)


def _set_norm(norm: nn.Module, mean: Tensor, variance: Tensor, bias: Tensor) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    scale = (variance + norm.eps).sqrt()
    values: Sequence[tuple[Tensor | None, Tensor]] = (
        (norm.running_mean, mean),
        (norm.running_var, variance),
        (norm.weight, scale),
        (norm.bias, bias + mean),
    )
    for place, value in values:
        assert place is not None
        place.copy_(value)
