"""Training and fine-tuning with the losses and the sampling of the paper, which are torchvision's.

L = L_cls + L_box + L_mask per region, the mask loss on the true class only, and with a keypoint head L_keypoint, a
softmax over each keypoint's map; regions are sampled 1:3 positive to negative, positive from IoU 0.5.
Source: He, Gkioxari, Dollar and Girshick, Mask R-CNN (2017), sections 3, 3.1 and 5.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from tqdm import tqdm

from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.spec import check_canvas, parse_size
from edge_mrcnn.training.augment import Augmentation
from edge_mrcnn.training.checkpoint import load_checkpoint, load_state, load_weights, save_checkpoint
from edge_mrcnn.training.dataset import CocoDataset, Target, collate
from edge_mrcnn.training.distributed import EpochSampler, World
from edge_mrcnn.training.optim import (
    Average,
    freeze_backbone,
    freeze_except,
    learning_rate,
    make_optimizer,
    set_training,
)
from edge_mrcnn.training.sparse_pool import use_sparse_pools
from edge_mrcnn.training.step import CanvasModel
from edge_mrcnn.training.validate import leading_figure, validate
from edge_mrcnn.training.zoo import build_model, find_entry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOptions:
    """How to train."""

    out: Path = Path("runs/train")
    """Run folder: `last.pt`, `best.pt`, `log.jsonl` and `options.json` go there."""
    val: Path | None = None
    """COCO annotations to measure AP on, or the folder that holds `annotations.json`."""
    weights: str | None = None
    """Checkpoint file or name of torchvision's weights to start from; None starts from scratch. Layers that depend on
    the classes start anew when the number of classes differs."""
    resume: bool = False
    """Go on from `last.pt` in the run folder, if there is one."""
    epochs: int = 12
    """Passes over the data."""
    batch_size: int = 8
    """Pictures a step, on each process."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW learns faster from scratch; SGD with momentum 0.9 is the paper's."""
    lr: float = 1e-3
    """Peak learning rate. For SGD 0.02 per 16 pictures is the paper's."""
    weight_decay: float = 0.05
    """Of weights only: norms and biases have none. For SGD 1e-4 is the paper's."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises linearly; then it falls as a cosine."""
    clip_norm: float = 5.0
    """Largest norm of the gradient; 0 does not clip."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is validated and saved; 0 has none."""
    trainable_backbone_layers: int | None = None
    """How many of the backbone's five stages learn, counted from the last. None: 3 with weights to start from (as
    torchvision), else 5."""
    only: str | None = None
    """Train only the weights whose names begin so, such as `roi_heads.keypoint_`; the rest stays to the bit, its norms'
    statistics too, and much of the work is saved."""
    size: str | None = None
    """Input size HxW in pixels, multiples of 32, such as 480x640; the model's default when not given."""
    small_epochs: int = 0
    """So many first epochs run on a smaller canvas, which costs less."""
    small_scale: float = 0.6
    """Side of the smaller canvas relative to `size`."""
    flip: bool = True
    """Mirror half of the pictures."""
    zoom: tuple[float, float] = (0.7, 1.4)
    """Range of random scales relative to the letterbox."""
    light: float = 0.25
    """Random relative change of brightness, contrast and colour."""
    val_every: int = 1
    """Validate after every so many epochs, and after the last."""
    val_images: int = 0
    """Pictures for validation while training, of which the best checkpoint is then validated on all; 0 takes all."""
    seed: int = 0
    """Of weights, order, augmentation and sampling."""
    workers: int = 1
    """Processes that prepare pictures."""
    threads: int = 0
    """CPU threads of torch; 0 leaves it to torch."""
    cache_gb: float = 4.0
    """Memory for decoded pictures, in 10^9 bytes, shared out among the processes."""
    bf16: bool = True
    """Convolutions and products in bfloat16; losses, boxes and weights stay in float32."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: the GPU if there is one."""
    log_every: int = 20
    """Steps between lines of `log.jsonl`."""


@dataclass(frozen=True)
class TrainResult:
    """What a training left.

    Attributes:
        last: Newest checkpoint; training can be resumed from it.
        best: Checkpoint with the highest AP, or the newest where nothing was validated.
        epochs: Epochs done, those before a resumption included.
        best_ap: AP that `best` was chosen by, in points of 100; None where nothing was validated.
        chosen_by: Which AP that is: `keypoint_ap` of a network with keypoints, else `mask_ap`, else `box_ap`.
        figures: Of the last validation; of `best` on all pictures where `val_images` limited them.
    """

    last: Path
    best: Path
    epochs: int
    best_ap: float | None
    chosen_by: str
    figures: dict[str, float]


def train(model_name: str, data: str | Path, options: TrainOptions | None = None) -> TrainResult:
    """Train a model of the zoo on a COCO-format data set.

    Under `torchrun` each process takes its share of every epoch.

    Args:
        model_name: Name in the zoo.
        data: The annotations, or the folder that holds `annotations.json`.
        options: How; defaults as in `TrainOptions`.

    Raises:
        ValueError: The model is not in the zoo or an option is out of range.
        EdgeMrcnnError: The data or the weights cannot be read, the data lacks what a head learns from, the run folder
            cannot be written, or the loss is no longer finite.
    """
    options = options or TrainOptions()
    _check(options)
    cv2.setNumThreads(0)  # its threads do not survive the fork of the workers, who then wait for them forever
    if options.threads:
        torch.set_num_threads(options.threads)
    with World.join(options.device) as world:
        return _Trainer(model_name, annotations_path(data), options, world).run()


def annotations_path(data: str | Path) -> Path:
    """The annotations file: `data` itself, or `annotations.json` in it."""
    path = Path(data)
    return path / "annotations.json" if path.is_dir() else path


class _Trainer:
    """One training: the state that a checkpoint saves and the loop over it."""

    def __init__(self, model_name: str, data: Path, options: TrainOptions, world: World) -> None:
        self.name, self.options, self.world = model_name, options, world
        self.size = parse_size(options.size) if options.size else find_entry(model_name).default_size
        augmentation, room = Augmentation(options.flip, options.zoom, options.light), options.cache_gb / world.size
        self.data = CocoDataset(data, self.size, augmentation, seed=options.seed, cache_gb=room)
        self.val = CocoDataset(annotations_path(options.val), self.size) if options.val else None
        torch.manual_seed(options.seed)
        self.model = self._build().to(world.device, memory_format=torch.channels_last)
        self.average = Average(self.model, options.ema) if options.ema else None
        if world.device.type == "cpu":
            use_sparse_pools(self.model)
        self.optimizer = make_optimizer(self.model, options.optimizer, options.lr, options.weight_decay)
        self.sampler = EpochSampler(len(self.data), options.batch_size, options.seed, world)
        self.epoch, self.step, self.best = 0, 0, -1.0
        self.figures: dict[str, float] = {}
        torch.manual_seed(options.seed + world.rank)
        self.last_path, self.best_path = options.out / "last.pt", options.out / "best.pt"

    def run(self) -> TrainResult:
        """Train to the end."""
        options = self.options
        self._open_run_folder()
        if options.resume and self.last_path.is_file():
            self._restore()
        self.data.preload()
        wrapped: nn.Module = CanvasModel(self.model, bf16=options.bf16)
        if self.world.size > 1:
            wrapped = DistributedDataParallel(wrapped)
        while self.epoch < options.epochs:
            self._train_epoch(wrapped)
            self.epoch += 1
            if self.world.rank == 0:
                self._validate_and_save()
            self.world.barrier()
        if self.val is not None and options.val_images and self.world.rank == 0:
            self.figures = self._validate_best(self.val)
        self.world.barrier()
        best = self.best if self.best >= 0 else None
        return TrainResult(self.last_path, self.best_path, self.epoch, best, leading_figure(self.model), self.figures)

    def _build(self) -> GeneralizedRCNN:
        options, classes = self.options, len(self.data.class_names)
        points = len(self.data.keypoints.names) if find_entry(self.name).keypoints else 0
        model = build_model(
            self.name, classes, options.weights, num_keypoints=points or None, replace_class_layers=True
        )
        check_keypoint_head(model, self.data)
        stages = options.trainable_backbone_layers
        freeze_backbone(model, (3 if options.weights else 5) if stages is None else stages)
        if options.only is not None:
            freeze_except(model, options.only)
        return model

    def _train_epoch(self, wrapped: nn.Module) -> None:
        self.sampler.epoch = self.data.epoch = self.epoch
        self.data.canvas_hw = canvas_of_epoch(self.options, self.size, self.epoch)
        set_training(self.model)
        started = time.monotonic()
        total: dict[str, float] = {}
        for pictures, targets in self._batches():
            losses = self._train_step(wrapped, pictures, targets)
            for name, value in losses.items():
                total[name] = total.get(name, 0.0) + value
            if self.step % self.options.log_every == 0:
                seconds = time.monotonic() - started
                means = {name: round(value / self.options.log_every, 5) for name, value in total.items()}
                self._log(step=self.step, epoch=self.epoch, lr=self._rate(), seconds=round(seconds, 2), **means)
                started, total = time.monotonic(), {}

    def _batches(self) -> Iterator[tuple[Tensor, list[Target]]]:
        """The batches of this epoch, with a progress bar on a terminal."""
        loader = DataLoader(
            self.data,
            batch_sampler=self.sampler,
            num_workers=self.options.workers,
            collate_fn=collate,
            multiprocessing_context="fork" if self.options.workers else None,
        )
        hidden = self.world.rank != 0 or not sys.stderr.isatty()
        for pictures, targets in tqdm(loader, f"epoch {self.epoch + 1}/{self.options.epochs}", disable=hidden):
            device = self.world.device
            moved = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in t.items()} for t in targets]
            yield pictures.to(device), moved

    def _train_step(self, wrapped: nn.Module, pictures: Tensor, targets: list[Target]) -> dict[str, float]:
        """One step of the optimizer; the losses by name, and their sum as `loss`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        losses, _ = wrapped(pictures, targets)
        loss = sum(losses.values(), torch.zeros((), device=pictures.device))
        values = {"loss": float(loss.detach()), **{name: float(value.detach()) for name, value in losses.items()}}
        if not math.isfinite(values["loss"]):
            raise EdgeMrcnnError(
                f"the loss is not finite at step {self.step} (epoch {self.epoch}): {values}. "
                f"Lower --lr (now {self.options.lr}) or --clip-norm (now {self.options.clip_norm}), "
                f"and go on from {self.last_path} with --resume"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.options.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update(self.model, self.step)
        return values

    def _rate(self) -> float:
        steps = self.options.epochs * len(self.sampler)
        return learning_rate(self.step, steps, self.options.warmup_steps, self.options.lr)

    def _validate_and_save(self) -> None:
        options, model = self.options, self.average.model if self.average else self.model
        improved = self.val is None
        due = self.epoch % options.val_every == 0 or self.epoch == options.epochs
        if self.val is not None and due:
            self.figures = validate(model, self.val, options.val_images)
            self._log(epoch=self.epoch, **self.figures)
            log.info("epoch %d: %s", self.epoch, self.figures)
            ap = self.figures[leading_figure(model)]
            improved = ap > self.best
            self.best = max(self.best, ap)
        known: dict[str, Any] = {"model_name": self.name, "class_names": self.data.class_names, "size": self.size}
        if model.roi_heads.has_keypoint():
            known["keypoints"] = self.data.keypoints
        save_checkpoint(self.last_path, model, **known, extra={"trainer": self._state()})
        if improved:
            save_checkpoint(self.best_path, model, **known, extra={"figures": self.figures})

    def _validate_best(self, val: CocoDataset) -> dict[str, float]:
        """AP of the best checkpoint on all validation pictures, where only some were taken so far."""
        model = self.average.model if self.average else self.model
        load_weights(model, self.best_path)
        figures = validate(model, val)
        self._log(checkpoint=self.best_path.name, **figures)
        return figures

    def _state(self) -> dict[str, Any]:
        """What resuming needs beside the averaged weights."""
        return {
            "raw": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "figures": self.figures,
            "rng": torch.get_rng_state(),
        }

    def _restore(self) -> None:
        checkpoint = load_checkpoint(self.last_path)
        state = checkpoint.extra.get("trainer")
        if not state:
            raise EdgeMrcnnError(f"{self.last_path} holds no training state: start from it with --weights instead")
        if checkpoint.model_name != self.name:
            raise EdgeMrcnnError(
                f"{self.last_path} is of {checkpoint.model_name}, not of {self.name}: choose another --out"
            )
        load_state(self.average.model if self.average else self.model, checkpoint)
        self.model.load_state_dict(state["raw"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.best = int(state["epoch"]), int(state["step"]), float(state["best"])
        self.figures = dict(state["figures"])
        if self.world.size == 1:
            torch.set_rng_state(state["rng"])

    def _open_run_folder(self) -> None:
        if self.world.rank != 0:
            return
        content = {"model": self.name, "data": str(self.data.annotations), **asdict(self.options)}
        try:
            self.options.out.mkdir(parents=True, exist_ok=True)
            (self.options.out / "options.json").write_text(json.dumps(content, default=str, indent=1))
        except OSError as error:
            raise EdgeMrcnnError(
                f"run folder {self.options.out} cannot be written: {error}: choose another --out"
            ) from error
        if not self.options.resume:
            (self.options.out / "log.jsonl").unlink(missing_ok=True)

    def _log(self, **entry: Any) -> None:
        if self.world.rank == 0:
            with (self.options.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")


def canvas_of_epoch(options: TrainOptions, size: tuple[int, int], epoch: int) -> tuple[int, int]:
    """Canvas (H, W) of an epoch: smaller, in multiples of 32, during the first `small_epochs`."""
    if epoch >= options.small_epochs:
        return size
    height, width = (max(64, round(side * options.small_scale / 32) * 32) for side in size)
    return height, width


def check_keypoint_head(model: GeneralizedRCNN, data: CocoDataset) -> None:
    """Check that data and network have the same keypoints.

    Raises:
        EdgeMrcnnError: The network has keypoints and the data none, or another number of them.
    """
    if not model.roi_heads.has_keypoint():
        return
    given, made = len(data.keypoints.names), int(model.roi_heads.keypoint_predictor.out_channels)
    if given != made:
        raise EdgeMrcnnError(
            f"{data.annotations} names {given} keypoints, the network has {made}: its categories must list the "
            "network's keypoints, or pick a network without keypoints"
        )


def _check(options: TrainOptions) -> None:
    """Raise `ValueError` where an option is out of range."""
    for name in ("epochs", "batch_size", "val_every", "log_every"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}: expected at least 1")
    if options.size:
        check_canvas(parse_size(options.size))
    if not 0 < options.zoom[0] <= options.zoom[1]:
        raise ValueError(f"zoom is {options.zoom}: expected (smallest, largest), both positive")
    if not 0 <= options.ema < 1:
        raise ValueError(f"ema is {options.ema}: expected 0 (none) or a decay below 1")
