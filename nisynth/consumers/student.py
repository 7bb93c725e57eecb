"""A student from a dataset and a loss: what distillation and training from scratch have in common.

What is left at the output URL: `result.json` (written last: with it, the job is done), `student.safetensors`,
which `nisynth.load_teacher` opens again, `curve.png`, and, until then, `checkpoint.safetensors`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from nisynth.consumers.config import ConsumerConfig
from nisynth.consumers.streamed import source_of
from nisynth.consumers.student_report import Kind, StudentReport, plain, store_report
from nisynth.consumers.training_log import Say, TrainingLog
from nisynth.device import default_device, device_name
from nisynth.errors import ConfigError, counted
from nisynth.identity import counted_fields, versions
from nisynth.images import LabelledImages
from nisynth.images.real import load_real_set
from nisynth.reader import FollowConfig, SyntheticDataset, open_dataset
from nisynth.storage import Store, open_store
from nisynth.teachers import Teacher
from nisynth.teachers.checkpoint import hash_weights
from nisynth.teachers.predict import accuracy
from nisynth.teachers.save import network_bytes
from nisynth.training import Loss, TrainConfig, train
from nisynth.training.checkpoints import Checkpoints
from nisynth.training.loop import workers
from nisynth.training.student import StudentConfig

STUDENT_KEY = "student.safetensors"
CURVE_KEY = "curve.png"
FOLLOW_POLL_S = 30.0


@dataclass(frozen=True, kw_only=True)
class JobConfig(ConsumerConfig):
    """What every training of a student needs.

    output: where the result goes, a URL that every worker reaches. student: the network. train: how it is
    trained. test_set: real images to measure on every `evaluate_every` epochs and at the end; nothing is ever
    selected by it. evaluate_every: epochs between two measurements on the test set. workers: processes,
    above 1 through Ray Train; one GPU each where the cluster has GPUs when the job starts. wait_for_gpus: one
    GPU each in any case, for a cluster that adds such nodes on demand. rounds: of a series, train on its
    first rounds alone. follow: train on a run while it grows, as soon as it has `follow_min_images`; the
    steps are those of the whole run, and the last epoch waits for all of it. follow_min_images: committed
    images to begin with.
    """

    student: StudentConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    test_set: str | None = None
    evaluate_every: int = 10
    workers: int = 1
    wait_for_gpus: bool = False
    rounds: int | None = None
    follow: bool = False
    follow_min_images: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("evaluate_every", "workers", "follow_min_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.follow and (self.allow_partial or self.rounds is not None or self.train.stream == "never"):
            raise ConfigError(
                "follow: cannot be combined with allow_partial or rounds, which fix the images, or with"
                " train.stream: never; leave these out"
            )


@dataclass(frozen=True, eq=False)
class Job:
    """A validated training, ready to start."""

    kind: Kind
    config: JobConfig
    dataset: SyntheticDataset
    network: nn.Module
    loss: Loss
    identity: dict[str, Any]
    test: LabelledImages | None
    teacher: Teacher | None = None


def open_data(config: JobConfig) -> SyntheticDataset:
    """Returns the images that the config names; of a run that is followed, after enough are committed.

    Raises IncompleteRun, PlanMismatch, DataError, StorageError.
    """
    least = max(config.follow_min_images, config.train.batch_size)
    follow = FollowConfig(min_images=least, poll_s=FOLLOW_POLL_S) if config.follow else False
    return open_dataset(config.data, allow_partial=config.allow_partial, rounds=config.rounds, follow=follow)


def read_test_set(config: JobConfig, dataset: SyntheticDataset) -> LabelledImages | None:
    """Returns the real test set, None without one. Raises ConfigError when it does not fit the run."""
    if config.test_set is None:
        return None
    real = load_real_set(config.test_set)
    real.check_fits(dataset, "run")
    return real


def base_identity(
    kind: str, config: JobConfig, dataset: SyntheticDataset, network: nn.Module
) -> dict[str, Any]:
    """Returns what decides a student's weights, JSON-able, but for the loss. network: not trained yet.

    Weights to start from stand in it by their hash.
    """
    student = counted_fields(config.student)
    if "weights" in student:
        student["weights"] = hash_weights(network)
    # Which shards a followed run will have is not known yet.
    content = {"follow": True} if config.follow else {"content_sha256": dataset.content_sha256}
    return {
        "kind": kind,
        "data": {"fingerprint": dataset.fingerprint, **content},
        "student": student,
        "train": counted_fields(config.train),
    }


def train_student(job: Job, say: Say) -> StudentReport | None:
    """Returns the report of a student trained and stored; None from a worker that is not the first.

    Continues from a checkpoint at the output URL. Raises DataError, PlanMismatch, ConfigError, StorageError.
    """
    config, dataset, device = job.config, job.dataset, default_device()
    store = open_store(config.output)
    fp12, classes = dataset.fingerprint[:12], dataset.num_classes
    so_far = f"{len(dataset):,} of " if dataset.follows else ""
    images = counted(dataset.num_images_at_end, "image")
    say(f"{so_far}{images} in {classes} classes of run {fp12}, on {device}")
    source = source_of(dataset, config.train, device, say)
    num_epochs = config.train.num_epochs(dataset.num_images_at_end)
    log = TrainingLog(say, num_epochs, min(config.train.batch_size, dataset.num_images_at_end))

    def on_epoch(record: Mapping[str, float], network: nn.Module) -> dict[str, float]:
        epoch, figures = int(record["epoch"]), {}
        if job.test is not None and (epoch % config.evaluate_every == 0 or epoch == num_epochs):
            figures["test_accuracy"] = accuracy(
                network, job.test.pixels, job.test.labels, dataset.normalization, dataset.num_classes
            )
        log.on_epoch({**record, **figures})
        return figures

    checkpoints = Checkpoints(store, job.identity, every_s=60.0 * config.checkpoint_minutes)
    trained = train(
        job.network,
        source,
        job.loss,
        config.train,
        num_classes=dataset.num_classes,
        device=device,
        on_epoch=on_epoch,
        on_step=log.on_step,
        checkpoints=checkpoints,
    )
    if workers()[0] != 0:
        return None
    if job.test is not None and job.teacher is not None:
        say(f"measuring the teacher on {counted(len(job.test), 'real image')}")
    history = list(trained.history)
    report = _report(job, history, trained.images_per_s)
    _store_result(job, store, report)
    checkpoints.clear()
    return report


def teacher_accuracy(job: Job) -> float | None:
    """Returns the teacher's accuracy on the job's real test set, 0..1; None without either of the two."""
    if job.test is None or job.teacher is None:
        return None
    return job.teacher.accuracy(job.test.pixels, job.test.labels)


def _report(job: Job, history: list[dict[str, float]], images_per_s: float) -> StudentReport:
    return StudentReport(
        kind=job.kind,
        output=job.config.output,
        fingerprint=job.dataset.fingerprint,
        num_images=len(job.dataset),
        complete=job.dataset.complete,
        passes={str(task): count for task, count in job.dataset.seen.items()} if job.config.follow else None,
        student=job.config.student.arch,
        num_parameters=sum(parameter.numel() for parameter in job.network.parameters()),
        test_accuracy=history[-1].get("test_accuracy"),
        teacher_accuracy=teacher_accuracy(job),
        test_set=job.config.test_set,
        num_test_images=0 if job.test is None else len(job.test),
        history=history,
        images_per_s=images_per_s,
        device=device_name(),
        versions=versions(),
        identity=plain(job.identity),
        config=plain(asdict(job.config)),
    )


def _store_result(job: Job, store: Store, report: StudentReport) -> None:
    student = network_bytes(
        job.network,
        arch=report.student,
        normalization=job.dataset.normalization,
        classes=job.dataset.classes,
        input_px=job.dataset.input_px,
        more={"trained_on": report.fingerprint, "padding": job.config.train.padding or "zero"},
    )
    store.put(STUDENT_KEY, student)
    try:
        from nisynth.report.curves import training_curves
    except ImportError:  # a machine with only torch trains too
        pass
    else:
        title = f"{report.student} on {counted(report.num_images, 'image')} of run {report.fingerprint[:12]}"
        store.put(CURVE_KEY, training_curves(report.history, title))
    store_report(store, report)
