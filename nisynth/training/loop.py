"""SGD over the batches of a source; a step is a pure function of the weights, the momentum and its number.

No loader process, no global random state, no clock: a loop that was killed anywhere continues from its last
checkpoint to the same weights, bit for bit, on the same machine in float32.

Under an initialized torch.distributed group (Ray Train sets one up, torchrun would do) every worker takes
its part of each global batch, BatchNorm sees the whole of it and gradients are averaged: the same
training as by one process, to rounding.

Nothing is read back from the device until an epoch ends.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nisynth.device import default_device
from nisynth.errors import ConfigError, DataError, IncompleteRun, StorageError
from nisynth.randomness import torch_seed
from nisynth.teachers.logits import logits_of
from nisynth.training.batch_norm import over_global_batch
from nisynth.training.checkpoints import Checkpoints, TrainState
from nisynth.training.config import TrainConfig
from nisynth.training.device import arithmetic, gpu_memory, own_randomness
from nisynth.training.source import Batches, BatchSource, Place

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits `(B, C)` float32, augmented normalized images `(B, 3, H, W)`, labels `(B,)`) -> their mean."""

OnEpoch = Callable[[Mapping[str, float], nn.Module], Mapping[str, float]]
"""Called with (the epoch's record, the network in eval mode); what it returns joins the record."""

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) after every step."""


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
    source: BatchSource,
    loss: Loss,
    config: TrainConfig,
    *,
    num_classes: int,
    device: str | torch.device | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainResult:
    """Trains the network in place on the batches of a source; leaves it in eval mode.

    num_classes: C of the logits `(B, C)`, which may lie among other tensors in the network's output.
    With `checkpoints` it continues from what is stored there and saves itself as it goes. Of several
    workers, only the first evaluates, reports and saves. Raises ConfigError (values that cannot be used,
    a loss that is not finite, too little GPU memory), PlanMismatch, DataError, StorageError, and what the
    source raises.
    """
    place = Place(torch.device(device) if device is not None else default_device(), *workers())
    network.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = over_global_batch(network)
    with (
        arithmetic(config.precision, place.device) as autocast,
        own_randomness(place.device),
        gpu_memory(config.batch_size),
    ):
        batches = source.open(config, place)
        state = _begin(network, config, place.device, checkpoints, batches)
        step = _Step(state, batches, place, loss, config, autocast, num_classes)
        if place.rank != 0:
            on_epoch, on_step, checkpoints = None, None, None
        first, began_s = state.step, time.perf_counter()
        while state.step < step.total:
            epoch_first, epoch_began_s = state.step, time.perf_counter()
            with _saved_if_the_source_fails(state, batches, checkpoints):
                for _ in step.rest_of_epoch():
                    if on_step is not None:
                        on_step(state.step, step.total)
                    # The last step of an epoch, or of all, is saved with the epoch's record alone.
                    ends = state.epoch_step >= batches.steps_per_epoch or state.step == step.total
                    if checkpoints is not None and not ends:
                        state.source = batches.state_dict()
                        checkpoints.save_if_due(state)
            record = _close_epoch(state, step.lr, config)
            record["images_per_s"] = step.images_per_s(epoch_first, epoch_began_s)
            network.eval()
            if on_epoch is not None:
                record.update(on_epoch(record, network))
            if checkpoints is not None:
                state.source = batches.state_dict()
                checkpoints.save_if_due(state)
        network.eval()
    images_per_s, seconds = step.images_per_s(first, began_s), time.perf_counter() - began_s
    return TrainResult(tuple(state.history), images_per_s, seconds, first)


def workers() -> tuple[int, int]:
    """Returns (rank, number of workers) of this process's torch.distributed group; (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def _saved_if_the_source_fails(
    state: TrainState, batches: Batches, checkpoints: Checkpoints | None
) -> Iterator[None]:
    """Saves the steps taken so far where the source fails to give the next images, then raises its error."""
    try:
        yield
    except (IncompleteRun, DataError, StorageError):
        # An epoch whose steps are all taken is saved with its record, and not without it.
        if checkpoints is not None and state.epoch_step < batches.steps_per_epoch:
            state.source = batches.state_dict()
            checkpoints.save(state)
        raise


def _begin(
    network: nn.Module,
    config: TrainConfig,
    device: torch.device,
    checkpoints: Checkpoints | None,
    batches: Batches,
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
        if state.epoch_step < 0:  # saved by a version that had epochs of one length only
            state.epoch_step = state.step - len(state.history) * batches.steps_per_epoch
        batches.load_state_dict(state.source)
    return state


class _Step:
    """One step of SGD on this worker's part of a global batch, and the walk through an epoch."""

    def __init__(
        self,
        state: TrainState,
        batches: Batches,
        place: Place,
        loss: Loss,
        config: TrainConfig,
        autocast: Any,
        num_classes: int,
    ) -> None:
        self._num_classes = num_classes
        self._state, self._batches, self._place = state, batches, place
        self._config, self._autocast = config, autocast
        self.total = config.total_steps(batches.steps_per_epoch)
        network: nn.Module = state.network
        if place.num_workers > 1:
            network = nn.parallel.DistributedDataParallel(network)
        compiled = config.compiled(place.device)
        self._forward, self._loss = compiled(network), compiled(loss)

    @property
    def lr(self) -> float:
        """The learning rate of the last step: a schedule counts steps, so a source may grow meanwhile."""
        return self._config.lr_at(max(self._state.step - 1, 0) // self._batches.steps_per_epoch)

    def rest_of_epoch(self) -> Iterator[None]:
        """Takes the steps of an epoch that the state has not taken yet, yielding after each."""
        state = self._state
        state.network.train()
        for images, labels in self._batches.rest_of_epoch(len(state.history), state.epoch_step):
            lr = self._config.lr_at(state.step // self._batches.steps_per_epoch)
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            # For networks that draw in training (dropout): what they draw depends on the step alone.
            torch.manual_seed(torch_seed(self._config.seed, "step", state.step, self._place.rank))
            self._take(images, labels)
            state.step += 1
            state.epoch_step += 1
            yield
            if state.step == self.total:
                return

    def images_per_s(self, since_step: int, since_s: float) -> float:
        """Returns the speed of all workers together since a step, of a moment by `time.perf_counter`."""
        images = (self._state.step - since_step) * self._batches.batch_size
        return images / max(time.perf_counter() - since_s, 1e-9)

    def _take(self, images: Tensor, labels: Tensor) -> None:
        with self._autocast():
            output = self._forward(images)
            logits = logits_of(output, len(images), self._num_classes).float()
            loss = self._loss(logits, images, labels)
        self._state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._state.optimizer.step()
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            sums = torch.stack([loss.detach().double() * len(labels), correct.double()])
            if self._place.num_workers > 1:
                # In every step: a checkpoint, which one worker saves, holds the sums of all.
                dist.all_reduce(sums)
            self._state.sums[:2] += sums
            self._state.sums[2] += self._batches.batch_size


def _close_epoch(state: TrainState, lr: float, config: TrainConfig) -> dict[str, float]:
    """Returns the epoch's record, appended to the history, and begins the sums anew."""
    epoch = len(state.history) + 1
    loss, correct, images = state.sums.tolist()
    if not math.isfinite(loss):
        raise ConfigError(
            f"train.lr: {config.lr}: the loss is not finite in epoch {epoch}; lower it, or mend the data"
        )
    record = {
        "epoch": float(epoch),
        "lr": lr,
        "loss": loss / images,
        "train_accuracy": correct / images,
    }
    state.history.append(record)
    state.sums.zero_()
    state.epoch_step = 0
    return record
