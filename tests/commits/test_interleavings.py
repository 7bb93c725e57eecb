"""The protocol against every interleaving of two or three programs and the faults of a store and its clients.

Without `redo`, in every state: each commit has its shard, nothing that counts is ever written again or
deleted, the seal lists what is committed, and a program that believes to have committed has. From every end,
one more run without faults completes the set. `redo` un-commits, so it has scenarios and rules of its own.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from nisynth.commits import Commit, Run, audit, seal
from nisynth.commits import run as run_module
from nisynth.commits.audit import gc, redo, redo_bad, verify
from nisynth.commits.records import commit_key
from nisynth.commits.seal import read_commits, read_manifest
from nisynth.errors import DataError
from nisynth.plan import Plan
from nisynth.storage import Store
from nisynth.storage.memory import MemoryStore
from tests.commits.interleavings import Explorer, Objects, Program, emptied, filled
from tests.tiny import fake_commit, keys, tiny_plan

T, R = TypeVar("T"), TypeVar("R")
A, B, C = (f"{digit}0000000-0000-4000-8000-000000000000" for digit in "abc")


def in_turn(work: Callable[[T], R], items: Iterable[T], workers: int = 1) -> Iterator[R]:
    """Requests that nisynth makes at once, one after the other: a program's own order is fixed here."""
    return map(work, items)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """A plan of two tasks, in a process where requests go in turn."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (run_module, seal, audit):
            patch.setattr(module, "in_parallel", in_turn)
        yield tiny_plan(tmp_path_factory.mktemp("plan"), run={"num_images": 8})


@dataclass(frozen=True)
class Batch:
    """One attempt's shard and record, encoded once."""

    record: Commit
    data: bytes

    @classmethod
    def of(cls, plan: Plan, task: int, attempt: str) -> "Batch":
        store = MemoryStore("memory://batches")
        record = fake_commit(Run(store, plan), task, attempt)
        ((_, data),) = emptied(store)
        return cls(record, data)

    def attempt(self, store: Store, plan: Plan) -> str:
        """What a worker does with the store: look, put the shard, commit."""
        run = Run(store, plan)
        if run.read(self.record.task) is not None:
            return "committed before"
        assert run.put_shard(self.record.task, self.record.attempt, self.data) == self.record.shard
        return run.commit(self.record)


class World:
    """What the programs of all scenarios share: a plan, and batches of its tasks."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.batches = {(task, attempt): Batch.of(plan, task, attempt) for task in (0, 1) for attempt in (A, B, C)}

    def attempt(self, task: int, attempt: str) -> Program:
        return lambda store: self.batches[task, attempt].attempt(store, self.plan)

    def attempt_and_seal(self, task: int, attempt: str) -> Program:
        def both(store: Store) -> str:
            outcome = self.batches[task, attempt].attempt(store, self.plan)
            seal.seal(Run(store, self.plan))
            return outcome

        return both

    def program(self, act: Callable[[Run], object]) -> Program:
        return lambda store: act(Run(store, self.plan))

    def join(self, store: Store) -> object:
        return Run.join(store, self.plan).plan.fp12

    def objects(self, *committed: tuple[int, str], losers: Iterable[tuple[int, str]] = ()) -> Objects:
        """Returns a run that was begun, with these commits, and shards that lost."""
        store = filled(())
        run = Run.join(store, self.plan)
        for task, attempt in committed:
            assert self.batches[task, attempt].attempt(store, self.plan) == "mine"
        for task, attempt in losers:
            run.put_shard(task, attempt, self.batches[task, attempt].data)
        return emptied(store)

    def judge(self, objects: Objects) -> str | None:
        """Returns what is wrong with a store at any moment of any run without `redo`."""
        held = dict(objects)
        store = filled(objects)
        try:
            if any(key.startswith("commits/") for key in held):
                for row in read_commits(Run(store, self.plan)):
                    data = held.get(row.shard)
                    if data is None:
                        return f"task {row.task} is committed without its shard"
                    if hashlib.sha256(data).hexdigest() != row.sha256:
                        return f"task {row.task} is committed with another shard"
            if "_SUCCESS" in held:
                run = Run(store, self.plan)
                if read_manifest(run) != read_commits(run) or len(run.committed()) != self.plan.num_tasks:
                    return "the seal does not fit the commits"
        except DataError as error:
            return f"damaged: {error}"
        finally:
            emptied(store)
        return None

    def judge_result(self, name: str, result: object, objects: Objects) -> str | None:
        """Returns what is wrong with how a program ended: what it believes about a commit is so, for ever."""
        if isinstance(result, DataError):
            return f"{name} took sound data for damaged: {result}"
        if name.startswith("attempt") and result in ("mine", "other"):
            task, attempt = int(name.split()[1]), name.split()[2]
            held = dict(objects).get(commit_key(self.plan.fp12, task))
            if held is None:
                return f"{name}: {result}, and there is no commit"
            if (Commit.from_json(held, commit_key(self.plan.fp12, task), self.plan).attempt == attempt) != (
                result == "mine"
            ):
                return f"{name}: {result}, and the commit is another's"
        return None

    def judge_end(self, objects: Objects, mend: bool = False) -> str | None:
        """Returns why one more driver without faults would not complete the set, None when it does.

        mend: an operator's `redo --bad` goes first.
        """
        store = filled(objects)
        try:
            run = Run.join(store, self.plan)
            if mend:
                redo_bad(run)
            run.retry()
            for task in sorted({0, 1} - run.committed()):
                self.batches[task, C].attempt(store, self.plan)
            if not seal.seal(run):
                return "cannot be sealed"
            if verify(run, deep=True).problems:
                return f"after all, {verify(run, deep=True).problems[0].text}"
            gc(run)
            if len(keys(store, "data/")) != self.plan.num_tasks:
                return "shards of no commit are left"
        except DataError as error:
            return f"after all, {error}"
        finally:
            emptied(store)
        return None


@pytest.fixture(scope="module")
def world(plan: Plan) -> World:
    return World(plan)


def give_up(run: Run) -> object:
    return run.quarantine(0, [{"kind": "raised", "message": "it broke", "slot": 0}])


def scenarios(world: World) -> dict[str, tuple[dict[str, Program], Objects]]:
    """What may meet without anybody un-committing: name, programs, what is there at the beginning."""
    task, sealing, sweeping = world.attempt, world.program(seal.seal), world.program(gc)
    attempts: dict[str, Program] = {f"attempt 0 {name}": task(0, name) for name in (A, B)}
    one_done = world.objects((1, A))
    return {
        "two drivers begin": ({"join 1": world.join, "join 2": world.join, "join 3": world.join}, ()),
        "attempts": ({**attempts, f"attempt 0 {C}": task(0, C)}, one_done),
        "attempts and gc": ({**attempts, "gc": sweeping}, one_done),
        "attempts and quarantine": ({**attempts, "quarantine": world.program(give_up)}, one_done),
        "quarantine and retry": (
            {f"attempt 0 {A}": task(0, A), "quarantine": world.program(give_up), "retry": world.program(Run.retry)},
            one_done,
        ),
        "two drivers end": (
            {f"attempt 0 {name}": world.attempt_and_seal(0, name) for name in (A, B)},
            one_done,
        ),
        "a task, gc and the seal": (
            {f"attempt 0 {A}": task(0, A), "gc": sweeping, "seal": sealing},
            world.objects((1, A), losers=[(1, B)]),
        ),
        "seals and gc": (
            {"seal 1": sealing, "seal 2": sealing, "gc": sweeping},
            world.objects((0, A), (1, A), losers=[(0, B), (1, B)]),
        ),
    }


def explorer(world: World, name: str) -> Explorer:
    programs, objects = scenarios(world)[name]
    return Explorer(
        programs, objects, judge=world.judge, judge_result=world.judge_result, judge_end=world.judge_end
    )
