"""Knowledge distillation: a student learns the teacher's soft answers to the synthetic images.

KL divergence between teacher and student at temperature T, scaled by T² (Hinton et al., 2015), on images
that are cropped and mirrored; no hard-label term by default. The recipe of TrainConfig's defaults is ours:
the paper states none.
"""

from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

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
from nisynth.device import default_device
from nisynth.errors import ConfigError
from nisynth.images import check_fits
from nisynth.reader import SyntheticDataset
from nisynth.teachers import Teacher, TeacherConfig, load_teacher
from nisynth.training import Loss
from nisynth.training.student import student_network

STORED_KIND = "distil"
"""Stands in identities since the first release: another spelling would resume no student begun before."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the student is held to.

    temperature: T of both softmaxes; 20 is the recipe, 3 its variant. hard_label_weight: of a
    cross-entropy against the labels, added to the divergence.
    """

    temperature: float = 20.0
    hard_label_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"loss.temperature: {self.temperature} is not above 0")
        if not self.hard_label_weight >= 0:
            raise ConfigError(f"loss.hard_label_weight: {self.hard_label_weight} is negative")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(JobConfig):
    """A distillation: the job, the teacher that answers, and the loss.

    teacher: the network that the student learns from. loss: what the student is held to.
    """

    teacher: TeacherConfig
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.mixes and self.loss.hard_label_weight:
            raise ConfigError(
                "loss.hard_label_weight: train.mixup and train.cutmix make mixtures, which have no label;"
                " set one of them to 0"
            )


def distill(
    config: DistillConfig | Source,
    *,
    address: str | None = None,
    say: Say = silent,
    on_cluster: bool = False,
) -> StudentReport:
    """Returns the report of a distilled student, which lies at the output URL; resumes what was begun there.

    config: a DistillConfig, a file, a shipped config's name, or a mapping.
    address: the Ray cluster for `workers` above 1; None is RAY_ADDRESS, else one of this machine's own.
    on_cluster: train there even with one worker.
    Raises ConfigError, TeacherError, IncompleteRun, PlanMismatch (another config's result or checkpoint
    lies there), DataError (a damaged shard or checkpoint), StorageError.
    """
    return run_job(prepare, config_of(DistillConfig, config, "distill"), address, say, on_cluster=on_cluster)


def prepare(config: DistillConfig) -> Job:
    """Returns the validated job; loads no images. Raises as `distill` does."""
    dataset = open_data(config)
    teacher = load_teacher(config.teacher, default_device())
    check_teacher(teacher, dataset)
    config = replace(config, train=config.train.padded_as(teacher.padding))
    network = student_network(config.student, dataset, config.train.seed)
    identity = {
        **base_identity(STORED_KIND, config, dataset, network),
        "teacher": {name: value for name, value in teacher.identity.items() if name != "taps"},
        "loss": asdict(config.loss),
    }
    return Job(
        kind="distill",
        config=config,
        dataset=dataset,
        network=network,
        loss=distillation_loss(teacher, config.loss),
        identity=identity,
        test=read_test_set(config, dataset),
        teacher=teacher,
    )


def check_teacher(teacher: Teacher, dataset: SyntheticDataset) -> None:
    """Raises ConfigError where the teacher's classes, input size or normalization are not the run's."""
    size_px = (dataset.input_px, dataset.input_px)
    check_fits(teacher, "teacher", f"data {dataset.url}", dataset.classes, dataset.num_classes, size_px)
    for name in ("mean", "std"):
        theirs, ours = getattr(teacher.normalization, name), getattr(dataset.normalization, name)
        if any(abs(a - b) > 1e-6 for a, b in zip(theirs, ours, strict=True)):
            raise ConfigError(
                f"teacher.{name}: {list(theirs)} contradicts the run's {list(ours)}, which its images were"
                " made for; give the run's, or the teacher it was made from"
            )


def distillation_loss(teacher: Teacher, config: LossConfig) -> Loss:
    """Returns T² KL(teacher || student) at temperature T, meaned over the batch, plus any hard-label term."""
    teacher.network.to(memory_format=torch.channels_last)  # as the student and its images
    temperature, weight = config.temperature, config.hard_label_weight

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            answers = F.log_softmax(teacher.logits(images).to(logits.dtype) / temperature, 1)
        ours = F.log_softmax(logits / temperature, 1)
        value = temperature**2 * F.kl_div(ours, answers, reduction="batchmean", log_target=True)
        return value + weight * F.cross_entropy(logits, labels) if weight else value

    return loss
