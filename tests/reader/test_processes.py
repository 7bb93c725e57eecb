"""A stream that other numbers of processes take up: real ones, each with its own rank, cache and threads."""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nisynth.commits.records import ManifestRow
from nisynth.errors import NisynthError, StorageError
from nisynth.reader import follow as follow_module
from nisynth.reader import open_dataset
from tests.reader.runs import make_run

NUM_IMAGES = 2048
# (processes, images a batch, steps); the first epoch ends after the third
PHASES = ((8, 256, 3), (2, 128, 5), (8, 128, 5), (8, 256, 2))
State = dict[str, Any] | None


def read(
    url: str, cache: Path, rank: int, world_size: int, batch_size: int, steps: int, state: State
) -> tuple[State, list[np.ndarray]]:
    """Returns where one process stands after its part of some steps, and the pixels of each part."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    stream = open_dataset(url, cache=cache).stream(batch_size, seed=3, window=700)
    if state is not None:
        stream.load_state_dict(state)
    parts = [pixels.numpy() for pixels, _ in itertools.islice(stream, steps)]
    return stream.state_dict(), parts


@pytest.fixture
def processes() -> Iterator[ProcessPoolExecutor]:
    context = get_context("forkserver")  # torch is imported once
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(8, context) as pool:
        yield pool


def test_8_processes_become_2_and_8_again_and_the_batch_changes_in_mid_epoch(
    tmp_path: Path, processes: ProcessPoolExecutor
) -> None:
    """Image by image, what they read together is what one process reads that nothing interrupts."""
    url = make_run(tmp_path, run={"num_images": NUM_IMAGES, "batch_size": 64}).store.url
    alone = open_dataset(url, cache=False).stream(128, seed=3, window=700, rank=0, world_size=1)
    expected = [pixels.numpy() for _ in range(2) for pixels, _ in alone]
    read_so_far, state = 0, None
    for world_size, batch_size, steps in PHASES:
        ranks = [
            processes.submit(read, url, tmp_path / "cache", rank, world_size, batch_size, steps, state)
            for rank in range(world_size)
        ]
        states, parts = zip(*(rank.result() for rank in ranks), strict=True)
        assert all(other == states[0] for other in states)
        state = states[0]
        for step in zip(*parts, strict=True):
            assert {len(part) for part in step} == {batch_size // world_size}
            together = np.concatenate(step)
            halves = expected[read_so_far // 128 : (read_so_far + batch_size) // 128]
            if batch_size == 128:
                assert np.array_equal(together, halves[0])
            assert images(together) == images(np.concatenate(halves))
            read_so_far += batch_size
    assert read_so_far == NUM_IMAGES + 512


def follow(url: str, rank: int, rendezvous: str) -> str:
    """Returns what a rank says that follows a run; the second one has no storage."""
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    try:
        if rank == 1:
            follow_module.read_commits = lost_storage  # type: ignore[attr-defined]
        return f"{len(open_dataset(url, cache=False, follow=True))} images"
    except NisynthError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        torch.distributed.destroy_process_group()


def lost_storage(*_: object) -> list[ManifestRow]:
    raise StorageError("the storage does not answer")


def test_a_rank_that_fails_alone_ends_the_others_at_once(
    tmp_path: Path, processes: ProcessPoolExecutor
) -> None:
    url = make_run(tmp_path, tasks=range(4)).store.url
    ranks = [processes.submit(follow, url, rank, f"file://{tmp_path / 'rendezvous'}") for rank in range(2)]
    assert [rank.result(timeout=120) for rank in ranks] == [
        "IncompleteRun: rank 1 could not read what the others did: StorageError: the storage does not answer",
        "StorageError: the storage does not answer",
    ]


def images(pixels: np.ndarray) -> list[bytes]:
    """Returns the images without their order: within a batch, it is that of the lanes."""
    return sorted(image.tobytes() for image in pixels)
