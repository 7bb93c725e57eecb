"""The protocol against every interleaving of two or three programs and the faults of a store and its clients.

Without `redo`, in every state: each commit has its shard, nothing that counts is ever written again or
deleted, the seal lists what is committed, and a program that believes to have committed has. From every end,
one more run without faults completes the set. `redo` un-commits, so it has scenarios and rules of its own.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import pytest

from nisynth.commits import Run, audit, run, seal
from nisynth.commits.audit import gc
from nisynth.commits.records import commit_key
from nisynth.plan import Plan
from nisynth.storage import AlreadyExists, OutcomeUnknown, Store
from tests.commits.interleavings import Explorer, Found, Objects, Program
from tests.commits.scenarios import A, B, C, World, give_up, scenarios, undoing
from tests.tiny import tiny_plan

T = TypeVar("T")
R = TypeVar("R")


def in_turn(work: Callable[[T], R], items: Iterable[T], workers: int = 1) -> Iterator[R]:
    """Requests that nisynth makes at once, one after the other: a program's own order is fixed here."""
    return map(work, items)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """A plan of two tasks, in a process where requests go in turn."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (run, seal, audit):
            patch.setattr(module, "in_parallel", in_turn)
        yield tiny_plan(tmp_path_factory.mktemp("plan"), run={"num_images": 8})


@pytest.fixture(scope="module")
def world(plan: Plan) -> World:
    return World(plan)


SCENARIOS = (
    "two drivers begin",
    "attempts",
    "attempts and gc",
    "attempts and quarantine",
    "quarantine and retry",
    "two drivers end",
    "a task, gc and the seal",
    "seals and gc",
)
UNDOING = (
    "redo and an attempt",
    "redo and two attempts",
    "redo, redo and an attempt",
    "redo and the seal",
    "redo, gc and an attempt",
    "redo, gc and a worker about to commit",
    "redo and a driver that ends",
)


def judged(world: World, programs: dict[str, Program], objects: Objects) -> Explorer:
    """Returns an explorer that holds every state to all rules."""
    return Explorer(
        programs, objects, judge=world.judge, judge_result=world.judge_result, judge_end=world.judge_end
    )


def explore(world: World, name: str, faults: int) -> None:
    programs, objects = scenarios(world)[name]
    report(name, faults, judged(world, programs, objects).explore(faults))


def explore_undoing(world: World, name: str, faults: int) -> None:
    programs, objects = undoing(world)[name]
    found = Explorer(programs, objects, judge_end=world.judge_end_of_redo).explore(faults)
    report(name, faults, found)


def report(name: str, faults: int, found: Found) -> None:
    """Shown by `pytest -s`, and where a test fails."""
    print(f"{name}, up to {faults} faults: {found.interleavings:,} interleavings, {found.states:,} states")
    assert not found.problems, found.problems
    assert found.interleavings > 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_interleaving_with_up_to_one_fault(world: World, name: str) -> None:
    explore(world, name, 1)


@pytest.mark.parametrize("name", UNDOING)
def test_redo_while_others_work_is_seen_by_verify_and_mended_by_redo_bad(world: World, name: str) -> None:
    explore_undoing(world, name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_interleaving_with_up_to_two_faults(world: World, name: str) -> None:
    explore(world, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNDOING)
def test_redo_while_others_work_with_up_to_two_faults(world: World, name: str) -> None:
    explore_undoing(world, name, 2)


def crowd(world: World) -> Explorer:
    """Seven programs at once: too many to go through, so they are walked at random."""
    programs: dict[str, Program] = {
        **{f"attempt {task} {name}": world.attempt(task, name) for task in (0, 1) for name in (A, B)},
        f"attempt 0 {C}": world.attempt_and_seal(0, C),
        "quarantine": world.program(give_up),
        "gc": world.program(gc),
    }
    return Explorer(
        programs,
        world.objects(),
        judge=world.judge,
        judge_result=world.judge_result,
        judge_end=world.judge_end,
    )


def walk(world: World, seeds: range) -> None:
    explorer = crowd(world)
    problems = [(seed, explorer.walk(6, random.Random(seed))) for seed in seeds]
    assert not [(seed, problem) for seed, problem in problems if problem is not None]


def test_random_ways_of_a_crowd_with_up_to_six_faults(world: World) -> None:
    walk(world, range(300))


@pytest.mark.slow
def test_many_random_ways_of_a_crowd(world: World) -> None:
    walk(world, range(300, 20_000))


def commit_first(world: World) -> Program:
    def act(store: Store) -> None:
        batch = world.batches[0, A]
        Run(store, world.plan).commit(batch.record)
        Run(store, world.plan).put_shard(0, A, batch.data)

    return act


def delete_without_a_look(world: World) -> Program:
    def act(store: Store) -> None:
        batch = world.batches[0, A]
        store.create(batch.record.shard, batch.data)
        for _ in range(2):
            try:
                return store.create(commit_key(world.plan.fp12, 0), batch.record.to_json())
            except AlreadyExists:
                return store.delete(batch.record.shard)
            except OutcomeUnknown:
                continue
        return None

    return act


def sweep_what_a_listing_does_not_name(world: World) -> Program:
    def act(store: Store) -> None:
        committed = Run(store, world.plan).committed()
        for key, task, _, _ in list(Run(store, world.plan).shards()):
            if task not in committed:
                store.delete(key)

    return act


@pytest.mark.parametrize("broken", [commit_first, delete_without_a_look, sweep_what_a_listing_does_not_name])
def test_a_protocol_that_is_broken_is_found_out(world: World, broken: Callable[[World], Program]) -> None:
    programs = {"broken": broken(world), f"attempt 0 {B}": world.attempt(0, B)}
    found = Explorer(programs, world.objects((1, A)), judge=world.judge).explore(1)
    assert found.problems == ("task 0 is committed without its shard",)
