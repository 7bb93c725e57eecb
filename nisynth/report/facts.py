"""What a run's storage says of it, gathered for the page: one pass over the commits, memory O(tasks)."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from nisynth.commits import Commit, Run
from nisynth.commits.audit import known_damage, read_or_why
from nisynth.commits.logs import TaskLog, quarantine_logs
from nisynth.commits.parallel import in_parallel
from nisynth.commits.records import ManifestRow
from nisynth.commits.rejected import Rejected, read_rejected
from nisynth.errors import DataError
from nisynth.execution.event_log import read_events
from nisynth.report.losses import Band, loss_bands, thin
from nisynth.series.run import Series


@dataclass(frozen=True)
class TaskFacts:
    """What the page keeps of a commit. losses: the final ones. started_at: 0 where not recorded.

    r_bn_in_y: of the decoded images, None where not recorded.
    """

    task: int
    attempt: str
    seed: int
    sha256: str
    rows: int
    bytes: int
    teacher_accuracy: float
    r_bn_in_y: float | None
    losses: dict[str, float]
    timings_s: dict[str, float]
    device: str
    worker: str
    started_at: float
    finished_at: float

    @property
    def seconds(self) -> float:
        """Seconds of compute that made the shard."""
        return self.timings_s.get("synthesize", 0.0)

    @property
    def r_bn(self) -> float | None:
        """The final R_BN, None where no curve was logged."""
        return self.losses.get("r_bn")


@dataclass(frozen=True)
class FailedAttempt:
    """An attempt that gave nothing, as a driver saw it. ended_at: Unix seconds by the driver's clock."""

    task: int
    worker: str
    kind: str
    seconds: float
    ended_at: float


@dataclass(frozen=True, eq=False)
class RunFacts:
    """A run as its storage shows it. damage: what is known to be wrong, a line each. bands: by loss term.

    failed_attempts: None where no driver left a log. rejected: the canary that failed, while nothing is
    committed. rounds: of a series, None of a run.
    """

    name: str
    fingerprint: str
    complete: bool
    planned: int
    planned_images: int
    classes: tuple[str, ...]
    input_px: int
    format: str
    batch_size: int
    identity: dict[str, Any]
    plan_versions: dict[str, str]
    tasks: tuple[TaskFacts, ...]
    damage: tuple[str, ...]
    quarantined: tuple[TaskLog, ...]
    bands: dict[str, Band]
    versions: Counter[str] = field(default_factory=Counter)
    failed_attempts: tuple[FailedAttempt, ...] | None = None
    rejected: Rejected | None = None
    rounds: int | None = None

    @property
    def images(self) -> int:
        """Images that are committed."""
        return sum(task.rows for task in self.tasks)

    @property
    def lost_seconds(self) -> float | None:
        """Seconds of attempts that gave nothing, None where not recorded."""
        attempts = self.failed_attempts
        return None if attempts is None else sum(attempt.seconds for attempt in attempts)

    @property
    def devices(self) -> Counter[str]:
        """Tasks by the device that made them."""
        return Counter(task.device or "not recorded" for task in self.tasks)


def gather(run: Run, on_read: Callable[[int, int], None] | None = None) -> RunFacts:
    """Returns the facts of a run at any time of it; on_read: called with (commits read, commits in all).

    Raises StorageError, DataError for a damaged quarantine listing.
    """
    plan = run.plan
    committed = sorted(run.committed())
    tasks: list[TaskFacts] = []
    found: list[ManifestRow | DataError] = []
    curves: list[list[Mapping[str, float]]] = []
    versions: Counter[str] = Counter()
    for number, commit in enumerate(in_parallel(lambda task: read_or_why(run, task), committed), 1):
        if isinstance(commit, Commit):
            tasks.append(_reduced(commit))
            found.append(ManifestRow.of(commit))
            if commit.curve:
                curves.append(thin(commit.curve))
            versions.update(f"{name} {value}" for name, value in commit.versions.items())
        elif commit is not None:
            found.append(commit)
        if on_read is not None:
            on_read(number, len(committed))
    rejected = None if committed else read_rejected(run)
    if rejected is not None and rejected.batch.curve:
        curves.append(thin(rejected.batch.curve))
    name, complete = public_name(run.store.url), run.is_sealed()
    _, damage = known_damage(run, set(committed), complete, found)
    facts = RunFacts(
        name=name,
        fingerprint=plan.fingerprint,
        complete=complete,
        planned=plan.num_tasks,
        planned_images=plan.num_images,
        classes=plan.classes,
        input_px=plan.input_px,
        format=plan.format,
        batch_size=plan.batch_size,
        identity=plan.identity,
        plan_versions=dict(plan.document.get("versions") or {}),
        tasks=tuple(tasks),
        damage=tuple(damage),
        quarantined=tuple(quarantine_logs(run)),
        bands=loss_bands(curves),
        versions=versions,
        failed_attempts=_failed_attempts(_events(run)),
        rejected=rejected,
        rounds=len(run.plan.sizes) if isinstance(run, Series) else None,
    )
    return replace(facts, damage=tuple(public_text(text, run, facts) for text in damage))


def public_text(text: str, run: Run, facts: RunFacts) -> str:
    """Returns a message with the run's place as a page may show it."""
    return text.replace(run.store.url, facts.name)


def public_name(url: str) -> str:
    """Returns a place as a page may show it: no path of this machine, no credentials, no query."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return parts.path.rstrip("/").rpartition("/")[2] or "run"
    if url.startswith("hf:"):
        return url
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def _events(run: Run) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the lines of the drivers' logs, each with what its task numbers begin at in the whole set."""
    first = 0
    for part in run.rounds:
        yield from ((first, line) for line in read_events(part.store))
        first += part.plan.num_tasks


def _failed_attempts(lines: Iterable[tuple[int, Mapping[str, Any]]]) -> tuple[FailedAttempt, ...] | None:
    """Returns the attempts that gave nothing; what is not as a driver writes it is left out."""
    attempts: list[FailedAttempt] = []
    recorded = False
    for first, line in lines:
        recorded = True
        listed = line.get("attempts") if line.get("event") == "worker_lost" else [line]
        if line.get("event") not in ("attempt_failed", "worker_lost") or not isinstance(listed, list):
            continue
        attempts += [
            FailedAttempt(
                task=first + attempt["task"],
                worker=str(attempt.get("worker", ""))[:200],
                kind=str(line.get("kind", "unknown"))[:50],
                seconds=float(attempt["seconds"]),
                ended_at=float(line["at"]),
            )
            for attempt in listed
            if isinstance(attempt, dict)
            and isinstance(attempt.get("task"), int)
            and _is_time(attempt.get("seconds"))
            and _is_time(line.get("at"))
        ]
    return tuple(attempts) if recorded else None


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < 1e11


def _reduced(commit: Commit) -> TaskFacts:
    losses = dict(commit.curve[-1]) if commit.curve else {}
    losses.pop("iteration", None)
    for name, value in commit.figures.items():  # of the images as they are stored, where the method says them
        if name.startswith("final_") and isinstance(value, (int, float)) and math.isfinite(value):
            losses[name.removeprefix("final_")] = float(value)
    return TaskFacts(
        task=commit.task,
        attempt=commit.attempt,
        seed=commit.seed,
        sha256=commit.sha256,
        rows=commit.rows,
        bytes=commit.bytes,
        teacher_accuracy=float(commit.figures.get("teacher_accuracy", 0.0)),
        r_bn_in_y=None if "r_bn_in_y" not in commit.figures else float(commit.figures["r_bn_in_y"]),
        losses=losses,
        timings_s=commit.timings_s,
        device=commit.device,
        worker=commit.worker,
        started_at=commit.started_at,
        finished_at=commit.finished_at,
    )
