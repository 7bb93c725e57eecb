"""Looking back at a run: `verify` judges what is committed, `redo` un-commits, `gc` sweeps losers."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nisynth.commits.fetch import check_shard_size
from nisynth.commits.records import commit_key, quarantine_key
from nisynth.commits.run import Run
from nisynth.commits.seal import READERS, delete_losers, read_commits, read_manifest, unseal
from nisynth.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One thing about one task (or, with task None, about the seal) that is not as it should be."""

    task: int | None
    text: str


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: how many commits it judged, and every problem."""

    checked: int
    problems: tuple[Problem, ...]

    @property
    def bad_tasks(self) -> list[int]:
        """The tasks that `redo --bad` would un-commit."""
        return sorted({p.task for p in self.problems if p.task is not None})


def verify(run: Run, deep: bool = False, on_checked: Callable[[int, int], None] | None = None) -> Verdict:
    """Judges every commit of a run: readable, its shard there and of the right size.

    deep: fetch each shard, compare its sha256, decode every image, compare labels with the plan. An
    incomplete run is no problem, unless `_SUCCESS` claims that it is complete. Raises StorageError.
    """
    tasks = sorted(run.committed())
    problems: list[Problem] = []
    with ThreadPoolExecutor(READERS if not deep else 4) as pool:
        for number, found in enumerate(pool.map(lambda task: _judge(run, task, deep), tasks), 1):
            problems += found
            if on_checked is not None:
                on_checked(number, len(tasks))
    problems += _judge_seal(run, set(tasks), any(problems))
    return Verdict(checked=len(tasks), problems=tuple(problems))


def redo(run: Run, tasks: Iterable[int]) -> list[int]:
    """Returns the tasks whose commits (and quarantines) it removed, so that the next run makes them again.

    The only verb that deletes commits; it takes the seal off first. The old shards stay until their
    task has a new commit.
    """
    wanted = sorted(set(tasks))
    for task in wanted:
        run.require_task(task)
    unseal(run)
    removed = run.committed().intersection(wanted)
    for task in wanted:
        run.store.delete(commit_key(run.plan.fp12, task))
        run.store.delete(quarantine_key(run.plan.fp12, task))
    return sorted(removed)


def gc(run: Run) -> list[str]:
    """Deletes shards that lost to another attempt's commit, by what the commits say; returns their keys."""
    tasks = {task for _, task, _, _ in run.shards()} & run.committed()
    winners: dict[int, str] = {}
    for task in tasks:
        try:
            commit = run.read(task)
        except DataError:
            continue  # a damaged commit names no winner: leave its shards alone
        if commit is not None:
            winners[task] = commit.attempt
    return delete_losers(run, winners)


def _judge(run: Run, task: int, deep: bool) -> list[Problem]:
    try:
        commit = run.read(task)
        if commit is None:  # listed, then gone: redo was quicker
            return []
        if deep:
            run.read_shard(commit)
        else:
            check_shard_size(run.store, commit)
    except DataError as error:
        return [Problem(task, f"task {task}: {error}")]
    return []


def _judge_seal(run: Run, committed: set[int], damaged: bool) -> list[Problem]:
    if not run.is_sealed():
        return []
    missing = sorted(set(range(run.plan.num_tasks)) - committed)
    if missing:
        return [
            Problem(task, f"task {task}: not committed, though _SUCCESS says that the run is complete")
            for task in missing
        ]
    if damaged:
        return []
    try:
        rows = read_manifest(run)
    except DataError as error:
        return [Problem(None, str(error))]
    commits = read_commits(run)
    if [(r.task, r.sha256) for r in rows] != [(c.task, c.sha256) for c in commits]:
        return [
            Problem(
                None,
                f"{run.store.url}: the manifest and the commits list other shards;"
                f" `nisynth redo {run.store.url} --bad`",
            )
        ]
    return []
