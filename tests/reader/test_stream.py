"""The stream and the sampler: one sequence for any cluster, and a resume that goes on at the next image."""

import contextlib
import itertools
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import nisynth
from nisynth.errors import ConfigError, DataError
from nisynth.reader import SyntheticDataset, open_dataset
from nisynth.reader.source import Stats
from tests.reader.runs import NUM_IMAGES, make_run, numbers, open_run, shown

torchdata = pytest.importorskip("torchdata.stateful_dataloader")
ORDER: dict[str, Any] = {"seed": 5, "window": 48, "lanes": 4}


@pytest.fixture
def images(tmp_path: Path) -> SyntheticDataset:
    return open_run(make_run(tmp_path), tmp_path)


@pytest.fixture
def whole(images: SyntheticDataset) -> list[int]:
    """Two epochs of one process, in batches of 4: all 100 images each."""
    stream = images.stream(4, **ORDER)
    return shown(images, stream) + shown(images, stream)


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(
    images: SyntheticDataset, whole: list[int]
) -> None:
    first, second = whole[:NUM_IMAGES], whole[NUM_IMAGES:]
    assert sorted(first) == sorted(second) == list(range(NUM_IMAGES))
    assert first != second
    again = images.stream(4, **ORDER)
    again.set_epoch(1)
    assert shown(images, again) == second


def test_batches_are_tensors_of_ones_own(images: SyntheticDataset) -> None:
    stream = images.stream(8, shuffle=False)
    batches = list(stream)
    assert len(stream) == len(batches) == NUM_IMAGES // 8
    pixels, labels = batches[0]
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (8, 3, 16, 16))
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (8,))
    pixels.zero_()
    labels.fill_(-1)
    stream.set_epoch(0)
    assert torch.equal(next(iter(stream))[0], images.load().pixels[:8])
    assert shown(images, images.stream(8, shuffle=False, drop_last=False)) == list(range(NUM_IMAGES))


def ranks(images: SyntheticDataset, world_size: int, batch_size: int, **options: Any) -> list[Any]:
    return [
        images.stream(batch_size, rank=rank, world_size=world_size, **ORDER, **options)
        for rank in range(world_size)
    ]


def together(images: SyntheticDataset, streams: list[Any], steps: int) -> list[set[int]]:
    """Returns what the ranks read in each of the next steps; every rank reads the same number."""
    parts = [[numbers(images, pixels) for pixels, _ in itertools.islice(s, steps)] for s in streams]
    assert len({tuple(map(len, part)) for part in parts}) == 1
    return [{image for own in step for image in own} for step in zip(*parts, strict=True)]


def test_8_ranks_become_2_and_8_again_and_the_batch_changes_in_mid_epoch(
    images: SyntheticDataset, whole: list[int]
) -> None:
    """The concatenation is the uninterrupted run's, batch by batch, over two epochs."""
    position = 0
    state: dict[str, Any] | None = None
    # (ranks, images a batch, steps): 100 images, and then 44 of the second epoch
    for world_size, batch_size, steps in ((8, 16, 2), (2, 8, 5), (8, 8, 2), (2, 4, 3), (8, 8, 3), (1, 2, 10)):
        streams = ranks(images, world_size, batch_size)
        for stream in streams:
            if state is not None:
                stream.load_state_dict(json.loads(json.dumps(state)))
        for step in together(images, streams, steps):
            assert step == set(whole[position : position + batch_size])
            position += batch_size
        states = [stream.state_dict() for stream in streams]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert position == NUM_IMAGES + 44


@pytest.mark.parametrize("taken", [0, 1, 7, 24, 25])
def test_a_state_taken_anywhere_resumes_at_the_next_image(
    images: SyntheticDataset, whole: list[int], taken: int
) -> None:
    stream = images.stream(4, **ORDER)
    before = shown(images, itertools.islice(stream, taken))
    assert before == whole[: 4 * taken]
    state = json.loads(json.dumps(stream.state_dict()))
    assert state == stream.state_dict()
    assert len(json.dumps(state)) < 1000
    resumed = images.stream(4)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # right after a load, and before anything was read
    left = shown(images, resumed) + shown(images, resumed)
    assert left[: len(whole) - len(before)] == whole[len(before) :]


def test_a_break_goes_on_where_it_stopped_and_prefetched_batches_do_not_count(
    images: SyntheticDataset, whole: list[int]
) -> None:
    stream = images.stream(4, **ORDER)
    found: list[int] = []
    while len(found) < NUM_IMAGES:
        for pixels, _ in stream:
            found += numbers(images, pixels)
            assert stream.state_dict()["position"] == len(found) % NUM_IMAGES
            break
    assert found == whole[:NUM_IMAGES]
    assert stream.epoch == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nisynth-")]


def test_what_is_less_than_a_batch_after_a_resume_is_left_to_the_next_epoch(images: SyntheticDataset) -> None:
    stream = images.stream(4, **ORDER)
    list(itertools.islice(stream, 24))
    larger = images.stream(32)
    larger.load_state_dict(stream.state_dict())
    assert list(larger) == []
    assert len(list(larger)) == 3


def test_a_state_of_another_set_or_version_is_refused(tmp_path: Path, images: SyntheticDataset) -> None:
    state = images.stream(4).state_dict()
    other = open_run(make_run(tmp_path, str(tmp_path / "other"), run={"num_images": 96}), tmp_path)
    with pytest.raises(
        DataError, match=r"not the one this state was saved on.* 100 images there, .* 96 here"
    ):
        other.stream(4).load_state_dict(state)
    for changed, words in (
        ({"version": 2}, "version 2"),
        ({"order": "other"}, "of 'other'"),
        ({"position": -1}, "position"),
        ({"position": True}, "position is wrong"),
        ({"lanes": 0}, "lanes 0"),
        ({"seed": "5"}, "seed is wrong"),
    ):
        with pytest.raises((DataError, ConfigError), match=words):
            images.stream(4).load_state_dict(state | changed)
    with pytest.raises(DataError, match="not one of `state_dict"):
        images.stream(4).load_state_dict({})


def test_other_settings_than_the_states_are_replaced_and_said(
    images: SyntheticDataset, caplog: pytest.LogCaptureFixture
) -> None:
    stream = images.stream(4, **ORDER)
    resumed = images.stream(4, seed=6)
    resumed.load_state_dict(stream.state_dict())
    assert "saved with seed, lanes, window, shuffle (5, 4, 48, True)" in caplog.text
    assert shown(images, resumed) == shown(images, stream)


def test_what_cannot_be_divided_or_read_is_refused(images: SyntheticDataset) -> None:
    for options, words in (
        ({"batch_size": 6, "rank": 0, "world_size": 4}, "not a multiple of the world size 4"),
        ({"batch_size": 4, "rank": 1}, "give both or neither"),
        ({"batch_size": 128}, "no step"),
        ({"batch_size": 4, "threads": 0}, "threads: 0"),
        ({"batch_size": 4, "window": -1}, "window -1"),
    ):
        with pytest.raises(ConfigError, match=words):
            images.stream(**options)


def test_ranks_come_from_the_environment(images: SyntheticDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "rank 1 of 2" in repr(images.stream(4))
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="RANK='one'"):
        images.stream(4)


def test_a_stream_in_a_loaders_workers_is_refused(images: SyntheticDataset) -> None:
    stream = images.stream(4)
    assert len(list(DataLoader(stream, batch_size=None))) == 25
    with pytest.raises(Exception, match=r"use images\.sampler"):
        list(DataLoader(stream, batch_size=None, num_workers=1))


@pytest.mark.parametrize("workers", [("fork", 0), ("fork", 1), ("spawn", 2)], ids=["0", "1 fork", "2 spawn"])
def test_a_loader_shows_the_streams_order(
    images: SyntheticDataset, whole: list[int], workers: tuple[str, int]
) -> None:
    method, count = workers
    loader = DataLoader(
        images,
        batch_sampler=images.sampler(4, **ORDER),
        num_workers=count,
        collate_fn=nisynth.collate,
        multiprocessing_context=method if count else None,
    )
    assert len(loader) == 25
    assert shown(images, loader) + shown(images, loader) == whole


def stateful(images: SyntheticDataset, batch_size: int, workers: int) -> Any:
    return torchdata.StatefulDataLoader(
        images,
        batch_sampler=images.sampler(batch_size, **ORDER),
        num_workers=workers,
        collate_fn=nisynth.collate,
        multiprocessing_context="fork" if workers else None,
    )


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated", "ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_stateful_loader_resumes_exactly(images: SyntheticDataset, whole: list[int], workers: int) -> None:
    """torchdata itself wants the same number of workers again; each number gives the one sequence."""
    found: list[int] = []
    state = None
    for steps in (3, 9, 13):
        loader = stateful(images, 4, workers)
        if state is not None:
            loader.load_state_dict(state)
        batches: Iterator[Any] = iter(loader)
        found += shown(images, itertools.islice(batches, steps))
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        del batches
    assert found == whole[:NUM_IMAGES]


def test_a_loader_without_our_collate_gives_the_same(images: SyntheticDataset) -> None:
    ours = list(DataLoader(images, batch_size=7, collate_fn=nisynth.collate))
    default = list(DataLoader(images, batch_size=7))
    for (pixels, labels), (others, their_labels) in zip(ours, default, strict=True):
        assert torch.equal(pixels, others)
        assert torch.equal(labels, their_labels)


def test_slices_lists_transforms_and_targets(tmp_path: Path, images: SyntheticDataset) -> None:
    lazy = open_dataset(images.url, cache=tmp_path / "cache")
    whole = images.load()
    pixels, labels = whole.pixels, whole.labels
    assert "in memory" in repr(images)
    assert "in memory" not in repr(lazy)
    assert torch.equal(lazy.targets, labels)
    for ds in (lazy, images):
        assert torch.equal(ds[10:20:3].pixels, pixels[10:20:3])
        assert torch.equal(ds.__getitems__([5, 99, 5]).labels, labels[[5, 99, 5]])
        assert torch.equal(ds[-1][0], pixels[-1])
        assert [label for _, label in ds[:3]] == labels[:3].tolist()
        assert torch.equal(ds[:4][1:3].pixels, pixels[1:3])
    changed = open_dataset(images.url, cache=tmp_path / "cache", transform=lambda image: image.float() / 255)
    assert torch.equal(changed[3][0], pixels[3].float() / 255)
    batch, _ = next(iter(DataLoader(changed, batch_size=5, collate_fn=nisynth.collate)))
    assert torch.equal(batch, pixels[:5].float() / 255)


def test_an_order_that_fits_no_memory_reads_the_same(tmp_path: Path, images: SyntheticDataset) -> None:
    """No cache, and memory for one shard: everything is decoded again, and nothing is wrong."""
    poor = open_dataset(images.url, cache=False, ram_bytes=1)
    assert shown(images, poor.stream(4, **ORDER)) == shown(images, images.stream(4, **ORDER))
    assert poor.source.stats.fetched_bytes > images.source.stats.fetched_bytes


def test_stats_and_the_second_epoch_fetches_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    images = open_run(run, tmp_path)
    stream = images.stream(4)
    list(stream)
    size = sum(row.bytes for row in images.shards)
    assert (stream.stats.images, stream.stats.fetched_bytes) == (NUM_IMAGES, size)
    list(stream)
    assert (stream.stats.images, stream.stats.fetched_bytes) == (2 * NUM_IMAGES, size)
    warm = open_run(run, tmp_path)
    warm.warm()
    assert (warm.source.stats.fetched_bytes, warm.source.stats.cache_hits) == (0, 13)


class Meeting(Stats):
    """Counts in which a thread that has read `images` waits for another that reads it, too, if one can."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2)
        super().__init__()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name == "images":
            with contextlib.suppress(threading.BrokenBarrierError):
                self.both.wait(timeout=0.5)
        return found


def test_streams_of_several_threads_count_together(images: SyntheticDataset) -> None:
    images.source.stats = Meeting()
    threads = [threading.Thread(target=next, args=(iter(images.stream(8)),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert images.source.stats.images == 16


@pytest.mark.parametrize(
    ("waited_s", "epoch_s", "said"), [(1.9, 2, False), (3, 100, False), (6, 100, True), (3, 4, True)]
)
def test_a_caller_who_waits_hears_of_it_once(
    images: SyntheticDataset, caplog: pytest.LogCaptureFixture, waited_s: float, epoch_s: float, said: bool
) -> None:
    stream = images.stream(4)
    for _ in range(2):
        stream._say_if_slow(waited_s, epoch_s)
    assert caplog.text.count("waited") == said


def test_npz_shards_that_differ_in_how_floats_become_pixels_are_kept_apart(tmp_path: Path) -> None:
    """Their files are equal; what is cached of them is not."""
    sets = []
    for how in ("clamp", "minmax"):
        run = make_run(tmp_path, str(tmp_path / how), output={"format": "npz", "pixels": how})
        images = open_run(run, tmp_path)
        sets.append(torch.cat([pixels for pixels, _ in images.stream(4, shuffle=False)]))
        assert torch.equal(sets[-1], open_dataset(run.store.url, cache=False).load().pixels)
    assert not torch.equal(*sets)
