"""How a network is trained, as a config section."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch

from nisynth.errors import ConfigError
from nisynth.images.augment import Padding
from nisynth.training.device import Precision


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. The defaults are the distillation recipe.

    epochs: passes over the images. steps: take this many instead of `epochs`, at a constant rate; the last
    epoch may then be cut short. batch_size: of all workers together. lr: SGD's learning rate at the start.
    momentum, weight_decay: SGD's. seed: of weights, order and augmentation. schedule: `steps` multiplies the
    learning rate by `gamma` at each of `milestones`, given as fractions of `epochs` (120, 150, 180 of 200);
    `cosine` falls to 0; `constant`. milestones, gamma: of `steps`. crop_pad_px, flip: random crop of the
    padded image and mirroring, 0 and false for none. padding: what surrounds the image that is cropped:
    black (`zero`), or the image mirrored (`reflect`); null is how the teacher was trained, as far as its
    weights file says, else `zero`. A teacher that never saw black borders answers worse to them. mixup,
    cutmix: alpha of the Beta distribution by which two images are mixed, by weights or by a box; 0, the
    default, is none. The teacher answers to the mixture. stream: read the images as they are needed
    (`always`), or hold the whole set in memory (`never`); `auto` holds a set that takes less than half of
    the memory that is free. The batches are the same. precision: `auto` is bfloat16 on a GPU that has it,
    else float32; `float32` is the reference, deterministic, without TF32. compile: by torch.compile; null is
    true on a GPU.
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
    padding: Padding | None = field(default=None, metadata={"added_later": True, "before": "zero"})
    mixup: float = field(default=0.0, metadata={"added_later": True})
    cutmix: float = field(default=0.0, metadata={"added_later": True})
    precision: Precision = "auto"
    compile: bool | None = None
    seed: int = 0
    steps: int | None = field(default=None, metadata={"added_later": True})
    stream: Literal["auto", "always", "never"] = field(default="auto", metadata={"decides": False})

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("crop_pad_px", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"train.{name}: {getattr(self, name)} is not at least {least}")
        for name in ("momentum", "weight_decay", "gamma"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"train.{name}: {getattr(self, name)} is not within 0..1")
        for name in ("mixup", "cutmix"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"train.{name}: {getattr(self, name)} is not a finite number, 0 or more")
        if not 0.0 < self.lr < math.inf:
            raise ConfigError(f"train.lr: {self.lr} is not above 0")
        if not all(0.0 < fraction < 1.0 for fraction in self.milestones):
            raise ConfigError(
                f"train.milestones: {self.milestones} are not fractions of epochs such as [0.6, 0.75, 0.9]"
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"train.steps: {self.steps} is not at least 1")
        if self.steps is not None and self.schedule != "constant":
            raise ConfigError(
                f"train.steps: {self.steps} with train.schedule {self.schedule!r}, which counts epochs; "
                "use schedule: constant, or give train.epochs"
            )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that no label is right for them."""
        return self.mixup > 0 or self.cutmix > 0

    def padded_as(self, teacher_padding: Padding | None) -> Self:
        """Returns this config with its `padding` settled: the config's, else the teacher's, else `zero`."""
        return replace(self, padding=self.padding or teacher_padding or "zero")

    def lr_at(self, epoch: int) -> float:
        """Returns the learning rate of an epoch, counted from 0."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * epoch / self.epochs))
        if self.schedule == "steps":
            return self.lr * self.gamma ** sum(epoch >= round(part * self.epochs) for part in self.milestones)
        return self.lr

    def compiled(self, device: torch.device) -> Callable[[Any], Any]:
        """Returns what compiles a function or a network for a device: torch.compile, or the identity."""
        compiled = device.type == "cuda" if self.compile is None else self.compile
        return torch.compile if compiled else lambda function: function

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns how many steps the training takes in all."""
        return steps_per_epoch * self.epochs if self.steps is None else self.steps

    def num_epochs(self, num_images: int) -> int:
        """Returns how many epochs the training begins over so many images."""
        return -(-self.total_steps(self.steps_per_epoch(num_images)) // self.steps_per_epoch(num_images))

    def steps_per_epoch(self, num_images: int) -> int:
        """Returns how many batches an epoch takes: full ones only, each epoch leaving out other images."""
        return max(1, num_images // self.batch_size)
