"""Runs in a store that counts what is fetched from it, and that tests make lie or die."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from nisynth.commits import Run
from nisynth.commits.audit import verify
from nisynth.commits.records import commit_key
from nisynth.commits.seal import seal
from nisynth.errors import StorageError
from nisynth.storage import ObjectInfo, Store, check_size, open_store
from nisynth.storage.memory import MemoryStore
from tests.tiny import commit_all, keys, tiny_plan

TASKS = 6


class Source(MemoryStore):
    """A store in memory.

    gets: how often each key was fetched. answers: by key, what `get` returns the next times. sizes: by
    key, what `size_bytes` claims. more_keys: what a listing shows besides. dies_after: the number of
    gets after which each one fails.
    """

    def __init__(self) -> None:
        super().__init__(f"memory://{uuid4()}")
        self.gets: Counter[str] = Counter()
        self.answers: dict[str, list[bytes]] = {}
        self.sizes: dict[str, int] = {}
        self.more_keys: list[str] = []
        self.dies_after = 10**9

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        check_size(f"{self.url}/{key}", self.sizes.get(key, 0), max_bytes)
        self.gets[key] += 1
        if self.gets.total() > self.dies_after:
            raise StorageError(f"{self.url}/{key}: the server is gone")
        data = super().get(key, max_bytes)
        return self.answers[key].pop(0) if self.answers.get(key) else data

    def size_bytes(self, key: str) -> int:
        return self.sizes[key] if key in self.sizes else len(super().get(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in super().list(prefix):
            yield ObjectInfo(info.key, self.sizes.get(info.key, info.size_bytes))
        yield from (ObjectInfo(key, 1) for key in self.more_keys)

    def shard_gets(self) -> int:
        return sum(count for key, count in self.gets.items() if key.startswith("data/"))


def make_run(tmp_path: Path, tasks: Any = None, **sections: dict[str, Any]) -> Run:
    """Returns a run in a counting store, sealed when all its tasks are committed."""
    sections = {"run": {"num_images": 4 * TASKS - 2}} | sections
    run = Run.join(Source(), tiny_plan(tmp_path, **sections))
    commit_all(run, tasks)
    seal(run)
    source_of(run).gets.clear()
    return run


def source_of(run: Run) -> Source:
    assert isinstance(run.store, Source)
    return run.store


def contents(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for key in keys(store)}


def shard_of(run: Run, task: int) -> str:
    return next(key for key in keys(run.store, "data/") if f"-{task:08d}-" in key)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def forge(run: Run, task: int, **changes: Any) -> None:
    """Changes fields of a task's commit, as anyone who may write to the bucket could."""
    key = commit_key(run.plan.fp12, task)
    run.store.put(key, json.dumps(json.loads(run.store.get(key)) | changes).encode())


def is_sound(folder: Path, tasks: int = TASKS) -> bool:
    verdict = verify(Run.open(open_store(str(folder))), deep=True)
    return verdict.checked == tasks and not verdict.problems
