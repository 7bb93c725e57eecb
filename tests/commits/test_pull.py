"""A copy that is a run at any time, that is fetched once, and that is never mixed with anything else."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from nisynth import open_dataset
from nisynth.commits import Commit, Run
from nisynth.commits.audit import redo, verify
from nisynth.commits.pull import pull
from nisynth.commits.records import commit_key
from nisynth.commits.status import status
from nisynth.errors import ConfigError, DataError, IncompleteRun, PlanMismatch, StorageError
from nisynth.storage import open_store
from tests.disks import forbid_links
from tests.sources import (
    TASKS,
    Source,
    contents,
    flipped,
    forge,
    is_sound,
    make_run,
    shard_of,
    source_of,
)
from tests.tiny import commit_all, fake_commit, keys

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("format_", ["parquet", "npz"])
def test_the_copy_is_the_run_object_for_object(tmp_path: Path, format_: str) -> None:
    run = make_run(tmp_path, output={"format": format_})
    told: list[tuple[int, int]] = []
    done = pull(run.store, str(tmp_path / "copy"), on_checked=lambda *now: told.append(now))
    copy = open_store(str(tmp_path / "copy"))
    assert contents(copy) == contents(run.store)
    assert not list((tmp_path / "copy/.tmp").iterdir())
    assert (done.shards, done.fetched, done.images, done.complete) == (TASKS, TASKS, 22, True)
    assert done.fetched_bytes == sum(info.size_bytes for info in copy.list("data/"))
    assert told == [(number, TASKS) for number in range(TASKS + 1)]


def test_the_copy_opens_as_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    pull(run.store, str(tmp_path / "copy"))
    opened = Run.open(open_store(str(tmp_path / "copy")))
    assert verify(opened, deep=True).problems == ()
    found = status(opened)
    assert (found.complete, found.committed, found.images) == (True, TASKS, 22)
    assert torch.equal(
        open_dataset(str(tmp_path / "copy")).load().pixels, open_dataset(run.store.url).load().pixels
    )


def test_the_copy_may_lie_on_a_disk_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    forbid_links(monkeypatch, errno.EPERM)
    assert pull(run.store, str(tmp_path / "copy")).complete
    assert contents(open_store(str(tmp_path / "copy"))) == contents(run.store)
    assert pull(run.store, str(tmp_path / "copy")).fetched == 0


def test_a_second_pull_fetches_no_shard(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    pull(run.store, str(tmp_path / "copy"))
    before = contents(open_store(str(tmp_path / "copy")))
    source_of(run).gets.clear()
    again = pull(run.store, f"file://{tmp_path / 'copy'}")
    assert (again.fetched, again.fetched_bytes, again.shards, again.complete) == (0, 0, TASKS, True)
    assert source_of(run).shard_gets() == 0
    assert contents(open_store(str(tmp_path / "copy"))) == before


@pytest.mark.parametrize("damage", [flipped, lambda data: data[:-9], lambda data: b""])
def test_what_is_damaged_in_the_copy_is_fetched_again_and_only_that(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    run = make_run(tmp_path)
    pull(run.store, str(tmp_path / "copy"))
    shard = tmp_path / "copy" / shard_of(run, 3)
    shard.write_bytes(damage(shard.read_bytes()))
    source_of(run).gets.clear()
    assert pull(run.store, str(tmp_path / "copy")).fetched == 1
    assert source_of(run).shard_gets() == 1
    assert is_sound(tmp_path / "copy")


def test_a_source_that_dies_at_any_get_costs_only_what_was_in_flight(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    source = source_of(run)
    for dies_after in range(1 + 2 * TASKS):
        folder = tmp_path / f"copy{dies_after}"
        source.gets.clear()
        source.dies_after = dies_after
        with pytest.raises(StorageError, match="the server is gone"):
            pull(source, str(folder), workers=1)
        if dies_after:  # a plan and any part of the commits: a run that is not complete
            begun = Run.open(open_store(str(folder)))
            assert verify(begun, deep=True).problems == ()
            assert not begun.is_sealed()
            there = len(keys(begun.store, "data/"))
        else:
            there = 0
        source.gets.clear()
        source.dies_after = 10**9
        assert pull(source, str(folder)).fetched == TASKS - there
        assert source.shard_gets() == TASKS - there
        assert is_sound(folder)


PULLER = """
import itertools, os, pathlib, sys
from nisynth.commits.pull import pull
from nisynth.storage import open_store
from nisynth.storage.local import LocalStore
stop, source, folder, k = sys.argv[1:5]
owner, name = {"get": (LocalStore, "get"), "link": (os, "link"), "unlink": (pathlib.Path, "unlink")}[stop]
real, calls = getattr(owner, name), itertools.count(1)
def stops(*arguments, **options):
    wanted = stop != "get" or (arguments[0].url == source and arguments[1].startswith("data/"))
    if wanted and next(calls) == int(k):
        print("here", flush=True)
        sys.stdin.read()
    return real(*arguments, **options)
setattr(owner, name, stops)
pull(open_store(source), folder, workers=2)
"""


@pytest.mark.parametrize(("stop", "k"), [("get", 3), ("link", 6), ("unlink", 7)])
def test_kill_9_and_pull_again(tmp_path: Path, stop: str, k: int) -> None:
    """Killed in the k-th fetch of a shard; before the k-th object gets its name; after it has it."""
    made = make_run(tmp_path)
    pull(made.store, str(tmp_path / "source"))
    command = [sys.executable, "-c", PULLER, stop, str(tmp_path / "source"), str(tmp_path / "copy"), str(k)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.kill()
    begun = Run.open(open_store(str(tmp_path / "copy")))
    assert not begun.is_sealed()
    assert verify(begun, deep=True).problems == ()
    there = len(keys(begun.store, "data/"))
    assert there < TASKS
    source_of(made).gets.clear()
    assert pull(made.store, str(tmp_path / "copy")).fetched == TASKS - there
    assert source_of(made).shard_gets() == TASKS - there
    assert is_sound(tmp_path / "copy")


def test_no_more_shards_are_in_memory_than_workers(tmp_path: Path) -> None:
    run = make_run(tmp_path, run={"num_images": 4 * 40})
    lock, now, most = threading.Lock(), [0], [0]
    both = threading.Barrier(2, timeout=60)

    class Counting(Source):
        def get(self, key: str, max_bytes: int | None = None) -> bytes:
            if not key.startswith("data/"):
                return super().get(key, max_bytes)
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            both.wait()  # passes only when two fetch at once
            with lock:
                now[0] -= 1
            return super().get(key, max_bytes)

    source = Counting()
    source.url = run.store.url
    assert pull(source, str(tmp_path / "copy"), workers=2).complete
    assert most[0] == 2


def test_a_mismatch_on_the_way_is_fetched_once_more(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shard = shard_of(run, 2)
    source_of(run).answers[shard] = [flipped(run.store.get(shard))]
    assert pull(run.store, str(tmp_path / "copy")).complete
    assert is_sound(tmp_path / "copy")


def test_a_damaged_shard_is_named_never_shown_and_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shard = shard_of(run, 2)
    run.store.put(shard, flipped(run.store.get(shard)))
    source_of(run).gets.clear()
    wrong = "is damaged: its sha256 differs from its commit's, in 2 fetches"
    with pytest.raises(DataError, match=rf"{shard}: {wrong}; .*redo {run.store.url} --task 2"):
        pull(run.store, str(tmp_path / "copy"))
    assert source_of(run).gets[shard] == 2
    assert not (tmp_path / "copy" / shard).exists()
    assert Run.open(open_store(str(tmp_path / "copy"))).committed() == set(range(TASKS)) - {2}
    assert is_sound(tmp_path / "copy", TASKS - 1)
    redo(run, [2])
    commit_all(run, [2])
    assert pull(run.store, str(tmp_path / "copy")).fetched == 1
    assert is_sound(tmp_path / "copy")


def test_several_bad_tasks_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.store.delete(shard_of(run, 1))
    forge(run, 4, rows=3)
    with pytest.raises(DataError, match=r"2 tasks cannot be copied; the first: .*is missing; .*--task 1"):
        pull(run.store, str(tmp_path / "copy"))


def test_an_unfinished_run_is_copied_only_on_request_and_finished_later(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[0, 3])
    with pytest.raises(IncompleteRun, match=r"4 of 6 tasks not committed; .*--allow-partial"):
        pull(run.store, str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
    done = pull(run.store, str(tmp_path / "copy"), allow_partial=True)
    assert (done.complete, done.shards, done.images) == (False, 2, 8)
    copy = Run.open(open_store(str(tmp_path / "copy")))
    assert not copy.is_sealed()
    assert len(open_dataset(copy.store.url, allow_partial=True)) == 8
    commit_all(run, [1, 2, 4, 5])  # not sealed: the commits decide
    done = pull(run.store, str(tmp_path / "copy"))
    assert (done.complete, done.fetched) == (True, 4)
    assert is_sound(tmp_path / "copy")


def test_a_run_without_a_commit_and_a_place_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(IncompleteRun, match="no task is committed"):
        pull(make_run(tmp_path, tasks=[]).store, str(tmp_path / "copy"), allow_partial=True)
    with pytest.raises(PlanMismatch, match=r"no run there \(no plan\.json\)"):
        pull(Source(), str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("folder", ["s3://bucket/copy", "memory://copy", "ftp://x/y"])
def test_the_copy_is_a_local_folder(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ConfigError, match=r"DIR '.*': pull copies to this machine; name a local folder"):
        pull(make_run(tmp_path, tasks=[0]).store, folder)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    run, other = make_run(tmp_path), make_run(tmp_path, method={"iterations": 3})
    pull(other.store, str(tmp_path / "other"))
    with pytest.raises(PlanMismatch, match=r"holds another run than .*method\.iterations: 3 there, 2 here"):
        pull(run.store, str(tmp_path / "other"))
    (tmp_path / "begun/.tmp").mkdir(parents=True)  # killed before the first object had its name
    assert pull(run.store, str(tmp_path / "begun")).complete
    (tmp_path / "home").mkdir()
    (tmp_path / "home/README.md").write_text("mine")
    with pytest.raises(PlanMismatch, match="not empty, and holds no run"):
        pull(run.store, str(tmp_path / "home"))
    assert os.listdir(tmp_path / "home") == ["README.md"]
    with pytest.raises(StorageError, match="a file stands where a folder should be"):
        pull(run.store, str(tmp_path / "home/README.md"))


def test_the_same_run_made_elsewhere_is_not_mixed_with_the_copy(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    elsewhere = Run.join(open_store(str(tmp_path / "copy")), run.plan)
    commit_all(elsewhere, [1])
    before = contents(elsewhere.store)
    with pytest.raises(PlanMismatch, match=r"not the source's commit .*redo .*copy --task 1`, then"):
        pull(run.store, str(tmp_path / "copy"))
    assert before.items() <= contents(elsewhere.store).items()
    redo(elsewhere, [1])
    assert pull(run.store, str(tmp_path / "copy")).complete
    assert is_sound(tmp_path / "copy")
    assert len(keys(elsewhere.store, "data/")) == TASKS  # the shard without a commit went with the seal


def test_the_folder_itself_may_be_a_link_that_the_user_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "copy").symlink_to(tmp_path / "disk")
    assert pull(run.store, str(tmp_path / "copy")).complete
    assert is_sound(tmp_path / "disk")


def test_two_pulls_into_one_folder_make_one_copy(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: pull(run.store, str(tmp_path / "copy"), workers=2), range(2)))
    assert all(done.complete for done in both)
    assert contents(open_store(str(tmp_path / "copy"))) == contents(run.store)


def test_a_commit_removed_meanwhile_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    key = commit_key(run.plan.fp12, 3)
    run.store.delete(key)
    source_of(run).more_keys = [key]
    with pytest.raises(IncompleteRun, match="was removed during the pull"):
        pull(run.store, str(tmp_path / "copy"), workers=1)


def test_a_sealed_copy_is_judged_by_its_own_seal(tmp_path: Path) -> None:
    """Another version of the Parquet library may write the same manifest in other bytes."""
    run = make_run(tmp_path)
    pull(run.store, str(tmp_path / "copy"))
    copy = Run.open(open_store(str(tmp_path / "copy")))
    copy.store.put("_MANIFEST", flipped(copy.store.get("_MANIFEST")))
    with pytest.raises(DataError, match="sha256 differs from the one in _SUCCESS"):
        pull(run.store, str(tmp_path / "copy"))


def test_commit_records_of_the_copy_are_the_sources(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[])
    record = replace(
        fake_commit(run, 0, str(uuid4())), curve=[{"iteration": 1, "total": 2.5}], device="a card"
    )
    run.commit(record)
    pull(run.store, str(tmp_path / "copy"), allow_partial=True)
    copied = Run.open(open_store(str(tmp_path / "copy"))).read(0)
    assert isinstance(copied, Commit)
    assert copied == record
