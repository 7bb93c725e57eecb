"""A store, a network and a disk that go wrong while a stream reads: no image is lost, none is a wrong one."""

import itertools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from nisynth.commits.records import commit_key
from nisynth.errors import DataError, StorageError
from nisynth.reader import open_dataset
from tests.disks import run_on_small_disk
from tests.faults import Fault, FaultProxy
from tests.reader.runs import NUM_IMAGES, make_run, numbers, open_run, shown
from tests.tiny import commit_all

SHARDS = 13


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "GET", "data/", times=3, status=500),
        Fault("status", "GET", "data/", times=2, status=503, code="SlowDown"),
        Fault("dropped", "GET", "data/", times=2),
        Fault("truncated", "GET", "data/", times=2),
        Fault("corrupted", "GET", "data/", times=1),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_a_passing_fault_changes_nothing(
    tmp_path: Path, s3_url: str, proxy: FaultProxy, fault: Fault
) -> None:
    images = open_run(make_run(tmp_path, s3_url), tmp_path)
    proxy.clear()
    proxy.inject(fault)
    assert sorted(shown(images, images.stream(4))) == list(range(NUM_IMAGES))
    assert proxy.count("GET", fault.kind) == fault.times


def test_each_shard_is_fetched_once_and_a_second_epoch_asks_for_nothing(
    tmp_path: Path, s3_url: str, proxy: FaultProxy
) -> None:
    run = make_run(tmp_path, s3_url)
    proxy.clear()
    streams = [
        open_run(run, tmp_path).stream(4, rank=rank, world_size=2, seed=1, lanes=4) for rank in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(lambda stream: len(list(stream)), streams)) == 2 * len(streams[0])
    keys = [seen.key for seen in proxy.seen if seen.verb == "GET" and "data/" in seen.key]
    assert len(keys) == len(set(keys)) == SHARDS
    proxy.clear()
    for stream in streams:
        list(stream)
    assert proxy.seen == []


def test_a_shard_that_fails_is_raised_at_its_batch_and_the_state_before_resumes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    images = open_run(run, tmp_path)
    path = Path(run.store.url) / images.shards[5].shard
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + b"x")
    stream = images.stream(4, shuffle=False)
    found: list[int] = []
    steps = (found.append(len(labels)) for _, labels in stream)
    with pytest.raises(DataError, match=r"is damaged: its sha256 differs from its commit's.*redo .*--task 5"):
        list(steps)
    assert len(found) == 10  # shards of 8 images: the 11th batch of 4 needs the sixth
    assert stream.state_dict()["position"] == 40
    path.write_bytes(sound)
    assert shown(images, stream) == list(range(40, NUM_IMAGES))


def test_a_server_that_is_down_is_a_storage_error_and_the_stream_goes_on_when_it_is_back(
    tmp_path: Path, s3_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_run(make_run(tmp_path, s3_url), tmp_path)
    stream = images.stream(4, shuffle=False, threads=1, prefetch_bytes=1)
    first = list(itertools.islice(stream, 2))
    proxy.inject(Fault("status", None, "data/", times=None, status=403, code="AccessDenied"))
    with pytest.raises(StorageError, match="data/"):
        list(stream)
    position = stream.state_dict()["position"]
    assert position >= 8
    proxy.clear()
    rest = list(stream)
    assert len(first) * 4 + sum(len(labels) for _, labels in rest) <= NUM_IMAGES
    assert numbers(images, rest[0][0])[0] == position


def test_a_shard_that_was_redone_since_the_opening_says_to_open_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    images = open_run(run, tmp_path)
    run.store.delete(commit_key(run.plan.fp12, 4))
    run.store.delete(images.shards[4].shard)
    commit_all(run, [4])
    with pytest.raises(DataError, match="task 4 was redone since the run was opened; open it again"):
        list(images.stream(4))


def test_a_shard_that_is_gone_is_named_with_its_cure(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    images = open_run(run, tmp_path)
    run.store.delete(images.shards[4].shard)
    with pytest.raises(DataError, match=r"is missing; .*redo .*--task 4"):
        list(images.stream(4))


def test_damage_in_the_cache_is_mended_and_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    open_run(run, tmp_path).warm()
    files = sorted((tmp_path / "cache").glob("u8/*/*.npy"))
    assert len(files) == SHARDS
    for path in files[:3]:
        path.write_bytes(path.read_bytes()[:-1])
    images = open_run(run, tmp_path)
    stream = images.stream(4)
    assert sorted(shown(open_dataset(run.store.url, cache=False), stream)) == list(range(NUM_IMAGES))
    assert (stream.stats.damaged, stream.stats.cache_hits) == (3, SHARDS - 3)


ON_SMALL_DISK = """
import logging, sys
from nisynth.reader import open_dataset
images = open_dataset(sys.argv[1], cache=sys.argv[2], cache_bytes=10**9)
stream = images.stream(4)
for _ in range(2):
    assert sum(len(labels) for _, labels in stream) == 100
print(stream.stats.cache_hits, stream.stats.fetched_bytes)
"""


def test_a_full_disk_is_said_once_and_memory_takes_over(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    command = [sys.executable, "-c", ON_SMALL_DISK, run.store.url, str(tmp_path / "disk")]
    done = run_on_small_disk(command, tmp_path / "disk", size="48k")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot store more shards") == 1
    size = sum(row.bytes for row in open_run(run, tmp_path).shards)
    assert int(done.stdout.split()[1]) == size  # the second epoch decoded nothing anew


KILLED = """
import os, signal, sys
from nisynth.reader import open_dataset
stream = open_dataset(sys.argv[1], cache=sys.argv[2]).stream(4)
for number, _ in enumerate(stream):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_reader_blocks_nobody(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    command = [sys.executable, "-c", KILLED, run.store.url, str(tmp_path / "cache")]
    for _ in range(2):
        assert subprocess.run(command).returncode == -9
    images = open_run(run, tmp_path)
    assert sorted(shown(images, images.stream(4))) == list(range(NUM_IMAGES))


def test_a_loop_that_ends_early_or_raises_leaves_no_thread(tmp_path: Path) -> None:
    images = open_run(make_run(tmp_path), tmp_path)

    def spoiled() -> None:
        for _ in images.stream(4):
            raise ValueError("the training's own")

    with pytest.raises(ValueError, match="the training's own"):
        spoiled()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nisynth-")]


def test_damage_at_the_store_is_named_without_a_cache_too(tmp_path: Path, s3_url: str) -> None:
    run = make_run(tmp_path, s3_url)
    images = open_dataset(s3_url, cache=False)
    run.store.put(images.shards[0].shard, b"x" * images.shards[0].bytes)
    with pytest.raises(DataError, match=r"redo .*--task 0"):
        list(images.stream(4))
    assert torch.equal(images.read_shard(1).labels, images.targets[8:16])
