"""Checks and repairs: `verify` checks what is committed, `redo` removes commits, `gc` unused shards."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nisynth.commits.fetch import check_shard_size, holds, wrong_size
from nisynth.commits.parallel import READERS, in_parallel
from nisynth.commits.records import Commit, ManifestRow, commit_key, quarantine_key
from nisynth.commits.run import Run
from nisynth.commits.seal import (
    MANIFEST_KEY,
    delete_losers,
    encode_manifest,
    read_manifest,
    unseal,
)
from nisynth.errors import DataError, counted
from nisynth.storage import NotFound

DEEP_READERS = 4
"""Each holds a decoded shard."""


@dataclass(frozen=True)
class Problem:
    """One thing about one task (or, with task None, about the seal) that is not as it should be."""

    task: int | None
    text: str


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: how many commits it judged, and every problem.

    complete: every planned task is committed, and the seal is there, so that consumers may open the run.
    """

    checked: int
    problems: tuple[Problem, ...]
    complete: bool = False

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete"
        problems = counted(len(self.problems), "problem")
        return f"Verdict({counted(self.checked, 'task')} judged, {problems}, {state})"

    @property
    def bad_tasks(self) -> list[int]:
        """The tasks that `redo --bad` would un-commit."""
        return sorted({p.task for p in self.problems if p.task is not None})


def verify(run: Run, deep: bool = False, on_checked: Callable[[int, int], None] | None = None) -> Verdict:
    """Judges every commit of a run: readable, its shard there and of the right size.

    Costs one GET a commit and two listings. deep: fetch each shard, compare its sha256, decode every
    image, compare labels with the plan. An incomplete run is not a problem, unless `_SUCCESS` says that it is
    complete. Raises StorageError.
    """
    tasks = sorted(run.committed())
    listed = {} if deep else {key: size for key, _, _, size in run.shards()}
    rows: list[ManifestRow] = []
    problems: list[Problem] = []
    judged = in_parallel(
        lambda task: _judge(run, task, deep, listed), tasks, DEEP_READERS if deep else READERS
    )
    for number, found in enumerate(judged, 1):
        if isinstance(found, ManifestRow):
            rows.append(found)
        elif found is not None:
            problems.append(found)
        if on_checked is not None:
            on_checked(number, len(tasks))
    sealed = run.is_sealed()
    if sealed and len(tasks) < run.plan.num_tasks:
        problems.append(_missing_under_seal(run, len(tasks)))
    elif len(rows) == run.plan.num_tasks:
        problems += _judge_manifest(run, rows, sealed)
    complete = sealed and len(tasks) == run.plan.num_tasks
    return Verdict(checked=len(tasks), problems=tuple(problems), complete=complete)


def known_damage(
    run: Run, committed: set[int], sealed: bool, commits: Sequence[Commit | ManifestRow | DataError]
) -> tuple[int, list[str]]:
    """Returns how many shards' sizes were compared, and what is known to be damaged, without reading a shard.

    A sealed run's shards are held against its manifest, those of another against `commits`, some of its
    commits or how they are damaged; and every committed task needs a shard. Costs one listing, and a
    request for each shard that the listing does not show as it should be. Raises StorageError.
    """
    rows: list[Commit | ManifestRow] = [one for one in commits if not isinstance(one, DataError)]
    texts = [str(one) for one in commits if isinstance(one, DataError)]
    if sealed and len(committed) < run.plan.num_tasks:
        texts.append(_missing_under_seal(run, len(committed)).text)
    if sealed:
        try:
            rows = [row for row in read_manifest(run) if row.task in committed]
        except DataError as error:
            texts.append(str(error))
    shards = list(run.shards())
    listed = {key: size for key, _, _, size in shards}
    unseen = committed - {task for _, task, _, _ in shards} - {row.task for row in rows}
    for one in in_parallel(lambda task: read_or_why(run, task), sorted(unseen)):
        if isinstance(one, Commit):
            rows.append(one)
        elif one is not None:
            texts.append(str(one))
    wrong = in_parallel(lambda row: wrong_size(run.store, row, listed), rows)
    return len(rows), list(dict.fromkeys([*texts, *(text for text in wrong if text is not None)]))


def redo(run: Run, tasks: Iterable[int]) -> list[int]:
    """Returns the tasks whose commits (and quarantines) it removed, so that the next run makes them again.

    The only verb that deletes commits; it takes the seal off first, and once more at the end for a driver
    that sealed meanwhile. The old shards stay until their task has a new commit. Raises ConfigError for a
    task that the run does not have, StorageError.
    """
    wanted = sorted(set(tasks))
    for task in wanted:
        run.require_task(task)
    removed, parts = run.committed().intersection(wanted), dict[Run, list[int]]()
    rounds = run.rounds
    for number, local in map(run.place, wanted):
        if number < len(rounds):
            parts.setdefault(rounds[number], []).append(local)
    seals = list(dict.fromkeys((run, *parts)))  # of a run itself; of a series, and of its rounds
    for sealed in seals:
        unseal(sealed)
    for part, locals_ in parts.items():
        keys = [key(part.plan.fp12, task) for task in locals_ for key in (commit_key, quarantine_key)]
        for _ in in_parallel(part.store.delete, keys):
            pass
    for sealed in seals:
        unseal(sealed)
    return sorted(removed)


def redo_bad(run: Run, on_checked: Callable[[int, int], None] | None = None) -> tuple[Verdict, list[int]]:
    """Returns a deep verdict on the run, and the tasks that `redo` removed because of it.

    Changes nothing where nothing is bad: a sound run keeps its seal. Raises StorageError.
    """
    verdict = verify(run, deep=True, on_checked=on_checked)
    return verdict, redo(run, verdict.bad_tasks) if verdict.problems else []


def gc(run: Run) -> list[str]:
    """Deletes shards that lost to another attempt's commit, by what the commits say; returns their keys.

    Reads the commits of those tasks only that have several shards: a shard that is alone is the winner,
    or its task is not settled.
    """
    shards = [(key, task) for key, task, _, _ in run.shards()]
    shards_of = Counter(task for _, task in shards)
    return delete_losers(run, [(key, task) for key, task in shards if shards_of[task] > 1])


def _judge(run: Run, task: int, deep: bool, listed: Mapping[str, int]) -> ManifestRow | Problem | None:
    try:
        commit = run.read(task)
        if commit is None:  # listed before, and removed by a redo since
            return None
        if deep:
            run.read_shard(commit)
        else:
            check_shard_size(run.store, commit, listed)
    except DataError as error:
        return Problem(task, f"task {task}: {error}")
    return ManifestRow.of(commit)


def read_or_why(run: Run, task: int) -> Commit | DataError | None:
    """Returns a task's commit, or how it is damaged; None where there is none. Raises StorageError."""
    try:
        return run.read(task)
    except DataError as error:
        return error


def _missing_under_seal(run: Run, committed: int) -> Problem:
    missing, planned = run.plan.num_tasks - committed, run.plan.num_tasks
    return _seal_problem(
        run,
        f"{missing:,} of {planned:,} tasks are not committed, though _SUCCESS says that the run is complete",
    )


def _judge_manifest(run: Run, rows: list[ManifestRow], sealed: bool) -> list[Problem]:
    """Judges the manifest of a sealed run, or what an interrupted seal has left of it."""
    try:
        if sealed:
            same = read_manifest(run) == rows
        else:
            same = holds(run.store, MANIFEST_KEY, encode_manifest(run, rows))
    except NotFound:
        return []
    except DataError as error:
        return [Problem(None, str(error))]
    return [] if same else [_seal_problem(run, "the manifest lists other shards than the commits")]


def _seal_problem(run: Run, text: str) -> Problem:
    return Problem(None, f"{run.store.url}: {text}; `nisynth redo {run.store.url} --bad` takes the seal off")
