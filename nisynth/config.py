"""The composition of a run: the Config of each part, which lies beside its owner, becomes one `RunConfig`.

Secrets have no place here: stores take theirs from the standard credential chain.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nisynth.config_loader import check_keys, choose, read_values, section
from nisynth.errors import ConfigError
from nisynth.plan import MAX_BATCH, MAX_TASKS
from nisynth.shards import OutputConfig
from nisynth.synthesis import METHODS, EngineConfig, Method
from nisynth.synthesis.naturalinversion.exchange import check_exchange
from nisynth.teachers import TeacherConfig


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """The target set: so many images, in batches, from one seed.

    num_images: images of the whole set; 256,000 are the paper's 256k. batch_size: images of one task,
    which are synthesized together and become one shard. seed: of all randomness, 0..2^63-1; another seed
    gives another set.
    """

    num_images: int = 256_000
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ConfigError(f"run.num_images: {self.num_images} is not at least 1")
        if self.batch_size < 2:
            raise ConfigError(
                f"run.batch_size: {self.batch_size} is not at least 2 (BatchNorm needs a batch);"
                " the paper's is 256"
            )
        if self.batch_size > MAX_BATCH:
            raise ConfigError(f"run.batch_size: {self.batch_size} is above {MAX_BATCH}")
        if self.num_images > MAX_TASKS * self.batch_size:
            raise ConfigError(
                f"run.num_images: {self.num_images} in batches of {self.batch_size} are more than"
                f" {MAX_TASKS} tasks; raise run.batch_size, or make several runs"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"run.seed: {self.seed} is not within 0..2^63-1")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a run is carried out; none of it changes an image, so none of it is fingerprinted.

    workers: actors. cpu_threads: torch threads per worker. gpus_per_worker: may be a fraction, and is
    waited for until the cluster has it; 0 is the CPU; none is 1 where the cluster has GPUs when the run
    starts, else 0. max_failed_tasks: quarantined tasks that a run may end with.
    quality_gate: the least accuracy, 0..1, of the teacher on a batch's decoded images.
        Where labels are observed, which is an accuracy of 1, the least entropy of a batch's classes instead,
        as a share of that of balanced ones.
    single_writer: only the driver commits, for a store without conditional writes.
    log_every: iterations between two entries of a commit's loss curve.
    """

    workers: int = 1
    cpu_threads: int = 1
    gpus_per_worker: float | None = None
    max_failed_tasks: int = 0
    quality_gate: float = 0.5
    single_writer: bool = False
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("workers", "cpu_threads", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"execution.{name}: {getattr(self, name)} is not at least 1")
        if self.gpus_per_worker is not None and not self.gpus_per_worker >= 0:
            raise ConfigError(f"execution.gpus_per_worker: {self.gpus_per_worker} is negative")
        if self.max_failed_tasks < 0:
            raise ConfigError(f"execution.max_failed_tasks: {self.max_failed_tasks} is negative")
        if not 0.0 <= self.quality_gate <= 1.0:
            raise ConfigError(f"execution.quality_gate: {self.quality_gate} is not within 0..1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a run, and how it is executed."""

    run: TargetConfig = field(default_factory=TargetConfig)
    teacher: TeacherConfig
    method: Method
    output: OutputConfig = field(default_factory=OutputConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        check_exchange(self.run.batch_size, getattr(self.method, "exchange", 0))

    def to_dict(self) -> dict[str, Any]:
        """Returns the resolved config as plain JSON types; `load_config` takes it back."""
        resolved: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return resolved


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the RunConfig of a file, a shipped config's name, or a mapping, with `a.b=c` overrides.

    Raises ConfigError: one line that names the field, the value and what would be right.
    """
    values = read_values(source, overrides, "")
    sections = {f.name: f.type for f in dataclasses.fields(RunConfig)}
    sections["method"], values["method"] = choose(
        "method", values.get("method"), METHODS, lambda method: METHODS[method["name"]].default_preset(method)
    )
    check_keys(values, sections, "")
    if "teacher" not in values:
        raise ConfigError(
            "teacher: missing; name the network, as in `teacher: {arch: resnet34, weights: path}`"
        )
    parts = {
        key: section(key, values.get(key) or {}, owner)
        for key, owner in sections.items()
        if isinstance(owner, type)
    }
    return RunConfig(**parts)
