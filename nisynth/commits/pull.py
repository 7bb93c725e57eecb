"""A verified local copy of a run: what its commits name, fetched, hashed, and only then given its name.

The source is not trusted. Its plan must give its own fingerprint; keys are rebuilt from their parts;
nothing is downloaded before its size was compared with the commit's and with the plan's limit.
The folder is not taken to be empty: links in it are refused, so nothing is written outside of it.

The copy is made as a run is: the plan first, then of every task the shard and after it the commit, the
seal last. So the folder is a run at any time, and pulling again goes on where an interrupted pull ended.
Manifest, card and `_SUCCESS` are made here from the commits, by the code that seals every run: a manifest
that was copied would have to be checked against them anyway.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from nisynth.commits.card import LOADER_KEY
from nisynth.commits.fetch import fetch_document, fetch_shard, holds
from nisynth.commits.parallel import in_parallel
from nisynth.commits.records import Commit, commit_key
from nisynth.commits.run import PLAN_KEY, SUCCESS_KEY, Run, parse_plan
from nisynth.commits.seal import CARD_KEY, MANIFEST_KEY, OLD_MANIFEST_KEY, read_manifest, seal
from nisynth.errors import ConfigError, DataError, IncompleteRun, PlanMismatch, StorageError, counted
from nisynth.identity import differing_fields
from nisynth.plan import Plan
from nisynth.storage import AlreadyExists, NotFound, Store
from nisynth.storage.local import LocalStore, path_of
from nisynth.storage.single_writer import SingleWriter

WORKERS = 8
_FOLDERS = (".tmp", "commits", "data")
_FILES = (PLAN_KEY, LOADER_KEY, MANIFEST_KEY, OLD_MANIFEST_KEY, CARD_KEY, SUCCESS_KEY)


@dataclass(frozen=True)
class Pulled:
    """What a pull did. shards, images: in the copy now. fetched, fetched_bytes: by this pull."""

    url: str
    folder: str
    fingerprint: str
    shards: int
    images: int
    fetched: int
    fetched_bytes: int
    complete: bool


def pull(
    source: Store,
    folder: str,
    *,
    workers: int = WORKERS,
    allow_partial: bool = False,
    on_checked: Callable[[int, int], None] | None = None,
) -> Pulled:
    """Copies the run of `source` into a local folder, `workers` shards at a time; says what it did.

    What is there already and right is not fetched again. allow_partial: of a run that is not complete,
    copy what is committed. on_checked: called with (shards right in the copy, shards in all). Raises
    IncompleteRun, PlanMismatch (the folder holds something else), DataError (bad shards, after all
    others were copied), StorageError.
    """
    root = local_path(folder)
    data = fetch_document(source, PLAN_KEY)
    if data is None:
        raise PlanMismatch(f"{source.url}: no run there (no plan.json); check the URL")
    run = Run(source, parse_plan(source.url, data, Plan))
    tasks = sorted(run.committed())
    require_enough(run, tasks, allow_partial)
    copy = _begin_copy(root, run, data)
    sizes = list(_copy_all(run, copy, tasks, workers, on_checked))
    complete = len(tasks) == run.plan.num_tasks
    if complete:
        _seal(copy)
    return Pulled(
        url=source.url,
        folder=copy.store.url,
        fingerprint=run.plan.fingerprint,
        shards=len(tasks),
        images=sum(run.plan.rows(task) for task in tasks),
        fetched=sum(size > 0 for size in sizes),
        fetched_bytes=sum(sizes),
        complete=complete,
    )


def local_path(folder: str) -> Path:
    """Returns the folder that a copy goes to. Raises ConfigError for a URL of something else."""
    if "://" in folder and not folder.startswith("file://"):
        raise ConfigError(f"DIR {folder!r}: pull copies to this machine; name a local folder")
    return path_of(folder)


def require_enough(run: Run, tasks: list[int], allow_partial: bool) -> None:
    """Raises IncompleteRun where too little is committed to copy."""
    if not tasks:
        raise IncompleteRun(f"{run.store.url}: no task is committed yet; run it first")
    missing = run.plan.num_tasks - len(tasks)
    if missing and not allow_partial:
        raise IncompleteRun(
            f"{run.store.url}: {missing:,} of {counted(run.plan.num_tasks, 'task')} not committed;"
            " run it again to resume, or pass --allow-partial to copy what is there"
        )


def _begin_copy(root: Path, run: Run, plan_data: bytes) -> Run:
    """Returns the copy, begun or taken up. Raises PlanMismatch when the folder holds anything else."""
    store = SingleWriter(LocalStore(str(root)))  # a copy may lie on any disk, one without hard links too
    store.list()  # refuses a file
    names = _names(root)
    if fetch_document(store, PLAN_KEY) is None:
        if names - {".tmp"}:
            raise PlanMismatch(f"{root}: not empty, and holds no run (no plan.json); name another folder")
        with suppress(AlreadyExists):  # another pull began the same copy: read what it wrote
            store.create(PLAN_KEY, plan_data)
    copy = Run.open(store)
    if copy.plan.fingerprint != run.plan.fingerprint:
        fields = "; ".join(differing_fields(run.plan.identity, copy.plan.identity))
        raise PlanMismatch(f"{root}: holds another run than {run.store.url}: {fields}. Name another folder")
    copy.name_images()
    return copy


def _names(root: Path) -> set[str]:
    """Returns the names in `root`, after a check that none of those which a copy uses leads out of it.

    Raises StorageError for a link, pipe or device in the place of a file or folder of a run.
    """
    found = plain_entries(root, _FOLDERS, _FILES)
    for name in found & set(_FOLDERS):
        inside = root / name
        plain_entries(inside, (), [entry.name for entry in os.scandir(inside)])
    return found


def plain_entries(folder: Path, folders: Collection[str], files: Collection[str]) -> set[str]:
    """Returns the names in a folder, none if it is not there yet.

    Raises StorageError where one of `folders` or `files` is there and is not a plain one, such as a link.
    """
    try:
        found = list(os.scandir(folder)) if folder.is_dir() else []
        for entry in found:
            if entry.name in folders and not entry.is_dir(follow_symlinks=False):
                raise StorageError(
                    f"{entry.path}: not a plain folder; pull follows no links, so move it away"
                )
            if entry.name in files and not entry.is_file(follow_symlinks=False):
                raise StorageError(f"{entry.path}: not a plain file; pull follows no links, so move it away")
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}; name a folder that this user may use") from None
    return {entry.name for entry in found}


def _copy_all(
    run: Run, copy: Run, tasks: list[int], workers: int, on_checked: Callable[[int, int], None] | None
) -> Iterator[int]:
    """Yields, for each task, the bytes that were fetched; 0 where the copy was right before."""
    bad: list[DataError] = []

    def work(task: int) -> int | DataError:
        try:
            return _copy_task(run, copy, task)
        except DataError as error:  # the other shards are copied all the same
            return error

    if on_checked is not None:
        on_checked(0, len(tasks))
    with closing(in_parallel(work, tasks, workers)) as results:
        for number, result in enumerate(results, 1):
            if isinstance(result, DataError):
                bad.append(result)
                continue
            yield result
            if on_checked is not None:
                on_checked(number - len(bad), len(tasks))
    if len(bad) == 1:
        raise bad[0]
    if bad:
        raise DataError(f"{len(bad)} tasks cannot be copied; the first: {bad[0]}")


def _copy_task(run: Run, copy: Run, task: int) -> int:
    """Copies the task's shard and then its commit, where the copy lacks them; returns the bytes fetched."""
    key = commit_key(run.plan.fp12, task)
    data = fetch_document(run.store, key)
    if data is None:
        raise IncompleteRun(f"{run.store.url}/{key}: was removed during the pull; pull again later")
    commit = Commit.from_json(data, key, run.plan)
    held = fetch_document(copy.store, key)
    if held is not None and held != data:
        raise _other_commit(copy, key, task)
    fetched = _copy_shard(run, copy, commit)
    if held is None:
        try:
            copy.store.create(key, data)
        except AlreadyExists:
            if not holds(copy.store, key, data):
                raise _other_commit(copy, key, task) from None
    return fetched


def _other_commit(copy: Run, key: str, task: int) -> PlanMismatch:
    return PlanMismatch(
        f"{copy.store.url}/{key}: not the source's commit (it was made elsewhere, or the source made its"
        f" own again); `nisynth redo {copy.store.url} --task {task}`, then pull again"
    )


def _copy_shard(run: Run, copy: Run, commit: Commit) -> int:
    try:
        if copy.store.size_bytes(commit.shard) == commit.bytes:
            there = hashlib.sha256(copy.store.get(commit.shard, commit.bytes)).hexdigest()
            if there == commit.sha256:
                return 0
        wrong = True
    except NotFound:
        wrong = False
    data = fetch_shard(run.store, commit)
    if wrong:
        copy.store.delete(commit.shard)
    with suppress(AlreadyExists):  # another pull into this folder wrote the same bytes first
        copy.store.create(commit.shard, data)
    return len(data)


def _seal(copy: Run) -> None:
    if copy.is_sealed():
        # Not sealed anew: another version of the Parquet library may write the same rows otherwise.
        read_manifest(copy)
    else:
        seal(copy)
