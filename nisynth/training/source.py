"""Where a training loop takes its batches from.

The loop knows steps and weights; a source knows images: which of them make up a step, how they are
augmented, and which part of them this worker takes. Three kinds fit this seam: a whole set that lies
on the device (`WholeSet`), a set that is read as it is needed (`nisynth.consumers.streamed`), and a generator
that makes its images as it goes.
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
    """A set in memory, moved to the device as one uint8 tensor; each batch is gathered there in one step.

    order: (epoch, batch size, seed) -> `(M,)` int64, the images that an epoch's batches show one after the
    other; by default a permutation of all.
    """

    images: LabelledImages
    normalization: Normalization
    order: Callable[[int, int, int], Tensor] | None = None

    def open(self, config: TrainConfig, place: Place) -> Batches:
        return _WholeSetBatches(self, config, place)


class _WholeSetBatches:
    def __init__(self, source: WholeSet, config: TrainConfig, place: Place) -> None:
        self._config, self._place, self._ordered = config, place, source.order
        self._pixels = source.images.pixels.to(place.device)
        self._labels = source.images.labels.to(place.device)
        self.batch_size = min(config.batch_size, len(self._labels))
        part_of(self.batch_size, place)
        self.steps_per_epoch = config.steps_per_epoch(len(self._labels))
        side_px = min(source.images.pixels.shape[2:])
        self._augmentation = Augmentation(config, source.normalization, side_px, place.device)

    def rest_of_epoch(self, epoch: int, steps_done: int) -> Iterator[tuple[Tensor, Tensor]]:
        config, device = self._config, self._place.device
        drawn = self._augmentation.draw(epoch, len(self._labels))
        order = drawn.draws.order
        if self._ordered is not None:
            order = self._ordered(epoch, self.batch_size, config.seed).to(device)
        for step in range(steps_done, self.steps_per_epoch):
            own, partners = places_of(step, self.batch_size, self._place, drawn)
            chosen = order[torch.cat([own, partners])]
            yield self._augmentation.batch(drawn, own, partners, self._pixels, chosen, self._labels[chosen])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Drawn:
    """All that is drawn for an epoch, by place in its order."""

    draws: EpochDraws
    mixture: Mixture | None


def places_of(step: int, batch_size: int, place: Place, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """Returns this worker's places of a step in the epoch's order, and those mixed with them, if any are.

    A partner's place is counted in the batch of all workers, so that their number changes nothing.
    """
    part_size = part_of(batch_size, place)
    places = place.rank * part_size + torch.arange(part_size, device=place.device)
    partners = places[:0] if drawn.mixture is None else batch_size - 1 - places
    return step * batch_size + places, step * batch_size + partners


class Augmentation:
    """How the images of a training are cropped, mirrored, normalized and mixed, on a device.

    Raises ConfigError where the images are too small for it.
    """

    def __init__(
        self, config: TrainConfig, normalization: Normalization, side_px: int, device: torch.device
    ) -> None:
        if config.padding == "reflect" and config.crop_pad_px >= side_px:
            raise ConfigError(
                f"train.crop_pad_px: {config.crop_pad_px} is not below the {side_px} px of the images, as"
                " train.padding: reflect needs it to be"
            )
        self._config, self._device = config, device
        self._normalize = channels_last(normalization, device)
        self._changed = config.compiled(device)(self._change)

    def draw(self, epoch: int, num_images: int) -> Drawn:
        """Returns the draws of an epoch over so many images."""
        config = self._config
        draws = draw_epoch(config.seed, epoch, num_images, config.crop_pad_px, config.flip)
        mixture = draw_mixture(config.seed, epoch, num_images, config.mixup, config.cutmix)
        return Drawn(draws.to(self._device), None if mixture is None else mixture.to(self._device))

    def batch(
        self, drawn: Drawn, own: Tensor, partners: Tensor, pixels: Tensor, rows: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns `(b, 3, H, W)` float32 and `(b,)` int64 of the images at the places `own`.

        rows: where in `pixels`, uint8, the images at `own` and then those at `partners` are; labels: theirs.
        """
        count, draws = len(own), drawn.draws
        images = self._changed(pixels, rows[:count], draws.shift_px[own], draws.flip[own])
        if drawn.mixture is None:
            return images, labels
        others = self._changed(pixels, rows[count:], draws.shift_px[partners], draws.flip[partners])
        weights = drawn.mixture.weights(own, *images.shape[2:])
        larger = weights.mean((1, 2, 3)) >= 0.5  # accuracy is measured against this image's label
        return torch.lerp(others, images, weights), torch.where(larger, labels[:count], labels[count:])

    def _change(self, pixels: Tensor, rows: Tensor, shift_px: Tensor, flip: Tensor) -> Tensor:
        return self._normalize(augment(pixels, rows, shift_px, flip, self._config.padding or "zero"))


def part_of(batch_size: int, place: Place) -> int:
    """Returns one worker's share of a batch. Raises ConfigError where the workers cannot share it equally."""
    if batch_size % place.num_workers:
        raise ConfigError(
            f"train.batch_size: {batch_size} images do not divide over {place.num_workers} workers"
        )
    return batch_size // place.num_workers


def channels_last(normalization: Normalization, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns a function from uint8 images to float32 ones, normalized and in channels-last order."""
    mean, std = normalization.columns(device)

    def normalize(pixels: Tensor) -> Tensor:
        images = (pixels.float() / 255.0 - mean) / std
        return images.contiguous(memory_format=torch.channels_last)

    return normalize
