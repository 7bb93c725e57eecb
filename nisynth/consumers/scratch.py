"""Training from scratch: a network learns the synthetic images by their labels alone (Tables 2 and 9).

The learning rate is the paper's; momentum, weight decay, cosine schedule and augmentation are ours, stated
nowhere.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from nisynth.consumers.job import Source, config_of, run_job
from nisynth.consumers.student import (
    Job,
    JobConfig,
    base_identity,
    open_data,
    read_test_set,
)
from nisynth.consumers.student_report import StudentReport
from nisynth.consumers.training_log import Say, silent
from nisynth.errors import ConfigError
from nisynth.training import TrainConfig, hard_label_loss
from nisynth.training.student import student_network


@dataclass(frozen=True, kw_only=True)
class ScratchTrainConfig(TrainConfig):
    """TrainConfig with the defaults of this recipe."""

    lr: float = 0.05
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixes:
            raise ConfigError("train.mixup, train.cutmix: a mixture has no label; use them with distill")


@dataclass(frozen=True, kw_only=True)
class ScratchConfig(JobConfig):
    """A training from scratch."""

    train: ScratchTrainConfig = field(default_factory=ScratchTrainConfig)


def train_from_scratch(
    config: ScratchConfig | Source, *, address: str | None = None, say: Say = silent
) -> StudentReport:
    """Returns the report of a student trained on labels, as `distill` does with a teacher."""
    return run_job(prepare, config_of(ScratchConfig, config, "scratch"), address, say)


def prepare(config: ScratchConfig) -> Job:
    """Returns the validated job; loads no images. Raises as `distill` does."""
    config = replace(config, train=config.train.padded_as(None))
    dataset = open_data(config)
    network = student_network(config.student, dataset, config.train.seed)
    return Job(
        kind="scratch",
        config=config,
        dataset=dataset,
        network=network,
        loss=hard_label_loss,
        identity=base_identity("scratch", config, dataset, network),
        test=read_test_set(config, dataset),
    )
