"""Where the images of a training come from: a set in memory, or one that is read as it is needed.

Both show the same batches, in the order of `SyntheticDataset.sequence`, so the size of
a machine's memory changes no result. Several workers take the same parts of a batch from either.

A followed run is trained on for as many steps as the whole of it would be. Its epochs are as long as those of
the whole set, and each consists of passes over what is committed when a pass begins. The last epoch waits for
the whole run, so every training ends with one pass over all images.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nisynth.consumers.training_log import Say
from nisynth.reader import SyntheticDataset
from nisynth.reader.view import pack, unpack
from nisynth.training import Batches, BatchSource, Place, TrainConfig, WholeSet
from nisynth.training.device import free_memory_bytes
from nisynth.training.source import Augmentation, part_of, places_of

MEMORY_SHARE = 0.5
"""Of the free memory that a whole set may take."""


def source_of(
    dataset: SyntheticDataset,
    config: TrainConfig,
    device: torch.device,
    say: Say,
    free_bytes: Callable[[torch.device], int] = free_memory_bytes,
) -> BatchSource:
    """Returns the images of a dataset to train on, as `train.stream` says. Raises DataError, StorageError.

    free_bytes: tells the free memory of a device; asked for `stream: auto` alone.
    """
    set_bytes, stream = dataset.decoded_bytes, config.stream
    fits = stream == "never" or (stream == "auto" and set_bytes <= MEMORY_SHARE * free_bytes(device))
    if fits and not dataset.follows:
        return WholeSet(dataset.load(), dataset.normalization, dataset.sequence)
    say(f"{set_bytes / 1e9:,.1f} GB of images are read as they are needed")
    return StreamedSet(dataset)


@dataclass(frozen=True, eq=False)
class StreamedSet:
    """A set of any size, read ahead of the training; memory holds the images that come next."""

    dataset: SyntheticDataset

    def open(self, config: TrainConfig, place: Place) -> Batches:
        return _StreamedBatches(self.dataset, config, place)


class _StreamedBatches:
    """Epochs of one pass over a set, or of several over a run that grows.

    _number: of the pass that is under way. _first_step: of the epoch, at which that pass began.
    """

    def __init__(self, dataset: SyntheticDataset, config: TrainConfig, place: Place) -> None:
        self._dataset, self._config, self._place = dataset, config, place
        self.batch_size = min(config.batch_size, dataset.num_images_at_end)
        part_of(self.batch_size, place)
        self.steps_per_epoch = config.steps_per_epoch(dataset.num_images_at_end)
        self._last_epoch = config.num_epochs(dataset.num_images_at_end) - 1
        self._augmentation = Augmentation(config, dataset.normalization, dataset.input_px, place.device)
        self._number, self._first_step = -1, 0

    def rest_of_epoch(self, epoch: int, steps_done: int) -> Iterator[tuple[Tensor, Tensor]]:
        done = steps_done
        if not self._dataset.follows:
            self._number, self._first_step = epoch, 0
        elif steps_done == 0:
            self._begin_pass(epoch, 0)
        while done < self.steps_per_epoch:
            if done - self._first_step >= len(self._dataset) // self.batch_size:
                self._begin_pass(epoch, done)
            for batch in self._rest_of_pass(done):
                yield batch
                done += 1

    def state_dict(self) -> dict[str, Any]:
        if not self._dataset.follows:
            return {}
        return {
            "pass": self._number,
            "first_step": self._first_step,
            "view": pack(self._dataset.joined),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._dataset.follows and state:
            self._number, self._first_step = int(state["pass"]), int(state["first_step"])
            self._dataset.return_to(unpack(state["view"]), self._number)

    def _begin_pass(self, epoch: int, step: int) -> None:
        # Where refreshing fails, no pass has begun: a checkpoint saved then starts this same pass again.
        self._dataset.refresh(self._number + 1, whole=epoch == self._last_epoch)
        self._number, self._first_step = self._number + 1, step

    def _rest_of_pass(self, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        device, size = self._place.device, self.batch_size
        order = self._dataset.sequence(self._number, size, self._config.seed)
        drawn = self._augmentation.draw(self._number, len(self._dataset))
        end = min(len(order) // size, self.steps_per_epoch - self._first_step)
        places = [places_of(step, size, self._place, drawn) for step in range(done - self._first_step, end)]
        chosen = [order[torch.cat(pair).cpu()] for pair in places]
        read = self._dataset.read_ahead(chosen, pinned=device.type == "cuda")
        for (own, partners), (pixels, labels) in zip(places, read, strict=True):
            pixels, labels = (part.to(device, non_blocking=True) for part in (pixels, labels))
            rows = torch.arange(len(labels), device=device)
            yield self._augmentation.batch(drawn, own, partners, pixels, rows, labels)
