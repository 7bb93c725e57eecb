"""RunConfig -> Plan: a fingerprint of everything that changes an image, and tasks computed by formula.

Pure given the teacher's identity: no GPU, no clock, no library's random generator, so the plan is the
same on every machine and a million tasks cost no memory. `plan.json` in storage holds the document; a
Plan can be made from it again, which is how consumers and `verify` know every label.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Protocol, get_args

import numpy as np

from nisynth.batch import Task
from nisynth.errors import DataError, counted
from nisynth.identity import counted_fields, fingerprint, versions
from nisynth.images import MAX_PX, Normalization, Pixels
from nisynth.randomness import hashed_order, key
from nisynth.shards import Format

SCHEMA_VERSION = 1
NUMERICS_VERSION = 1
"""Raised when the same config gives other images, so that a resumed run never mixes the two."""
MAX_TASKS = 10**8
"""Keys hold the task in 8 digits."""
MAX_BATCH = 10**6
SECTIONS = ("run", "method", "output", "engine")


class Resolved(Protocol):
    """A RunConfig, as far as a plan needs it: consumers plan on machines without pydantic."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the resolved config as plain JSON types."""


class Artefact(Protocol):
    """Weights that another training left and a method's config names by URL."""

    @property
    def sha256(self) -> str:
        """Returns the hash of the weights, whatever file carried them."""

    @property
    def states(self) -> Mapping[str, Any]:
        """Returns what else of them decides the set, for the plan's `method`; empty for most."""


def make_plan(
    config: Resolved, teacher_identity: Mapping[str, Any], artefacts: Mapping[str, Artefact] | None = None
) -> "Plan":
    """Returns the plan of a config for the teacher that `Teacher.identity` describes.

    artefacts: by the field of `method` that names each; the plan holds its hash in place of its URL, so that
    a file may move and may not change.
    """

    resolved = config.to_dict()
    identity: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "numerics": NUMERICS_VERSION,
        **{part: counted_fields(getattr(config, part), resolved[part]) for part in SECTIONS},
        "teacher": dict(teacher_identity),
    }
    for name, artefact in (artefacts or {}).items():
        stated = identity["method"][name]  # a section with the URL as its `weights`, or the URL alone
        hashed = {**stated, "weights": artefact.sha256} if isinstance(stated, dict) else artefact.sha256
        identity["method"] |= {name: hashed, **artefact.states}
    return Plan(
        {
            "fingerprint": fingerprint(identity),
            "identity": identity,
            "execution": resolved["execution"],
            "versions": versions(),
        }
    )


class Plan:
    """The tasks of a run, each made when it is asked for, with a fingerprint.

    document: what the object `KEY` holds: `fingerprint`, `identity` (what it is the hash of), `execution`,
    `versions`. Raises DataError when the document is not a plan, or not the one it says it is.
    """

    KEY: ClassVar[str] = "plan.json"

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = dict(document)
        try:
            self.identity: dict[str, Any] = self.document["identity"]
            self.fingerprint: str = self.document["fingerprint"]
            self.num_images = int(self.identity["run"]["num_images"])
            self.batch_size = int(self.identity["run"]["batch_size"])
            self.seed = int(self.identity["run"]["seed"])
            self.num_classes = int(self.identity["teacher"]["num_classes"])
            self.format: Format = self.identity["output"]["format"]
            self.pixels: Pixels = self.identity["output"]["pixels"]
            self._refuse_impossible()
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(
                f"{self.KEY}: not a plan of this version ({error!r} is missing or wrong)"
            ) from None
        if fingerprint(self.identity) != self.fingerprint:
            raise DataError(f"{self.KEY}: its fingerprint does not match its content; it was changed by hand")

    def __repr__(self) -> str:
        size = f"{counted(self.num_tasks, 'task')}, {counted(self.num_images, 'image')}"
        return f"{type(self).__name__}({self.fp12}: {size})"

    @property
    def fp12(self) -> str:
        """The 12 hex digits of the fingerprint that begin every key of the run."""
        return self.fingerprint[:12]

    @property
    def shard_files(self) -> str:
        """The pattern that the shards of a finished set match, below its URL."""
        return f"data/{self.fp12}-*.{self.format}"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return tuple(self.identity["teacher"]["classes"])

    @property
    def input_px(self) -> int:
        """The side of every image, in pixels."""
        return int(self.identity["teacher"]["input_px"])

    @property
    def normalization(self) -> Normalization:
        """The teacher's mean and std."""
        teacher = self.identity["teacher"]
        return Normalization(mean=tuple(teacher["mean"]), std=tuple(teacher["std"]))

    @property
    def observes_labels(self) -> bool:
        """Whether labels are what the teacher says of finished images, not the plan's."""
        method = self.identity["method"]
        return bool(method.get("labels") == "observed" or method.get("exchange"))

    @property
    def num_real_images(self) -> int:
        """The real images that the generator which is sampled was fitted to; 0 for data-free methods."""
        return int((self.identity["method"].get("real_images") or {}).get("num_images", 0))

    @property
    def num_tasks(self) -> int:
        """The number of tasks, which is the number of shards and of commits of a complete run."""
        return -(-self.num_images // self.batch_size)

    def rows(self, index: int) -> int:
        """Returns the number of images that task `index` commits."""
        return min(self.batch_size, self.num_images - index * self.batch_size)

    def labels(self, index: int) -> Any:
        """Returns the `(B,)` int64 labels of task `index`: image j of the run has `perm[j mod C]`.

        Where labels are observed, no image has to have them.
        """
        first = index * self.batch_size
        return self._permutation[np.arange(first, first + self.batch_size) % self.num_classes]

    def __len__(self) -> int:
        return self.num_tasks

    def __getitem__(self, index: int) -> Task:
        if not -self.num_tasks <= index < self.num_tasks:
            raise IndexError(f"task {index}: the plan has tasks 0..{self.num_tasks - 1}")
        return self._task(index % self.num_tasks)

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(self.num_tasks))

    def _task(self, index: int) -> Task:
        return Task(
            index=index,
            seed=key(self.seed, index),
            labels=self.labels(index),
            rows=self.rows(index),
        )

    def _refuse_impossible(self) -> None:
        """Raises ValueError for what no config gives: a plan that anyone could write is read, too."""
        teacher, method = self.identity["teacher"], self.identity["method"]
        sizes = (self.num_images, self.batch_size, self.num_classes, self.input_px)
        if (
            min(sizes) < 1
            or self.batch_size > MAX_BATCH
            or self.num_tasks > MAX_TASKS
            or self.input_px > MAX_PX
        ):
            raise ValueError(f"run of {sizes}")
        if self.format not in get_args(Format) or self.pixels not in get_args(Pixels):
            raise ValueError("output")
        numbers = [*teacher["mean"], *teacher["std"], method.get("iterations", 0)]
        if len(numbers) != 7 or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("teacher.mean, teacher.std or method.iterations")
        if method.get("labels", "planned") not in ("planned", "observed") or self.num_real_images < 0:
            raise ValueError("method.labels or method.real_images")
        words = [teacher["arch"], teacher["weights_sha256"], method["name"], *self.classes]
        if len(words) != 3 + self.num_classes or not all(is_printable(word) for word in words):
            raise ValueError("teacher or method")

    @cached_property
    def _permutation(self) -> Any:
        return hashed_order(self.num_classes, self.seed, "class")


def is_printable(word: object) -> bool:
    """Returns whether it is text without control characters, safe to show in a terminal, a page or a card."""
    return isinstance(word, str) and word.isprintable()
