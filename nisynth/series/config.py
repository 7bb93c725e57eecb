"""The recipe of a series: a run's config, how its rounds grow, and how their rivals are distilled."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from nisynth.config import RunConfig, load_config
from nisynth.config_loader import check_keys, load_as, read_values
from nisynth.consumers.distill import DistillConfig, LossConfig
from nisynth.errors import ConfigError
from nisynth.identity import counted_fields, fingerprint, versions
from nisynth.plan import make_plan
from nisynth.series.plan import MAX_ROUNDS, SeriesPlan, round_sizes
from nisynth.synthesis.inversion.rival import RivalConfig
from nisynth.teachers import Teacher
from nisynth.training import TrainConfig
from nisynth.training.student import StudentConfig, student_network


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """How a series grows.

    base: tasks of round 0, which has no rival. growth: of each later round, relative to all tasks before it,
    at least one task; 0 is the published loop of one task a round. steps_per_batch: of SGD on the rival, for
    each batch that is new to it (50 is DeepInversion's). checkpoint_minutes: between two saves of the rival.
    workers: processes that distill it, on a cluster; one, the default, gives the same rival on every cluster,
    more give it to rounding.
    """

    base: int = 200
    growth: float = 0.25
    steps_per_batch: int = 50
    checkpoint_minutes: float = 5.0
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("base", "steps_per_batch", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rounds.{name}: {getattr(self, name)} is not at least 1")
        if not 0 <= self.growth < math.inf:
            raise ConfigError(f"rounds.growth: {self.growth} is not a finite number, 0 or more")
        if not self.checkpoint_minutes >= 0:
            raise ConfigError(f"rounds.checkpoint_minutes: {self.checkpoint_minutes} is negative")


@dataclass(frozen=True, kw_only=True)
class RivalTrainConfig(TrainConfig):
    """TrainConfig with the defaults of a rival: batches of 256 at a constant rate."""

    batch_size: int = 256
    schedule: Literal["steps", "cosine", "constant"] = "constant"


@dataclass(frozen=True, kw_only=True)
class _Learning:
    """The sections that a recipe adds to a run's config."""

    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    train: RivalTrainConfig = field(default_factory=RivalTrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """A recipe. run: of the whole set, its method without a rival. rival: without weights, which are made."""

    run: RunConfig
    rival: RivalConfig
    rounds: RoundsConfig
    train: RivalTrainConfig
    loss: LossConfig

    def check_rival(self, teacher: Teacher) -> None:
        """Raises ConfigError where the rival's network cannot be built, or cannot learn from the teacher."""
        student = StudentConfig(arch=self.rival.arch, kwargs=self.rival.kwargs)
        try:
            student_network(student, teacher, self.train.seed)
        except ConfigError as error:
            line = str(error).replace("but these have", "but the teacher has")
            line = line.replace("teacher.arch", "arch").replace("student.arch", "arch")
            raise ConfigError(
                f"method.rival.{line}" if line.startswith("arch") else line
            ) from error.__cause__

    def plan(self, teacher: Teacher) -> SeriesPlan:
        """Returns the plan of the series for a loaded teacher."""
        whole = make_plan(self.run, teacher.identity)
        rival = {name: value for name, value in asdict(self.rival).items() if name != "weights"}
        series = {
            "rounds": {name: getattr(self.rounds, name) for name in ("base", "growth", "steps_per_batch")},
            "rival": rival,
            "train": counted_fields(self.train),
            "loss": asdict(self.loss),
        }
        identity = {**whole.identity, "series": json.loads(json.dumps(series))}
        sizes = round_sizes(whole.num_tasks, self.rounds.base, self.rounds.growth)
        if len(sizes) > MAX_ROUNDS:
            raise ConfigError(
                f"rounds: base {self.rounds.base} and growth {self.rounds.growth:g} make more than"
                f" {MAX_ROUNDS:,} rounds of {whole.num_tasks:,} tasks; raise one of them"
            )
        return SeriesPlan(
            {
                "identity": identity,
                "fingerprint": fingerprint(identity),
                "sizes": sizes,
                "execution": whole.document["execution"],
                "versions": versions(),
            }
        )

    def round_config(self, plan: SeriesPlan, number: int, rival_url: str | None) -> RunConfig:
        """Returns the config of a round. rival_url: None for round 0."""
        stated = plan.round_identity(number, None)["run"]
        run = replace(self.run.run, num_images=stated["num_images"], seed=stated["seed"])
        if rival_url is None:
            return replace(self.run, run=run)
        method: Any = self.run.method
        return replace(
            self.run, run=run, method=replace(method, rival=replace(self.rival, weights=rival_url))
        )

    def distillation(
        self, plan: SeriesPlan, number: int, url: str, output: str, start: str | None
    ) -> DistillConfig:
        """Returns how the rival of round `number` is made from the rounds before it.

        url: of the series. start: the weights of the rival before it, None for the first.
        """
        steps = self.rounds.steps_per_batch * plan.sizes[number - 1]
        return DistillConfig(
            data=url,
            rounds=number,
            output=output,
            teacher=self.run.teacher,
            student=StudentConfig(arch=self.rival.arch, kwargs=self.rival.kwargs, weights=start),
            train=replace(self.train, steps=steps, seed=plan.round_seed(number)),
            loss=self.loss,
            workers=self.rounds.workers,
            checkpoint_minutes=self.rounds.checkpoint_minutes,
        )


def load_adapt_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> AdaptConfig:
    """Returns the recipe of a file, a shipped config's name, or a mapping, with `a.b=c` overrides.

    It is a run's config whose `method.rival` has no weights, with the sections `rounds`, `train` and `loss`.
    Raises ConfigError: one line that names the field, the value and what would be right.
    """
    values = read_values(source, overrides, "adapt")
    own = {f.name: f.type for f in fields(_Learning)}
    check_keys(values, own | {f.name: f.type for f in fields(RunConfig)}, "")
    learning = load_as(_Learning, {k: v for k, v in values.items() if k in own}, kind="adapt")
    rest = {name: value for name, value in values.items() if name not in own}
    method = rest.get("method")
    rival = method.get("rival") if isinstance(method, dict) else None
    if not isinstance(method, dict) or not isinstance(rival, dict):
        raise ConfigError(
            "method.rival: missing; name the student to compete with, as in `rival: {arch: resnet18}`"
        )
    if "weights" in rival:
        raise ConfigError("method.rival.weights: adapt makes the rivals itself; leave it out")
    loaded = load_config({**rest, "method": {**method, "rival": {**rival, "weights": ""}}})
    _refuse(values.get("train") or {}, loaded, learning)
    found: Any = loaded.method
    alone = replace(loaded, method=replace(found, rival=None))
    return AdaptConfig(
        run=alone, rival=found.rival, rounds=learning.rounds, train=learning.train, loss=learning.loss
    )


def _refuse(train: Mapping[str, Any], config: RunConfig, learning: _Learning) -> None:
    """Raises ConfigError for what a run or a distillation may have and a series may not.

    train: as the user stated it.
    """
    for name in ("epochs", "steps", "seed", "milestones", "gamma"):
        if name in train:
            cure = "run.seed decides it" if name == "seed" else "rounds.steps_per_batch says how long"
            raise ConfigError(
                f"train.{name}: {train[name]!r} cannot be set in a series: {cure}; leave it out"
            )
    if learning.train.schedule != "constant":
        raise ConfigError(
            f"train.schedule: {learning.train.schedule!r}: a rival goes on from the last one; use constant"
        )
    if config.execution.max_failed_tasks:
        raise ConfigError(
            f"execution.max_failed_tasks: {config.execution.max_failed_tasks}: the next round's rival learns"
            " from whole rounds; leave it out"
        )
    if learning.train.batch_size % learning.rounds.workers:
        raise ConfigError(
            f"rounds.workers: {learning.rounds.workers} do not divide train.batch_size"
            f" {learning.train.batch_size}; each takes an equal part"
        )
