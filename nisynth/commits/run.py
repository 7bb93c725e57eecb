"""A run in storage: its plan, its commits, its quarantine. Plan minus commits and quarantine is left to do.

Any number of drivers and workers may use a Run of one URL at once. Whether a task is done is never decided
by a listing alone, an ETag or a clock. The first commit of a task wins; a later one is told so by the store.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from nisynth.commits.card import LOADER_KEY, loader_config
from nisynth.commits.fetch import bad_shard, fetch_document, fetch_shard, holds
from nisynth.commits.parallel import in_parallel
from nisynth.commits.records import (
    Commit,
    ManifestRow,
    Outcome,
    ShardRecord,
    commit_key,
    misfit,
    parse_shard_key,
    parse_task_key,
    quarantine_key,
    shard_key,
)
from nisynth.errors import ConfigError, DataError, IncompleteRun, PlanMismatch, StorageError
from nisynth.identity import differing_fields
from nisynth.plan import Plan
from nisynth.shards import Shard, decode
from nisynth.storage import AlreadyExists, OutcomeUnknown, Store

PLAN_KEY = Plan.KEY
SERIES_KEY = "series.json"
SUCCESS_KEY = "_SUCCESS"
TRIES = 5
AnyPlan = TypeVar("AnyPlan", bound=Plan)
Record = TypeVar("Record", Commit, ManifestRow)
_PLAN_CURE = "put the original back, or use another URL"


class Run:
    """One target set at one URL. `join` begins or resumes it, `find` only looks; `open` reads any.

    A series of runs (`nisynth.series`) is read as one set: `rounds` are the runs that it consists of, and
    `place` says which of them has a task. A run has one round, itself.
    """

    def __init__(self, store: Store, plan: Plan) -> None:
        self.store = store
        self.plan = plan

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store.url!r}: {self.plan!r})"

    @property
    def rounds(self) -> "tuple[Run, ...]":
        """The runs that this set consists of, as far as they are begun."""
        return (self,)

    @property
    def first_task(self) -> int:
        """The task that goes first, alone, before others may begin: of a series, that of its last round."""
        return 0

    def place(self, task: int) -> tuple[int, int]:
        """Returns which of `rounds` a task belongs to, and its number there."""
        return 0, task

    def numbered(self, number: int, record: Record) -> Record:
        """Returns a commit or row of round `number` with its task and shard as this set names them."""
        return record

    @classmethod
    def join(cls, store: Store, plan: Plan) -> "Run":
        """Returns the run of `plan` at the store, begun if it is not there yet.

        Raises PlanMismatch when the URL holds another plan (with the differing fields) or commits
        without a plan, StorageError when the store does not settle it.
        """
        data = json.dumps(plan.document, sort_keys=True, indent=1).encode()
        for _ in range(TRIES):
            found = cls.find(store, plan)
            if found is not None:
                return found
            try:
                store.create(plan.KEY, data)
                begun = cls(store, plan)
                begun.name_images()
                return begun
            except (AlreadyExists, OutcomeUnknown):
                continue
        raise StorageError(
            f"{store.url}/{plan.KEY}: could not be created or read in {TRIES} tries; run again"
        )

    @classmethod
    def find(cls, store: Store, plan: Plan) -> "Run | None":
        """Returns the run of `plan` at the store, None when it is not begun. Raises as `join` does."""
        existing = fetch_document(store, plan.KEY)
        if existing is not None:
            return cls(store, _same_plan(store.url, plan, existing))
        other = PLAN_KEY if plan.KEY == SERIES_KEY else SERIES_KEY
        if fetch_document(store, other) is not None:
            theirs, verb = ("a run", "run") if other == PLAN_KEY else ("a series", "adapt")
            raise PlanMismatch(f"{store.url}: holds {theirs} ({other}); use `nisynth {verb}`, or another URL")
        if next(iter(store.list("commits/")), None) is not None:
            raise PlanMismatch(
                f"{store.url}: has commits but no plan.json, so their config is unknown; use another URL"
            )
        return None

    @classmethod
    def open(cls, store: Store) -> "Run":
        """Returns the run that the store holds. Raises PlanMismatch when there is no run, DataError."""
        existing = fetch_document(store, PLAN_KEY)
        if existing is None:
            raise PlanMismatch(f"{store.url}: no run there (no plan.json); check the URL")
        return cls(store, parse_plan(store.url, existing, Plan))

    def name_images(self) -> None:
        """Stores which files are the images, for Hugging Face `datasets`, if that is not there yet.

        Raises StorageError.
        """
        with contextlib.suppress(AlreadyExists, OutcomeUnknown):  # nothing is decided by it
            self.store.create(LOADER_KEY, loader_config(self.plan).encode())

    def is_sealed(self) -> bool:
        """True when `_SUCCESS` says that the run was complete."""
        return fetch_document(self.store, SUCCESS_KEY) is not None

    def step(self) -> str:
        """Returns the present step of a series, in words; "" for a run."""
        return ""

    def read_seal(self) -> str:
        """Returns the hash over the manifests that `_SUCCESS` holds. Raises IncompleteRun without one."""
        data = fetch_document(self.store, SUCCESS_KEY)
        if data is None:
            raise incomplete(self.store.url)
        return data.decode(errors="replace").strip()

    def seal_of(self, manifest_sha256s: Sequence[str]) -> str:
        """Returns what `_SUCCESS` must hold for these manifests, one for each of `rounds`."""
        return manifest_sha256s[0]

    def misfit(self, row: ShardRecord) -> str | None:
        """Returns why no worker of this set wrote the record of a shard, None when one may have."""
        return misfit(row, self.plan)

    def require_task(self, task: int) -> None:
        """Raises ConfigError for a number outside of the run's tasks."""
        if not 0 <= task < self.plan.num_tasks:
            raise ConfigError(f"task {task}: the run has tasks 0..{self.plan.num_tasks - 1}")

    def committed(self) -> set[int]:
        """Returns the tasks that a listing shows as committed: a hint that costs one LIST."""
        return self._listed("commits/")

    def quarantined(self, committed: set[int] | None = None) -> set[int]:
        """Returns the tasks that were given up on; a commit beats a quarantine.

        committed: what `committed` returned, where the caller has it; else one more LIST.
        """
        return self._listed("quarantine/") - (self.committed() if committed is None else committed)

    def shards(self) -> Iterable[tuple[str, int, str, int]]:
        """Yields (key, task, attempt, size in bytes) of every shard object of this fingerprint."""
        for info in self.store.list(f"data/{self.plan.fp12}-"):
            parsed = parse_shard_key(info.key, self.plan.fp12)
            if parsed is not None and parsed[0] < self.plan.num_tasks:
                yield info.key, *parsed, info.size_bytes

    def put_shard(self, task: int, attempt: str, data: bytes) -> str:
        """Stores one attempt's shard and returns its key. Raises StorageError."""
        key = shard_key(self.plan.fp12, task, attempt, self.plan.format)
        for _ in range(TRIES):
            try:
                self.store.create(key, data)
                return key
            except AlreadyExists:
                # The key holds this attempt's uuid: nobody else writes it, so an earlier try did.
                if holds(self.store, key, data):
                    return key
                raise StorageError(
                    f"{self.store.url}/{key}: another object holds this attempt's key"
                ) from None
            except OutcomeUnknown:
                continue
        raise StorageError(
            f"{self.store.url}/{key}: the shard could not be stored in {TRIES} tries; run again"
        )

    def commit(self, record: Commit) -> Outcome:
        """Makes the shard part of the run, unless another attempt was first, and says which.

        A loser's shard is deleted, and only after the winner's commit was read. `unknown` leaves
        everything as it is: the driver looks again.
        """
        key = commit_key(self.plan.fp12, record.task)
        data = record.to_json()
        for _ in range(TRIES):
            try:
                self.store.create(key, data)
                return "mine"
            except (AlreadyExists, OutcomeUnknown):
                try:
                    winner = self.read(record.task)
                except StorageError:
                    continue
            if winner is None:
                continue
            if winner.attempt == record.attempt:
                return "mine"
            self.store.delete(record.shard)
            return "other"
        return "unknown"

    def read(self, task: int) -> Commit | None:
        """Returns the task's commit, None when there is none. Raises DataError for a damaged one."""
        key = commit_key(self.plan.fp12, task)
        data = fetch_document(self.store, key)
        return None if data is None else Commit.from_json(data, key, self.plan)

    def quarantine(self, task: int, failures: list[dict[str, Any]]) -> bool:
        """Records that the task is given up on, with what happened; False when it is committed after all."""
        if self.read(task) is not None:
            return False
        record = {
            "schema_version": 1,
            "task": task,
            "fingerprint": self.plan.fingerprint,
            "failures": failures,
        }
        with contextlib.suppress(AlreadyExists):
            self.store.create(quarantine_key(self.plan.fp12, task), json.dumps(record, indent=1).encode())
        return True

    def read_quarantine(self, task: int) -> dict[str, Any] | None:
        """Returns the record of a task that was given up on, None when there is none."""
        data = fetch_document(self.store, quarantine_key(self.plan.fp12, task))
        if data is None:
            return None
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            record = None
        return record if isinstance(record, dict) else {"failures": [], "damaged": True}

    def read_shard(self, row: ShardRecord) -> Shard:
        """Returns the shard that a commit describes: fetched, hashed, decoded and held to the plan.

        Raises DataError, naming the shard and the cure; StorageError.
        """
        return self.decode(row, fetch_shard(self.store, row))

    def decode(self, row: ShardRecord, data: bytes) -> Shard:
        """Returns the shard that the bytes hold, whose sha256 was compared with the commit's.

        Raises DataError when it is not what the plan says.
        """
        plan = self.plan
        try:
            shard = decode(
                data,
                plan.format,
                normalization=plan.normalization,
                pixels=plan.pixels,
                num_classes=plan.num_classes,
                max_px=plan.input_px,
                hash_checked=True,
            )
        except DataError as error:
            raise bad_shard(self.store, row, f"cannot be decoded: {error}") from None
        shape, planned = tuple(shard.images.pixels.shape), (row.rows, 3, plan.input_px, plan.input_px)
        if shape != planned:
            raise bad_shard(self.store, row, f"holds images of shape {shape}, the plan's are {planned}")
        if plan.observes_labels:  # `decode` has compared them with the classes
            return shard
        if shard.images.labels.tolist() != plan.labels(row.task)[: row.rows].tolist():
            raise bad_shard(self.store, row, "holds other labels than the plan's")
        return shard

    def retry(self) -> list[int]:
        """Lifts every quarantine, so that the next run tries those tasks again; returns them."""
        tasks = sorted(self._listed("quarantine/"))
        for _ in in_parallel(self.store.delete, [quarantine_key(self.plan.fp12, task) for task in tasks]):
            pass
        return tasks

    def _listed(self, prefix: str) -> set[int]:
        keys = (
            parse_task_key(info.key, self.plan.fp12) for info in self.store.list(f"{prefix}{self.plan.fp12}-")
        )
        return {task for task in keys if task is not None and task < self.plan.num_tasks}


def incomplete(url: str) -> IncompleteRun:
    """Returns the error of a consumer that wants a whole set where tasks are missing."""
    return IncompleteRun(
        f"{url}: the run is not complete (no _SUCCESS); run it again to resume,"
        " or pass --allow-partial (allow_partial=True) for what is committed"
    )


def parse_plan(url: str, data: bytes, kind: type[AnyPlan]) -> AnyPlan:
    """Returns the plan that a document holds. Raises DataError when it is damaged or was changed."""
    try:
        document = json.loads(data)
        if not isinstance(document, Mapping):
            raise ValueError("not an object")
    except (ValueError, RecursionError):
        raise DataError(f"{url}/{kind.KEY}: not JSON, the plan is damaged; {_PLAN_CURE}") from None
    try:
        return kind(document)
    except DataError as error:
        raise DataError(f"{url}/{error}; {_PLAN_CURE}") from None


def _same_plan(url: str, plan: Plan, data: bytes) -> Plan:
    theirs = parse_plan(url, data, type(plan))
    if theirs.fingerprint != plan.fingerprint:
        fields = "; ".join(differing_fields(plan.identity, theirs.identity))
        raise PlanMismatch(
            f"{url}: holds a run of another config: {fields}. Use that config, or another --store URL"
        )
    return plan
