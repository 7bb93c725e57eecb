"""Where a training loop takes its batches from.

The loop knows steps and weights; a source knows images: which of them make up a step, how they are
augmented, and how far this worker's part of them reaches. Three kinds fit this seam: a whole set that lies
on the device (`WholeSet`), a stream of a set larger than memory, and a generator that makes its images as
it goes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nisynth.errors import ConfigError
from nisynth.images import LabelledImages, Normalization
from nisynth.images.augment import EpochDraws, Mixture, augment, draw_epoch, draw_mixture
from nisynth.training.config import TrainConfig


@dataclass(frozen=True)
class Place:
    """Where one worker of a training stands. rank, num_workers: of its torch.distributed group."""

    device: torch.device
    rank: int = 0
    num_workers: int = 1


class Batches(Protocol):
    """A source that was opened for one worker of one training.

    batch_size: images of a step, of all workers together. steps_per_epoch: of a whole epoch; a source that
    grows may give more batches or fewer in an epoch, and the training ends after as many steps all the same.
    """

    batch_size: int
    steps_per_epoch: int

    def rest_of_epoch(self, epoch: int, steps_done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this worker's part of each batch of an epoch, from step `steps_done` of it on.

        A batch is images `(b, 3, H, W)` float32, normalized and augmented, and labels `(b,)` int64, both
        on the device. What is yielded depends on the seed, the epoch and the step alone.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resume needs beside epoch and step, as JSON types; {} for most sources."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned, before the first batch is asked for."""


class BatchSource(Protocol):
    """Images that a network can be trained on."""

    def open(self, config: TrainConfig, place: Place) -> Batches:
        """Returns the batches of one worker. Raises ConfigError for a config that does not fit them."""


@dataclass(frozen=True, eq=False)
class WholeSet:
    """A set in memory, moved to the device as one uint8 tensor; each batch is gathered there in one step."""

    images: LabelledImages
    normalization: Normalization

    def open(self, config: TrainConfig, place: Place) -> Batches:
        return _WholeSetBatches(self, config, place)


class _WholeSetBatches:
    def __init__(self, source: WholeSet, config: TrainConfig, place: Place) -> None:
        self._config, self._place = config, place
        self._pixels = source.images.pixels.to(place.device)
        self._labels = source.images.labels.to(place.device)
        self._normalize = channels_last(source.normalization, place.device)
        self.batch_size = min(config.batch_size, len(self._labels))
        self.part_size = part_of(self.batch_size, place)
        self.steps_per_epoch = config.steps_per_epoch(len(self._labels))
        side_px = min(source.images.pixels.shape[2:])
        if config.padding == "reflect" and config.crop_pad_px >= side_px:
            raise ConfigError(
                f"train.crop_pad_px: {config.crop_pad_px} is not below the {side_px} px of the images, as"
                " train.padding: reflect needs it to be"
            )
        self._augmented = config.compiled(place.device)(self._augment)

    def rest_of_epoch(self, epoch: int, steps_done: int) -> Iterator[tuple[Tensor, Tensor]]:
        config, device = self._config, self._place.device
        num_images = len(self._labels)
        draws = draw_epoch(config.seed, epoch, num_images, config.crop_pad_px, config.flip).to(device)
        mixture = draw_mixture(config.seed, epoch, num_images, config.mixup, config.cutmix)
        mixture = None if mixture is None else mixture.to(device)
        for step in range(steps_done, self.steps_per_epoch):
            places = self._place.rank * self.part_size + torch.arange(self.part_size, device=device)
            yield self._take(draws, mixture, step * self.batch_size, places)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

    def _take(
        self, draws: EpochDraws, mixture: Mixture | None, begin: int, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        images, labels = self._at(draws, begin + places)
        if mixture is None:
            return images, labels
        # The partner's place is counted in the batch of all workers, so that their number changes nothing.
        others, of_others = self._at(draws, begin + self.batch_size - 1 - places)
        weights = mixture.weights(begin + places, *images.shape[2:])
        larger = weights.mean((1, 2, 3)) >= 0.5  # accuracies are told against the label of this one
        return torch.lerp(others, images, weights), torch.where(larger, labels, of_others)

    def _at(self, draws: EpochDraws, places: Tensor) -> tuple[Tensor, Tensor]:
        order = draws.order[places]
        return self._augmented(order, draws.shift_px[places], draws.flip[places]), self._labels[order]

    def _augment(self, order: Tensor, shift_px: Tensor, flip: Tensor) -> Tensor:
        padding = self._config.padding or "zero"
        return self._normalize(augment(self._pixels, order, shift_px, flip, padding))


def part_of(batch_size: int, place: Place) -> int:
    """Returns one worker's share of a batch. Raises ConfigError where the workers cannot share it equally."""
    if batch_size % place.num_workers:
        raise ConfigError(
            f"train.batch_size: {batch_size} images do not divide over {place.num_workers} workers"
        )
    return batch_size // place.num_workers


def channels_last(normalization: Normalization, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns what makes float32 images, normalized and in channels-last order, of uint8 ones on a device."""
    mean, std = normalization.columns(device)

    def normalize(pixels: Tensor) -> Tensor:
        images = (pixels.float() / 255.0 - mean) / std
        return images.contiguous(memory_format=torch.channels_last)

    return normalize
