"""A student trained by several workers, on Ray Train: the same job as in one process, to rounding.

Ray Train places the workers and sets up torch.distributed; a job that lost a worker is started again and
continues from its own checkpoint at the output URL, so Ray has nothing to store.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue

from nisynth.config import ExecutionConfig
from nisynth.consumers.student import Job, JobConfig, train_student
from nisynth.consumers.student_report import StudentReport, stored_report
from nisynth.consumers.training_log import Say, silent
from nisynth.errors import ConfigError, NisynthError, Stalled, Stopped, one_line
from nisynth.execution.cluster import connected, resources, sigterm_noted
from nisynth.storage import open_store
from nisynth.training.loop import workers

TRIES = 3
POLL_S = 1.0
Config = TypeVar("Config", bound=JobConfig)


def train_with_ray(
    prepare: Callable[[Config], Job],
    config: Config,
    identity: Mapping[str, Any],
    address: str | None,
    say: Say,
) -> StudentReport:
    """Returns the report of the student that `config.workers` workers trained together.

    prepare: makes the job of a config, in every worker. identity: of that job. address: a cluster's
    `host:port` or `auto`; None is RAY_ADDRESS where it is set, as inside a Ray job, else a cluster of this
    machine's own.
    Raises what a worker raises, Stalled when workers die again and again, and Stopped after SIGTERM.
    """
    if config.train.batch_size % config.workers:
        raise ConfigError(
            f"workers: {config.workers} do not divide train.batch_size {config.train.batch_size};"
            " each takes an equal part"
        )
    with connected(address, ExecutionConfig(workers=config.workers)), sigterm_noted() as sigterm:
        lines = Queue(actor_options={"num_cpus": 0})
        for number in range(1, TRIES + 1):
            try:
                return _fit(prepare, config, lines, sigterm, say)
            except TrainingFailedError as error:
                problem = _ours(error)
            except RayError as error:
                line = one_line(error)
                raise Stalled(f"the connection to the cluster broke: {line}; run again to resume") from error
            done = stored_report(open_store(config.output), identity)
            if done is not None:  # a worker died after the report was stored
                return done
            say(f"try {number} of {TRIES} failed ({problem}); the next one begins at the last checkpoint")
    raise Stalled(f"{config.output}: {TRIES} tries failed, the last by {problem}; run again to resume")


def _fit(
    prepare: Callable[[Config], Job], config: Config, lines: Queue, sigterm: threading.Event, say: Say
) -> StudentReport:
    def loop() -> Any:
        if torch.cuda.is_available():
            torch.cuda.set_device(get_device())
        return train_student(prepare(config), lines.put if workers()[0] == 0 else silent)

    use_gpu = config.wait_for_gpus or resources()["GPU"] > 0
    # Ray may still write there while the folder of a stopped training is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trainer = TorchTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=0)),
        )
        with _in_a_task(trainer.fit) as result:
            while True:
                if sigterm.is_set():
                    raise Stopped("stopped by SIGTERM; run again to resume")
                try:
                    say(lines.get(timeout=POLL_S))
                except Empty:
                    if ray.wait([result], timeout=0)[0]:
                        report: StudentReport = ray.get(result).return_value
                        return report


@contextmanager
def _in_a_task(work: Callable[[], Any]) -> Iterator["ray.ObjectRef[Any]"]:
    """Gives the pending result of `work`, run by a Ray task on this machine; cancels it at the end.

    This process stays free for signals: Ray Train takes Ctrl-C for its own, and a thread of this process that
    waits inside Ray when the process ends crashes it.
    """
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}

    @ray.remote(num_cpus=0, max_retries=0, label_selector=here)
    def task() -> Any:
        return work()

    result = task.remote()
    try:
        yield result
    finally:
        ray.cancel(result, force=True)


def _ours(error: TrainingFailedError) -> str:
    """Returns Ray Train's error in one line. Raises a worker's own NisynthError where there is one."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        if isinstance(failure, NisynthError):
            raise failure from None
    return one_line(failures[0] if failures else getattr(error, "controller_failure", error))
