"""Programs that meet at one run of two tasks, and what must be true of the store while they do."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nisynth.commits import Commit, Run
from nisynth.commits.audit import gc, redo, redo_bad, verify
from nisynth.commits.records import commit_key
from nisynth.commits.seal import read_commits, read_manifest, seal
from nisynth.errors import DataError, NisynthError
from nisynth.plan import Plan
from nisynth.storage import Store
from nisynth.storage.memory import MemoryStore
from tests.commits.interleavings import Objects, Program, emptied, filled
from tests.tiny import fake_commit, keys

A, B, C = (f"{digit}0000000-0000-4000-8000-000000000000" for digit in "abc")


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
        self.batches = {
            (task, attempt): Batch.of(plan, task, attempt) for task in (0, 1) for attempt in (A, B, C)
        }

    def attempt(self, task: int, attempt: str) -> Program:
        return lambda store: self.batches[task, attempt].attempt(store, self.plan)

    def commit(self, task: int, attempt: str) -> Program:
        """Returns the end of an attempt whose shard is stored already."""
        return lambda store: Run(store, self.plan).commit(self.batches[task, attempt].record)

    def attempt_and_seal(self, task: int, attempt: str) -> Program:
        def both(store: Store) -> str:
            outcome = self.batches[task, attempt].attempt(store, self.plan)
            seal(Run(store, self.plan))
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
        except NisynthError as error:
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

    def judge_end(self, objects: Objects) -> str | None:
        """Returns why one more driver without faults would not complete the set, None when it does."""
        return self._judge_after(objects, self._complete)

    def judge_end_of_redo(self, objects: Objects) -> str | None:
        """The same, where an operator may do what the messages say: `redo --bad`, and run again."""

        def mended(run: Run) -> None:
            problem = self.judge(objects)
            verdict, _ = redo_bad(run)
            assert problem is None or verdict.problems, f"verify does not see that {problem}"
            try:
                self._complete(run)
            except DataError:
                redo_bad(run)
                self._complete(run)

        return self._judge_after(objects, mended)

    def _judge_after(self, objects: Objects, act: Callable[[Run], None]) -> str | None:
        store = filled(objects)
        try:
            act(Run.join(store, self.plan))
        except (NisynthError, AssertionError) as error:
            return f"after all: {error}"
        finally:
            emptied(store)
        return None

    def _complete(self, run: Run) -> None:
        """What the next driver does, and then everybody who looks."""
        run.retry()
        for task in sorted({0, 1} - run.committed()):
            self.batches[task, C].attempt(run.store, self.plan)
        assert seal(run), "cannot be sealed"
        assert verify(run, deep=True).problems == ()
        gc(run)
        assert len(keys(run.store, "data/")) == self.plan.num_tasks, "shards of no commit are left"


def give_up(run: Run) -> object:
    return run.quarantine(0, [{"kind": "raised", "message": "it broke", "slot": 0}])


def scenarios(world: World) -> dict[str, tuple[dict[str, Program], Objects]]:
    """What may meet without anybody un-committing: name, programs, what is there at the beginning."""
    task, sealing, sweeping = world.attempt, world.program(seal), world.program(gc)
    attempts: dict[str, Program] = {f"attempt 0 {name}": task(0, name) for name in (A, B)}
    one_done = world.objects((1, A))
    return {
        "two drivers begin": ({"join 1": world.join, "join 2": world.join, "join 3": world.join}, ()),
        "attempts": ({**attempts, f"attempt 0 {C}": task(0, C)}, one_done),
        "attempts and gc": ({**attempts, "gc": sweeping}, one_done),
        "attempts and quarantine": ({**attempts, "quarantine": world.program(give_up)}, one_done),
        "quarantine and retry": (
            {
                f"attempt 0 {A}": task(0, A),
                "quarantine": world.program(give_up),
                "retry": world.program(Run.retry),
            },
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


def undoing(world: World) -> dict[str, tuple[dict[str, Program], Objects]]:
    """An operator's `redo` of task 0, while others are at work."""
    undo = world.program(lambda run: redo(run, [0]))
    whole = world.objects((0, A), (1, A))
    return {
        "redo and an attempt": ({"redo": undo, f"attempt 0 {B}": world.attempt(0, B)}, whole),
        "redo and two attempts": (
            {"redo": undo, **{f"attempt 0 {name}": world.attempt(0, name) for name in (B, C)}},
            whole,
        ),
        "redo, redo and an attempt": (
            {"redo": undo, "redo again": undo, f"attempt 0 {B}": world.attempt(0, B)},
            whole,
        ),
        "redo and the seal": ({"redo": undo, "seal": world.program(seal)}, whole),
        "redo, gc and an attempt": (
            {"redo": undo, "gc": world.program(gc), f"attempt 0 {B}": world.attempt(0, B)},
            world.objects((0, A), (1, A), losers=[(0, C)]),
        ),
        "redo, gc and a worker about to commit": (
            {"redo": undo, "gc": world.program(gc), f"commit 0 {C}": world.commit(0, C)},
            world.objects((0, A), (1, A), losers=[(0, C)]),
        ),
        "redo and a driver that ends": (
            {"redo": undo, f"attempt 0 {B}": world.attempt_and_seal(0, B)},
            whole,
        ),
    }
