"""The documents of a run and their keys.

The bucket is not trusted: keys are matched against a pattern and rebuilt from their parts, never joined
raw, and a document is checked field by field before anything acts on it.
"""

import builtins
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from nisynth.errors import DataError
from nisynth.plan import Plan, is_printable

SCHEMA_VERSION = 1

Outcome = Literal["mine", "other", "unknown"]
"""Whose commit a task has: this attempt's, another's, or unknown where no answer of the store settles it."""

_ATTEMPT = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_SHARD_KEY = re.compile(rf"data/([0-9a-f]{{12}})-([0-9]{{8}})-({_ATTEMPT})\.(parquet|npz)")
_TASK_KEY = re.compile(r"(commits|quarantine)/([0-9a-f]{12})-([0-9]{8})\.json")
_SHARD_OVERHEAD_BYTES = 1 << 26
MAX_WORD_CHARS = 1000
_TYPES: dict[str, type] = {
    **dict.fromkeys(("task", "bytes", "rows", "seed"), int),
    **dict.fromkeys(("shard", "sha256", "device", "worker"), str),
    **dict.fromkeys(("figures", "timings_s", "versions"), dict),
    "curve": list,
}


def shard_key(fp12: str, task: int, attempt: str, extension: str) -> str:
    """Returns the key of one attempt's shard; attempts are uuid4, so no two ever share a key."""
    return f"data/{fp12}-{task:08d}-{attempt}.{extension}"


def commit_key(fp12: str, task: int) -> str:
    """Returns the key whose existence means that the task is done."""
    return f"commits/{fp12}-{task:08d}.json"


def quarantine_key(fp12: str, task: int) -> str:
    """Returns the key of the record of a task that was given up on."""
    return f"quarantine/{fp12}-{task:08d}.json"


def parse_task_key(key: str, fp12: str) -> int | None:
    """Returns the task of a commit's or quarantine's key, None for any other or another fingerprint's."""
    match = _TASK_KEY.fullmatch(key)
    return int(match[3]) if match and match[2] == fp12 else None


def parse_shard_key(key: str, fp12: str) -> tuple[int, str] | None:
    """Returns (task, attempt) of a shard's key, None for any other or another fingerprint's."""
    match = _SHARD_KEY.fullmatch(key)
    return (int(match[2]), match[3]) if match and match[1] == fp12 else None


def misfit(row: "ShardRecord", plan: Plan) -> str | None:
    """Returns why no worker of this plan wrote the record of a shard, None when one may have."""
    if not 0 <= row.task < plan.num_tasks:
        return f"is of task {row.task}, the run has tasks 0..{plan.num_tasks - 1}"
    if row.rows != plan.rows(row.task) or row.seed != plan[row.task].seed:
        return "its rows or seed are not the plan's"
    named = parse_shard_key(row.shard, plan.fp12)
    if named != (row.task, row.attempt) or not row.shard.endswith(f".{plan.format}"):
        return f"names shard {row.shard[:80]!r}, which is not its attempt's {plan.format} file"
    # float32 pixels, or PNG, whose worst case is less
    if row.bytes > row.rows * (12 * plan.input_px**2 + 1024) + _SHARD_OVERHEAD_BYTES:
        return f"its shard has {row.bytes} bytes, which exceeds the limit for {row.rows} images"
    return None


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What a commit and a row of the manifest both say of a shard. bytes, sha256: of the stored object."""

    task: int
    attempt: str
    shard: str
    bytes: int
    rows: int
    sha256: str
    seed: int


@dataclass(frozen=True)
class Commit(ShardRecord):
    """The shard's manifest: the record that makes one attempt's shard part of the run.

    curve: loss terms by iteration. figures: quality, such as `teacher_accuracy` and `r_bn_in_y`. timings_s:
    seconds by stage. worker: host/pid, empty where not recorded. started_at, finished_at: Unix seconds by the
    worker's clock when its compute began (0 where not recorded) and when it ended, for people and progress
    only; no decision reads them.
    """

    fingerprint: str
    curve: list[dict[str, float]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    worker: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> builtins.bytes:
        """Returns the document as it is stored, its seed in hex: many readers' integers end before it."""
        document = asdict(self) | {"seed": f"{self.seed:016x}"}
        return json.dumps(document, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: builtins.bytes, key: str, plan: Plan) -> "Commit":
        """Returns the commit stored at `key`. Raises DataError when it is damaged or of another plan."""
        try:
            document = json.loads(data)
            if not isinstance(document, dict):
                raise TypeError("not an object")
            known = {f.name for f in fields(cls)}
            if isinstance(document.get("seed"), str):  # hex; earlier versions stored a number
                document["seed"] = int(document["seed"], 16)
            commit = cls(**{name: value for name, value in document.items() if name in known})
        except (ValueError, TypeError, RecursionError):
            raise DataError(
                f"{key}: not a commit (damaged JSON); `nisynth redo URL --bad` removes it"
            ) from None
        problem = commit._problem(key, plan)
        if problem:
            raise DataError(f"{key}: {problem}; `nisynth redo URL --bad` removes it")
        return commit

    def _problem(self, key: str, plan: Plan) -> str | None:
        for name, kind in _TYPES.items():
            if type(getattr(self, name)) is not kind:
                return f"{name} is not {kind.__name__}"
        if self.schema_version != SCHEMA_VERSION:
            return f"schema_version {self.schema_version!r}, this version reads {SCHEMA_VERSION}"
        if self.fingerprint != plan.fingerprint:
            return "of another fingerprint"
        if key != commit_key(plan.fp12, self.task):
            return f"says it is task {self.task}"
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            return "sha256 is not 64 hex digits"
        return misfit(self, plan) or self._problem_of_figures()

    def _problem_of_figures(self) -> str | None:
        numbers = [
            self.started_at,
            self.finished_at,
            self.figures.get("teacher_accuracy", 0.0),
            self.figures.get("r_bn_in_y", 0.0),
            *self.timings_s.values(),
        ]
        for point in self.curve:
            if not isinstance(point, dict):
                return "curve is not a list of points"
            numbers += point.values()
        if not all(_is_number(number) for number in numbers):
            return "curve, timings_s, a time or a figure holds a value that is not a finite number"
        try:
            json.dumps([self.figures, self.versions], allow_nan=False)  # what is read can be written again
        except (ValueError, RecursionError):
            return "figures or versions hold a number that is not finite"
        named = {name: None for point in self.curve for name in point}
        words = _words([self.device, self.worker, self.versions, self.figures, self.timings_s, named])
        if not all(len(word) <= MAX_WORD_CHARS and is_printable(word) for word in words):
            return "device, worker, versions or a figure hold text that no worker writes"
        return None


def _words(values: list[Any]) -> Iterator[str]:
    """Yields every text in the values, at any depth, names included."""
    left = values
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) < 1 << 64


@dataclass(frozen=True, slots=True)
class ManifestRow(ShardRecord):
    """One shard of the finished set: what a consumer needs to fetch and check it."""

    teacher_accuracy: float

    @classmethod
    def of(cls, commit: Commit) -> "ManifestRow":
        """Returns what the manifest keeps of a commit."""
        shared = {f.name: getattr(commit, f.name) for f in fields(ShardRecord)}
        return cls(**shared, teacher_accuracy=float(commit.figures.get("teacher_accuracy", 0.0)))


@dataclass(frozen=True)
class Receipt:
    """What a worker returns for an attempt: a few hundred bytes, never images.

    seconds: by stage (`synthesize`, `judge`, `encode`, `put`, `commit`); empty where nothing was computed.
    commit: the full record, only in `single_writer` mode, where the driver creates it. store_retries:
    requests that this worker sent again since its last receipt.
    """

    task: int
    attempt: str
    outcome: Outcome
    rows: int
    seconds: dict[str, float]
    figures: dict[str, Any]
    worker: str
    commit: Commit | None = None
    store_retries: int = 0

    @property
    def compute_s(self) -> float | None:
        """The seconds that the task held the worker's compute; None where it was committed already.

        Deadlines and stragglers go by these alone: uploads overlap the next task's compute.
        """
        if not self.seconds:
            return None
        return self.seconds.get("synthesize", 0.0) + self.seconds.get("judge", 0.0)
