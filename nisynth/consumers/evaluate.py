"""How well a network does on images: accuracy, by class, what it confuses, where it agrees with another.

The images are a real test set or a run's own; every figure carries what it was measured on and how many.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nisynth.commits.run import PLAN_KEY, SERIES_KEY
from nisynth.errors import ConfigError
from nisynth.images import LabelledImages, check_fits
from nisynth.images.real import load_real_set
from nisynth.reader import open_dataset
from nisynth.teachers import Teacher
from nisynth.teachers.predict import share


@dataclass(frozen=True)
class Comparison:
    """A second network on the same images. agreement: share, 0..1, on which both choose the same class."""

    network: str
    accuracy: float
    agreement: float


@dataclass(frozen=True)
class Evaluation:
    """One network on N images; rates are 0..1.

    class_accuracy: by class name, None for a class without images. confusion: images by label (row) and
    chosen class (column).
    """

    network: str
    source: str
    split: str
    num_images: int
    accuracy: float
    class_accuracy: dict[str, float | None]
    confusion: list[list[int]]
    against: Comparison | None = None

    def __repr__(self) -> str:
        return f"Evaluation({self.network}: {self.accuracy:.2%} on {self.measured_on})"

    @property
    def measured_on(self) -> str:
        """What every figure here was measured on, for people."""
        return f"{self.split}, N={self.num_images:,} ({self.source})"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return asdict(self)

    def confused(self, most: int = 5) -> Iterator[tuple[str, str, int]]:
        """Yields (label, chosen class, images) of the commonest confusions, commonest first."""
        names = list(self.class_accuracy)
        pairs = [
            (count, -row, -column)
            for row, counts in enumerate(self.confusion)
            for column, count in enumerate(counts)
            if row != column and count
        ]
        for count, row, column in sorted(pairs, reverse=True)[:most]:
            yield names[-row], names[-column], count


def read_images(
    data: str, network: Teacher, *, split: str = "test", allow_partial: bool = False
) -> LabelledImages:
    """Returns the images at `data`: a run's URL, or whatever `load_real_set` reads.

    They are held against the network: number and order of classes, image size. allow_partial: take a run
    that is not complete. Raises ConfigError, DataError, IncompleteRun, StorageError.
    """
    if not _is_run(data):
        real = load_real_set(data, split)
        real.check_fits(network, "network")
        return real
    dataset = open_dataset(data, allow_partial=allow_partial)
    size_px = (dataset.input_px, dataset.input_px)
    check_fits(network, "network", f"data {data}", dataset.classes, dataset.num_classes, size_px)
    part = "" if dataset.complete else " so far"
    return replace(dataset.load(), split=f"synthetic images of run {dataset.fingerprint[:12]}{part}")


def evaluate(network: Teacher, images: LabelledImages, *, against: Teacher | None = None) -> Evaluation:
    """Returns how the network does on the images, and how it compares with `against`.

    Each network normalizes the pixels its own way. Raises ConfigError when the two have other classes.
    """
    if against is not None and against.num_classes != network.num_classes:
        raise ConfigError(f"against: has {against.num_classes} classes, the network {network.num_classes}")
    chosen = network.predict(images.pixels)
    num_classes = network.num_classes
    cells = torch.bincount(images.labels * num_classes + chosen, minlength=num_classes**2)
    confusion = cells.view(num_classes, num_classes)
    right, total = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    return Evaluation(
        network=str(network.identity["arch"]),
        source=images.source,
        split=images.split,
        num_images=len(images.labels),
        accuracy=share(chosen == images.labels),
        class_accuracy={
            name: hits / count if count else None
            for name, hits, count in zip(network.classes, right, total, strict=True)
        },
        confusion=confusion.tolist(),
        against=None if against is None else _compare(against, images, chosen),
    )


def _compare(other: Teacher, images: LabelledImages, chosen: Tensor) -> Comparison:
    theirs = other.predict(images.pixels)
    return Comparison(str(other.identity["arch"]), share(theirs == images.labels), share(theirs == chosen))


def _is_run(data: str) -> bool:
    """Returns whether the URL is a run's or series': a folder with a plan, or an object URL of no file."""
    if data.startswith("hf:"):
        return False
    if "://" in data and not data.startswith("file://"):
        return not data.endswith(".parquet")
    folder = Path(data.removeprefix("file://")).expanduser()
    return any((folder / key).is_file() for key in (PLAN_KEY, SERIES_KEY))
