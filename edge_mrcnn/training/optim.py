"""Parts of the training loop that are functions of few numbers: learning rate, optimizer, averaging, freezing."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

STAGES = (
    ("conv1", "bn1", "stem"),
    ("layer1", "stride4"),
    ("layer2", "stride8"),
    ("layer3", "stride16"),
    ("layer4", "stride32"),
)
"""Names of the backbone's parts by stage: ResNet's and maskrcnn_edge's."""


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Learning rate of a step: a linear rise over the warm-up, then a cosine down to a hundredth of the peak."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: nn.Module, kind: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum over the parameters that learn; norms and biases without weight decay."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr)


def freeze_backbone(model: GeneralizedRCNN, trainable: int) -> None:
    """Freeze all but the last `trainable` of the backbone's five stages, as torchvision does.

    Raises:
        ValueError: `trainable` is not within 0 to 5.
    """
    if not 0 <= trainable <= len(STAGES):
        raise ValueError(f"trainable_backbone_layers is {trainable}: expected 0 to {len(STAGES)}")
    frozen = {name for stage in STAGES[: len(STAGES) - trainable] for name in stage}
    for name, child in model.backbone.body.named_children():
        if name in frozen:
            child.requires_grad_(False)


def freeze_except(model: nn.Module, prefix: str) -> None:
    """Freeze all parameters but those whose names begin with `prefix`.

    Raises:
        ValueError: There are none.
    """
    learning = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    if not learning:
        first = sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})
        raise ValueError(f"only is {prefix!r}, but no weight's name begins so; they begin with {', '.join(first)}")
    for name, parameter in model.named_parameters():
        if not name.startswith(prefix):
            parameter.requires_grad_(False)


def set_training(model: nn.Module) -> None:
    """Training mode, except for frozen parts, whose norms keep their statistics."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


class Average:
    """Exponential moving average of a model's weights and running statistics.

    Attributes:
        model: The averaged model, in evaluation mode.
    """

    def __init__(self, model: GeneralizedRCNN, decay: float) -> None:
        """Start from a copy of `model`."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: GeneralizedRCNN, step: int) -> None:
        """Take in the weights after `step` steps; early on the average is shorter, so that it does not lag."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, new = self.model.state_dict(), model.state_dict()
        floats = [name for name, value in own.items() if value.is_floating_point()]
        torch._foreach_lerp_([own[name] for name in floats], [new[name] for name in floats], 1 - decay)
        for name in own.keys() - set(floats):
            own[name].copy_(new[name])
