"""The loop that every consumer trains with: SGD over images that lie on the device as one uint8 tensor.

A step is a pure function of the weights, the momentum and (seed, epoch, step): no loader process, no
global random state, no clock. So a loop that was killed anywhere continues from its last checkpoint to
the same weights, bit for bit, on the same machine in float32.

Under an initialized torch.distributed group (Ray Train sets one up, torchrun would do) every worker takes
its part of each global batch, BatchNorm sees the whole of it and gradients are averaged: the same
training as by one process, to rounding.

Nothing is read back from the device until an epoch ends.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nisynth.batch import Normalization
from nisynth.consumers.augment import EpochDraws, augment, draw_epoch, mix
from nisynth.consumers.batch_norm import over_global_batch
from nisynth.consumers.checkpoints import Checkpoints, TrainState
from nisynth.consumers.device import Precision, arithmetic, default_device, gpu_memory, own_randomness
from nisynth.errors import ConfigError
from nisynth.teachers.operations import first_tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits `(B, C)` float32, augmented normalized images `(B, 3, H, W)`, labels `(B,)`) -> their mean."""

OnEpoch = Callable[[Mapping[str, float], nn.Module], Mapping[str, float]]
"""Called with (the epoch's record, the network in eval mode); what it returns joins the record."""

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) after every step."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. The defaults are the distillation recipe.

    batch_size: of all workers together. schedule: `steps` multiplies the learning rate by `gamma` at
    each of `milestones`, given as fractions of `epochs` (120, 150, 180 of 200); `cosine` falls to 0;
    `constant`. crop_pad_px, flip: random crop of the padded image and mirroring, 0 and false for none.
    precision: `auto` is bfloat16 on a GPU that has it, else float32; `float32` is the reference,
    deterministic, without TF32. compile: by torch.compile; null is true on a GPU.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    milestones: tuple[float, ...] = (0.6, 0.75, 0.9)
    gamma: float = 0.1
    crop_pad_px: int = 4
    flip: bool = True
    precision: Precision = "auto"
    compile: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("crop_pad_px", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"train.{name}: {getattr(self, name)} is not at least {least}")
        for name in ("momentum", "weight_decay", "gamma"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"train.{name}: {getattr(self, name)} is not within 0..1")
        if not 0.0 < self.lr < math.inf:
            raise ConfigError(f"train.lr: {self.lr} is not above 0")
        if not all(0.0 < fraction < 1.0 for fraction in self.milestones):
            raise ConfigError(
                f"train.milestones: {self.milestones} are not fractions of epochs such as [0.6, 0.75, 0.9]"
            )

    def lr_at(self, epoch: int) -> float:
        """Returns the learning rate of an epoch, counted from 0."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * epoch / self.epochs))
        if self.schedule == "steps":
            return self.lr * self.gamma ** sum(epoch >= round(part * self.epochs) for part in self.milestones)
        return self.lr

    def steps_per_epoch(self, num_images: int) -> int:
        """Returns how many batches an epoch takes: full ones only, each epoch leaving out other images."""
        return max(1, num_images // self.batch_size)


@dataclass(frozen=True)
class TrainResult:
    """What training leaves behind, beside the network.

    history: one record per epoch, `epoch` (from 1), `lr`, `loss`, `train_accuracy` (on the augmented
    images), `images_per_s`, and what `on_epoch` returned. images_per_s, seconds: of this process, since
    it began. resumed_step: the step at which it began.
    """

    history: tuple[dict[str, float], ...]
    images_per_s: float
    seconds: float
    resumed_step: int


def hard_label_loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy against the labels."""
    return nn.functional.cross_entropy(logits, labels)


def train(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    normalization: Normalization,
    loss: Loss,
    config: TrainConfig,
    *,
    device: str | torch.device | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainResult:
    """Trains the network in place on uint8 images `(N, 3, H, W)` with labels `(N,)`; leaves it in eval mode.

    With `checkpoints` it continues from what is stored there and saves itself as it goes. Of several
    workers, only the first evaluates, reports and saves. Raises ConfigError (values that cannot be used,
    a loss that is not finite, too little GPU memory), PlanMismatch, DataError, StorageError.
    """
    place = torch.device(device) if device is not None else default_device()
    network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = over_global_batch(network)
    with (
        arithmetic(config.precision, place) as autocast,
        own_randomness(place),
        gpu_memory(config.batch_size),
    ):
        state = _begin(network, config, place, checkpoints)
        step = _Step(state, (pixels.to(place), labels.to(place)), normalization, loss, config, autocast)
        if workers()[0] != 0:
            on_epoch, on_step, checkpoints = None, None, None
        first, began_s = state.step, time.perf_counter()
        for epoch in range(first // step.per_epoch, config.epochs):
            epoch_first, epoch_began_s = state.step, time.perf_counter()
            for _ in step.rest_of_epoch(epoch):
                if on_step is not None:
                    on_step(state.step, step.per_epoch * config.epochs)
                if checkpoints is not None and state.step % step.per_epoch:
                    checkpoints.save_if_due(state)
            record = _close_epoch(state, epoch, config)
            record["images_per_s"] = step.images_per_s(epoch_first, epoch_began_s)
            network.eval()
            if on_epoch is not None:
                record.update(on_epoch(record, network))
            if checkpoints is not None:
                checkpoints.save_if_due(state)
        network.eval()
    images_per_s, seconds = step.images_per_s(first, began_s), time.perf_counter() - began_s
    return TrainResult(tuple(state.history), images_per_s, seconds, first)


def workers() -> tuple[int, int]:
    """Returns (rank, number of workers) of this process's torch.distributed group; (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _begin(
    network: nn.Module, config: TrainConfig, device: torch.device, checkpoints: Checkpoints | None
) -> TrainState:
    """Returns the state that the loop starts from: fresh, or as the checkpoint has it."""
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    state = TrainState(network, optimizer, torch.zeros(3, dtype=torch.float64, device=device))
    if checkpoints is not None:
        checkpoints.load_into(state)
    return state


class _Step:
    """One step of SGD on this worker's part of a global batch, and the walk through an epoch."""

    def __init__(
        self,
        state: TrainState,
        images: tuple[Tensor, Tensor],
        normalization: Normalization,
        loss: Loss,
        config: TrainConfig,
        autocast: Any,
    ) -> None:
        self._pixels, self._labels = images
        self._state, self._config, self._autocast = state, config, autocast
        self._rank, self._num_workers = workers()
        self.batch_size = min(config.batch_size, len(self._labels))
        if self.batch_size % self._num_workers:
            raise ConfigError(
                f"train.batch_size: {self.batch_size} images do not divide over {self._num_workers} workers"
            )
        self.per_epoch = config.steps_per_epoch(len(self._labels))
        device = self._pixels.device
        self._mean = torch.tensor(normalization.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(normalization.std, device=device).view(1, 3, 1, 1)
        network: nn.Module = state.network
        if self._num_workers > 1:
            network = nn.parallel.DistributedDataParallel(network)
        compiled = device.type == "cuda" if config.compile is None else config.compile
        wrap: Callable[[Any], Any] = torch.compile if compiled else lambda function: function
        self._forward, self._loss, self._prepare = wrap(network), wrap(loss), wrap(self._augmented)

    def rest_of_epoch(self, epoch: int) -> Iterator[None]:
        """Takes the steps of an epoch that the state has not taken yet, yielding after each."""
        config, state = self._config, self._state
        state.network.train()
        for group in state.optimizer.param_groups:
            group["lr"] = config.lr_at(epoch)
        draws = draw_epoch(config.seed, epoch, len(self._labels), config.crop_pad_px, config.flip)
        draws = draws.to(self._pixels.device)
        for step in range(state.step - epoch * self.per_epoch, self.per_epoch):
            # For networks that draw in training (dropout): what they draw depends on the step alone.
            torch.manual_seed(mix(config.seed, "step", state.step, self._rank))
            size = self.batch_size // self._num_workers
            begin = step * self.batch_size + self._rank * size
            self._take(draws, slice(begin, begin + size))
            state.step += 1
            yield

    def images_per_s(self, since_step: int, since_s: float) -> float:
        """Returns the speed of all workers together since a step, of a moment by `time.perf_counter`."""
        images = (self._state.step - since_step) * self.batch_size
        return images / max(time.perf_counter() - since_s, 1e-9)

    def _take(self, draws: EpochDraws, part: slice) -> None:
        order = draws.order[part]
        images, labels = self._prepare(order, draws.shift_px[part], draws.flip[part]), self._labels[order]
        with self._autocast():
            logits = first_tensor(self._forward(images))
            assert logits is not None
            logits = logits.float()
            loss = self._loss(logits, images, labels)
        self._state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._state.optimizer.step()
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            sums = torch.stack([loss.detach().double() * len(labels), correct.double()])
            if self._num_workers > 1:  # at once: a checkpoint, which one worker saves, holds those of all
                dist.all_reduce(sums)
            self._state.sums[:2] += sums
            self._state.sums[2] += self.batch_size

    def _augmented(self, order: Tensor, shift_px: Tensor, flip: Tensor) -> Tensor:
        images = augment(self._pixels, order, shift_px, flip)
        images = (images.float() / 255.0 - self._mean) / self._std
        return images.contiguous(memory_format=torch.channels_last)


def _close_epoch(state: TrainState, epoch: int, config: TrainConfig) -> dict[str, float]:
    """Returns the epoch's record, appended to the history, and begins the sums anew."""
    loss, correct, images = state.sums.tolist()
    if not math.isfinite(loss):
        raise ConfigError(
            f"train.lr: {config.lr}: the loss is not finite in epoch {epoch + 1}; lower it, or mend the data"
        )
    record = {
        "epoch": float(epoch + 1),
        "lr": config.lr_at(epoch),
        "loss": loss / images,
        "train_accuracy": correct / images,
    }
    state.history.append(record)
    state.sums.zero_()
    return record
