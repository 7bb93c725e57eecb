"""Small runs for the tests of reading: 13 shards of 8 images of 16 px, each image unlike every other."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.reader import SyntheticDataset, open_dataset
from nisynth.storage import open_store
from tests.tiny import commit_all, tiny_plan

NUM_IMAGES = 100


def make_run(tmp_path: Path, url: str = "", tasks: Any = None, **sections: dict[str, Any]) -> Run:
    """Returns a run with `tasks` committed (default: all, and then sealed)."""
    sections = {"run": {"num_images": NUM_IMAGES, "batch_size": 8}} | sections
    run = Run.join(open_store(url or str(tmp_path / "run")), tiny_plan(tmp_path, **sections))
    commit_all(run, tasks)
    seal(run)
    return run


def open_run(run: Run, tmp_path: Path, **options: Any) -> SyntheticDataset:
    return open_dataset(run.store.url, **{"cache": tmp_path / "cache"} | options)


def numbers(images: SyntheticDataset, pixels: Tensor) -> list[int]:
    """Returns which image of the set each one is."""
    known = {bytes(image.numpy().tobytes()): number for number, image in enumerate(images.load().pixels)}
    return [known[image.contiguous().numpy().tobytes()] for image in pixels]


def shown(images: SyntheticDataset, batches: Any) -> list[int]:
    """Returns the images of an iterable of batches, after their labels were compared with the set's."""
    found: list[int] = []
    for pixels, labels in batches:
        chosen = numbers(images, pixels)
        assert torch.equal(images.load().labels[chosen], labels)
        found += chosen
    return found
