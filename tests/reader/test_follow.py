"""Reading a run while it grows: each epoch exactly once, all ranks alike, and a resume inside a view."""

import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nisynth.commits import Run
from nisynth.commits.records import commit_key
from nisynth.commits.seal import seal, unseal
from nisynth.errors import ConfigError, DataError, IncompleteRun
from nisynth.reader import FollowConfig, SyntheticDataset
from nisynth.reader.view import pack, unpack
from tests.reader.runs import make_run, open_run, shown
from tests.tiny import commit_all

SHARDS = 13


class World:
    """A clock that moves only when somebody sleeps, and what happens meanwhile."""

    def __init__(self, *events: Callable[[], object]) -> None:
        self.now_s, self.events = 0.0, list(events)

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.events:
            self.events.pop(0)()


def follow(run: Run, tmp_path: Path, world: World | None = None, **options: Any) -> SyntheticDataset:
    world = world or World()
    config = FollowConfig(clock=world.clock, sleep=world.sleep, **options)
    return open_run(run, tmp_path, follow=config)


def tasks(images: SyntheticDataset) -> list[int]:
    return [row.task for row in images.shards]


def epoch(images: SyntheticDataset, stream: Any) -> list[int]:
    """Reads an epoch and returns its images' numbers; the set in memory is that of the view."""
    pixels = list(stream)
    images.load()
    return sorted(shown(images, pixels))


def test_views_grow_between_epochs_and_end_with_the_sealed_set(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[0, 1, 2])
    images = follow(run, tmp_path)
    stream = images.stream(4, seed=3, drop_last=False)
    assert (tasks(images), images.complete, images.follows) == ([0, 1, 2], False, True)
    sizes = []
    growth = {0: [5, 7], 1: [], 2: [t for t in range(SHARDS) if t not in (0, 1, 2, 5, 7)]}
    for number in images.epochs(until="sealed"):
        assert stream.epoch == number
        iterator = iter(stream)
        first = next(iterator)
        commit_all(run, growth.get(number, []))  # in the middle of an epoch: for the next one
        if number == 2:
            seal(run)
        pixels = [first, *iterator]
        assert sum(len(labels) for _, labels in pixels) == len(images)
        sizes.append(len(images.shards))
    assert sizes == [3, 5, 5, SHARDS]
    assert images.complete
    assert images.seen[0] == 4
    assert images.seen[5] == 3
    assert images.seen[12] == 1


def test_a_writer_beside_the_reader_and_each_epoch_exactly_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[0])

    def write() -> None:
        commit_all(run, range(1, SHARDS))
        seal(run)

    images = follow(run, tmp_path)
    stream = images.stream(4, seed=3, drop_last=False)
    writer = threading.Thread(target=write)
    writer.start()
    before = 0
    for _ in images.epochs(until="sealed"):
        assert epoch(images, stream) == list(range(len(images)))
        assert len(images) >= before
        before = len(images)
    writer.join()
    assert (len(images), images.complete) == (100, True)


def test_a_resume_reads_the_same_view_although_more_is_there(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[0, 3, 4, 9])
    images = follow(run, tmp_path)
    stream = images.stream(4, seed=3)
    iterator = iter(stream)
    read = [next(iterator) for _ in range(3)]
    state = json.loads(json.dumps(stream.state_dict()))
    rest = list(iterator)
    assert len(json.dumps(state)) < 1000
    commit_all(run, [1, 2])
    resumed_images = follow(run, tmp_path)
    assert len(resumed_images.shards) == 6
    resumed = resumed_images.stream(4)
    resumed.load_state_dict(state)
    assert tasks(resumed_images) == [0, 3, 4, 9]
    again = list(resumed)
    assert len(read) + len(again) == len(stream)
    assert [labels.tolist() for _, labels in again] == [labels.tolist() for _, labels in rest]
    list(resumed)
    assert tasks(resumed_images) == [0, 1, 2, 3, 4, 9]
    assert (resumed_images.seen[0], resumed_images.seen[1]) == (2, 1)


def test_a_shard_of_the_view_that_was_redone_or_taken_back_refuses_the_resume(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[0, 3])
    stream = follow(run, tmp_path).stream(4)
    next(iter(stream))
    state = stream.state_dict()
    run.store.delete(commit_key(run.plan.fp12, 3))
    with pytest.raises(DataError, match="task 3 of the view is no longer committed"):
        follow(run, tmp_path).stream(4).load_state_dict(state)
    for damage in ("", "!", "eJw=", pack({1: 0})[:-4]):
        with pytest.raises(DataError, match="`view` is damaged"):
            follow(run, tmp_path).stream(4).load_state_dict(state | {"view": damage})
    with pytest.raises(DataError, match="open it with follow=True"):
        open_run(run, tmp_path, allow_partial=True).stream(4).load_state_dict(state)


def test_a_task_that_was_redone_joins_anew_and_one_that_vanished_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, tasks=[0, 1, 2])
    images = follow(run, tmp_path)
    stream = images.stream(4, drop_last=False)
    first = {row.task: row.shard for row in images.shards}
    for task in (1, 2):
        run.store.delete(commit_key(run.plan.fp12, task))
        run.store.delete(first[task])
    commit_all(run, [1])
    assert epoch(images, stream) == list(range(16))
    assert tasks(images) == [0, 1]
    assert images.shards[1].shard != first[1]
    assert "task 2 was taken back" in caplog.text


def test_it_waits_for_enough_images_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path, tasks=[])
    world = World(*(lambda task=task: commit_all(run, [task]) for task in range(5)))
    images = follow(run, tmp_path, world, min_images=32, poll_s=7)
    assert len(images) == 32
    assert world.now_s == 28
    assert "waiting for images, 8 of 32 are committed" in caplog.text


def test_a_stalled_run_goes_on_with_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path, tasks=[0])
    world = World(lambda: commit_all(run, [1]))
    images = follow(run, tmp_path, world, min_images=1000, poll_s=10, stall_s=100)
    assert len(images) == 16
    assert world.now_s == 110
    assert "no commit within 100 s" in caplog.text


def test_a_run_that_never_begins_is_incomplete(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[])
    with pytest.raises(IncompleteRun, match="nothing was committed within 100 s"):
        follow(run, tmp_path, poll_s=10, stall_s=100)


def test_a_sealed_run_is_not_looked_at_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    images = follow(run, tmp_path, min_images=10**9)
    unseal(run)
    assert epoch(images, images.stream(4, drop_last=False)) == list(range(100))
    assert images.complete


def test_followers_stay_in_their_process(tmp_path: Path) -> None:
    images = follow(make_run(tmp_path), tmp_path)
    with pytest.raises(ConfigError, match="cannot be sent to another process"):
        multiprocessing.reduction.ForkingPickler.dumps(images)
    for options in ({"min_images": 0}, {"poll_s": 0.0}, {"stall_s": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            FollowConfig(**options)


def test_tasks_are_packed_into_few_bytes() -> None:
    for joined in ({7: 0}, {0: 0, 1: 3, 99_999_999: 2}, {task: task // 30 for task in range(1000)}):
        assert unpack(pack(joined)) == joined
    assert len(pack({task: task // 30 for task in range(1000)})) < 700


def test_ranks_that_cannot_agree_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, tasks=[0])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 ranks must agree"):
        follow(run, tmp_path)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_waits_by_itself_between_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """A rank that waited in a collective while rank 0 sleeps would run into the group's timeout."""
    run = make_run(tmp_path, tasks=[0])
    content = follow(run, tmp_path).content_sha256
    answers: list[tuple[Any, ...]] = [(), (), ([0], content, False)]
    told = []

    def broadcast(chosen: list[Any], src: int) -> None:
        if rank == 1:
            chosen[0] = answers[len(told)]
        told.append(chosen[0])

    for name, value in {"is_initialized": True, "get_rank": rank, "get_world_size": 2}.items():
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda problems, mine: None)
    # Rank 0 has enough after its second sleep, rank 1 is told so.
    world = World(lambda: commit_all(run, [1]), lambda: commit_all(run, [2]))
    images = follow(run, tmp_path, world, min_images=24 if rank == 0 else 8, poll_s=7)
    assert told[:2] == [(), ()]
    assert (len(told), world.now_s) == (3, 14)
    assert tasks(images) == ([0, 1, 2] if rank == 0 else [0])


RANK = """
import sys
import torch.distributed as dist
from nisynth.reader import open_dataset
url, cache, rank, init = sys.argv[1:]
dist.init_process_group("gloo", init_method=init, rank=int(rank), world_size=2)
images = open_dataset(url, cache=cache, follow=True)
stream = images.stream(4, seed=1)
seen = []
for epoch in images.epochs(until="sealed"):
    steps = 0
    for _ in stream:
        steps += 1
        if steps == 1:
            dist.barrier()
            if rank == "0" and epoch == 0:
                from nisynth.commits import Run
                from nisynth.commits.seal import seal
                from nisynth.storage import open_store
                from tests.tiny import commit_all
                run = Run.open(open_store(url))
                commit_all(run, range(4, 13))
                seal(run)
    seen.append((len(images), steps))
    dist.barrier()
dist.destroy_process_group()
print(seen)
"""


def test_two_ranks_agree_on_every_view(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=range(4))
    init = f"file://{tmp_path / 'rendezvous'}"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, run.store.url, str(tmp_path / "cache"), str(rank), init],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert outputs[0] == outputs[1] == "[(32, 8), (100, 25)]\n"
