"""A student's training from its config to its report: done before, in this process, or on Ray's workers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from nisynth.consumers.student import STUDENT_KEY, Job, JobConfig, teacher_accuracy, train_student
from nisynth.consumers.student_report import StudentReport, store_report, stored_report
from nisynth.consumers.training_log import Say
from nisynth.device import default_device
from nisynth.errors import counted
from nisynth.storage import Store, open_store
from nisynth.teachers.checkpoint import read_checkpoint
from nisynth.teachers.predict import accuracy

Config = TypeVar("Config", bound=JobConfig)
Owner = TypeVar("Owner")
Source = str | Path | Mapping[str, Any]
"""Where a config is read from: a file, a shipped config's name, or a mapping."""


def config_of(owner: type[Owner], config: Owner | Source, kind: str) -> Owner:
    """Returns the config, read where it is not one yet. kind: the folder of configs/. Raises ConfigError."""
    if isinstance(config, owner):
        return config
    from nisynth.config_loader import load_as  # a machine without pydantic is given a config

    return load_as(owner, cast(Source, config), kind=kind)


def run_job(
    prepare: Callable[[Config], Job],
    config: Config,
    address: str | None,
    say: Say,
    *,
    on_cluster: bool = False,
) -> StudentReport:
    """Returns the report of a job: of one done before, or trained in this process or on Ray's workers.

    on_cluster: a single worker is Ray's, too, since the machine of the driver may have no GPU. A student that
    is there already is measured anew when the config names another test set than its report.
    """
    job = prepare(config)
    store = open_store(config.output)
    done = stored_report(store, job.identity)
    if done is not None:
        say(f"{config.output}: done already; nothing to train")
        if job.test is not None and config.test_set != done.test_set:
            done = _measured_anew(job, store, done)
            say(f"measured anew on {counted(done.num_test_images, 'real image')} ({done.test_set})")
        return done
    if config.workers > 1 or on_cluster:
        from nisynth.consumers.ray_train import train_with_ray

        return train_with_ray(prepare, config, job.identity, address, say)
    report = train_student(job, say)
    assert report is not None
    return report


def _measured_anew(job: Job, store: Store, done: StudentReport) -> StudentReport:
    """Returns the report of a stored student with its accuracy on the job's test set, stored in its place."""
    assert job.test is not None
    weights = read_checkpoint(f"{store.url}/{STUDENT_KEY}")
    weights.load_into(job.network, done.student)
    network = job.network.to(default_device()).eval()
    test, dataset = job.test, job.dataset
    report = replace(
        done,
        test_accuracy=accuracy(network, test.pixels, test.labels, dataset.normalization, dataset.num_classes),
        teacher_accuracy=teacher_accuracy(job),
        test_set=job.config.test_set,
        num_test_images=len(job.test),
        config={**done.config, "test_set": job.config.test_set},
    )
    store_report(store, report)
    return report
