"""A series read as one run: its tasks are numbered over all rounds, its shards named from its own URL.

Whatever reads a run (status, verify, the reader, pictures, the page) reads a series by the same code. Only
the rounds are written to, each by its own drivers.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Lock
from typing import Any

from nisynth.commits.card import write_card
from nisynth.commits.fetch import fetch_document
from nisynth.commits.records import Commit, ManifestRow, ShardRecord
from nisynth.commits.run import PLAN_KEY, SUCCESS_KEY, Record, Run, incomplete, parse_plan
from nisynth.commits.seal import CARD_KEY, create_same, read_manifest, unseal
from nisynth.errors import ConfigError, DataError, PlanMismatch
from nisynth.identity import differing_fields
from nisynth.plan import Plan
from nisynth.series.plan import SeriesPlan
from nisynth.storage import AlreadyExists, OutcomeUnknown, Store, open_store


def open_run(url: str) -> Run:
    """Returns the run or the series at a URL. Raises PlanMismatch when it holds neither, DataError."""
    store = open_store(url)
    data = fetch_document(store, PLAN_KEY)
    if data is not None:
        return Run(store, parse_plan(store.url, data, Plan))
    data = fetch_document(store, SeriesPlan.KEY)
    if data is not None:
        return Series(store, parse_plan(store.url, data, SeriesPlan))
    raise PlanMismatch(f"{store.url}: no run there (no plan.json); check the URL")


def open_rounds(url: str, num_rounds: int | None) -> Run:
    """Returns the run or series at a URL; with a number, the first rounds of a series alone.

    Raises ConfigError for a number where there is no series, or one with fewer rounds.
    """
    run = open_run(url)
    if num_rounds is None:
        return run
    if not isinstance(run, Series):
        raise ConfigError(f"rounds: {run.store.url} is a run and has none; leave rounds out")
    if not 1 <= num_rounds <= run.plan.num_rounds_in_all:
        raise ConfigError(f"rounds: {num_rounds} is not within 1..{run.plan.num_rounds_in_all} of the series")
    return Series(run.store, run.plan.first_rounds(num_rounds))


class Series(Run):
    """The rounds of one URL as one set. Begun by `join`, as a run is; its plan is a `SeriesPlan`."""

    plan: SeriesPlan

    def __init__(self, store: Store, plan: Plan) -> None:
        assert isinstance(plan, SeriesPlan)
        super().__init__(store, plan)
        self.plan = plan
        self._found: list[Run] = []
        self._lock = Lock()

    def round_url(self, number: int) -> str:
        """Returns where a round is, or will be."""
        return f"{self.store.url}/{_folder(number)}"

    @property
    def rounds(self) -> tuple[Run, ...]:
        """The rounds that are begun; looks for those that were begun meanwhile.

        Raises DataError when one is not this series' round.
        """
        with self._lock:
            while len(self._found) < len(self.plan.sizes):
                found = self._open(len(self._found))
                if found is None:
                    break
                self._found.append(found)
            return tuple(self._found)

    @property
    def first_task(self) -> int:
        return self.plan.first_tasks[max(0, len(self.rounds) - 1)]

    def place(self, task: int) -> tuple[int, int]:
        return self.plan.place(task)

    def numbered(self, number: int, record: Record) -> Record:
        task = record.task + self.plan.first_tasks[number]
        return replace(record, task=task, shard=f"{_folder(number)}/{record.shard}")

    def rival_sha256(self, number: int) -> str | None:
        """Returns the hash of the rival that round `number` competes with; None while it is not begun."""
        rounds = self.rounds
        return _rival_of(rounds[number].plan) if number < len(rounds) else None

    def step(self) -> str:
        rounds, last = self.rounds, len(self.plan.sizes) - 1
        if not rounds:
            return f"round 0 of 0..{last} is not begun"
        at = len(rounds) - 1
        if not rounds[at].is_sealed():
            return (
                f"round {at} of 0..{last}: {len(rounds[at].committed()):,} of {self.plan.sizes[at]:,} tasks"
            )
        return "only the seal is missing" if at == last else f"the rival of round {at + 1} is being distilled"

    def is_sealed(self) -> bool:
        if self.plan.is_whole:
            return super().is_sealed()
        rounds = self.rounds
        return len(rounds) == len(self.plan.sizes) and all(part.is_sealed() for part in rounds)

    def read_seal(self) -> str:
        if self.plan.is_whole:
            return super().read_seal()
        rounds = self.rounds
        if len(rounds) < len(self.plan.sizes):
            raise incomplete(self.store.url)
        return self.seal_of([part.read_seal() for part in rounds])

    def seal_of(self, manifest_sha256s: Sequence[str]) -> str:
        lines = "".join(f"{number:04d} {sha256}\n" for number, sha256 in enumerate(manifest_sha256s))
        return hashlib.sha256(lines.encode()).hexdigest()

    def seal(self) -> bool:
        """Finishes a series whose rounds are all sealed; False when some are not.

        A last look finds a round whose seal `redo` took off meanwhile: then this one comes off again. Raises
        DataError when a round's manifest is damaged, StorageError.
        """
        rounds = self.rounds
        if len(rounds) < len(self.plan.sizes) or not all(part.is_sealed() for part in rounds):
            return False
        rows = [row for part in rounds for row in read_manifest(part)]
        self.name_images()
        card = write_card(self.plan, [row.bytes for row in rows], [row.teacher_accuracy for row in rows])
        with suppress(AlreadyExists, OutcomeUnknown):  # any card will do, as of a run
            self.store.create(CARD_KEY, card.encode())
        seal = self.seal_of([part.read_seal() for part in rounds])
        create_same(self.store, SUCCESS_KEY, f"{seal}\n".encode())
        if all(part.is_sealed() for part in rounds):
            return True
        unseal(self)
        return False

    def rows_before(self, number: int) -> list[ManifestRow]:
        """Returns the shards of the rounds before `number`, which are sealed. Raises as `read_manifest`."""
        return read_manifest(Series(self.store, self.plan.first_rounds(number)))

    def shards(self) -> Iterable[tuple[str, int, str, int]]:
        for number, part in enumerate(self.rounds):
            first = self.plan.first_tasks[number]
            for key, task, attempt, size in part.shards():
                yield f"{_folder(number)}/{key}", first + task, attempt, size

    def read(self, task: int) -> Commit | None:
        number, local = self.place(task)
        rounds = self._found if number < len(self._found) else self.rounds
        commit = rounds[number].read(local) if number < len(rounds) else None
        return None if commit is None else self.numbered(number, commit)

    def read_quarantine(self, task: int) -> dict[str, Any] | None:
        number, local = self.place(task)
        rounds = self.rounds
        return rounds[number].read_quarantine(local) if number < len(rounds) else None

    def misfit(self, row: ShardRecord) -> str | None:
        number, local = self.place(row.task) if 0 <= row.task < self.plan.num_tasks else (-1, 0)
        rounds, folder = self.rounds, f"{_folder(number)}/"
        if not 0 <= number < len(rounds) or not row.shard.startswith(folder):
            return "of no round of this series"
        return rounds[number].misfit(replace(row, task=local, shard=row.shard.removeprefix(folder)))

    def retry(self) -> list[int]:
        rounds = enumerate(self.rounds)
        return [self.plan.first_tasks[number] + task for number, part in rounds for task in part.retry()]

    def _listed(self, prefix: str) -> set[int]:
        rounds = enumerate(self.rounds)
        return {
            self.plan.first_tasks[number] + task for number, part in rounds for task in part._listed(prefix)
        }

    def _open(self, number: int) -> Run | None:
        store = open_store(self.round_url(number))
        data = fetch_document(store, PLAN_KEY)
        if data is None:
            return None
        plan = parse_plan(store.url, data, Plan)
        expected = self.plan.round_identity(number, _rival_of(plan) if number else None)
        if plan.identity != expected:
            fields = "; ".join(differing_fields(expected, plan.identity))
            raise DataError(
                f"{store.url}/{PLAN_KEY}: not round {number} of the series: {fields}; put the original back,"
                " or use another URL"
            )
        return Run(store, plan)


def _folder(number: int) -> str:
    return f"rounds/{number:04d}"


def _rival_of(plan: Plan) -> str:
    """Returns the hash of the rival's weights in a round's plan, "" where there is none."""
    rival = plan.identity["method"].get("rival")
    return str(rival.get("weights", "")) if isinstance(rival, dict) else ""
