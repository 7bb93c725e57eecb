"""What a run costs beside the synthesis: milliseconds per task by stage, and the driver at a million tasks.

    python benchmarks/overhead.py                # 1,000 tasks of 256 images: a minute or two on 2 idle cores
    python benchmarks/overhead.py --tasks 100    # the quick form

The run is real, through S3 on loopback and Ray with 2 actors: real look, encode, put, commit and seal. Two
things are not: the method is noise, which costs nothing to make (and whose PNGs are as large as any), and
the teacher is one convolution, so `judge` holds the decoding arithmetic and no pass of a real network,
which is the method's cost and the GPU's. The loops below the stages have actors that do nothing: ours,
with its scheduler, and a bare `ray.wait` loop of the same shape, 2 calls in flight per actor.

Every millisecond is counted as if a GPU waited for it. In a run, encode, put and commit of one task overlap
the compute of the next, and the driver works beside the actors. All actors, the driver and the S3 server
share this machine, so what else it does is in the numbers: the load is printed with them, and the CPU time
of a stage's own thread. Below it, what benchmarks/driver.py measures.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))  # the actors and the S3 server's starter are found from here

from benchmarks import driver  # noqa: E402
from nisynth import worker  # noqa: E402
from nisynth.commits import Receipt, Run  # noqa: E402
from nisynth.commits.seal import seal  # noqa: E402
from nisynth.config import RunConfig, load_config  # noqa: E402
from nisynth.errors import NisynthError, TaskFailure  # noqa: E402
from nisynth.execution.actors import Actor  # noqa: E402
from nisynth.execution.events import AttemptFailed, Event, TaskDone, WorkerReady  # noqa: E402
from nisynth.execution.run import begin, execute  # noqa: E402

ACTORS = 2
IN_FLIGHT = 2
BATCH = 256
GPU_TASK_S = 17.0
GOAL = 0.01
CPU = " cpu"
STAGES = {
    "look": "look for another's commit",
    "judge": "judge (trivial teacher)",
    "encode": "encode",
    "put": "put the shard",
    "commit": "create the commit",
}


class Trivial(nn.Module):
    """One convolution, as little as a teacher may be, on 32 px images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 8, stride=8, bias=False), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.bn(self.conv(x)).mean(dim=(2, 3)))


class Stopwatch(worker._Stopwatch):
    """The worker's own, which also takes the time that its thread computed: `encode cpu` beside `encode`."""

    def __init__(self) -> None:
        super().__init__()
        self._last_cpu = time.thread_time()

    def lap(self, stage: str) -> None:
        super().lap(stage)
        now = time.thread_time()
        self.laps[stage + CPU], self._last_cpu = now - self._last_cpu, now


class TimedActor(Actor):
    """The actor, with the one stage that a receipt does not time, and with the CPU time of all."""

    def start(self, *arguments: Any) -> WorkerReady | NisynthError:
        worker._Stopwatch = Stopwatch  # type: ignore[misc]
        answer = super().start(*arguments)
        if self._worker is not None:
            self._look, self._laps = self._worker.committed_before, dict[int, dict[str, float]]()
            self._worker.committed_before = self._timed_look  # type: ignore[method-assign]
        return answer

    def execute(self, task: int, attempt: str) -> Receipt | TaskFailure:
        answer = super().execute(task, attempt)
        if isinstance(answer, Receipt):
            return replace(answer, seconds={**answer.seconds, **self._laps.pop(task)})
        return answer

    def _timed_look(self, task: int, attempt: str) -> Receipt | None:
        clock = Stopwatch()
        found = self._look(task, attempt)
        clock.lap("look")
        self._laps[task] = clock.laps
        return found


class EmptyActor(Actor):
    """An actor that says at once that the task is done."""

    def start(self, *arguments: Any) -> WorkerReady | NisynthError:
        return WorkerReady(self._slot, "nobody", "nowhere", "cpu")

    def execute(self, task: int, attempt: str) -> Receipt | TaskFailure:
        return empty_receipt(task, attempt)


class Watch:
    """Remembers the receipts and when they came."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []
        self.moments_s: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, TaskDone):
            self.receipts.append(event.receipt)
            self.moments_s.append(time.perf_counter())
        elif isinstance(event, AttemptFailed):
            raise RuntimeError(f"task {event.attempt.task} failed: {event.message}")

    @property
    def ms_per_task(self) -> float:
        """From the first receipt on, so that no start of an actor is in it."""
        return (self.moments_s[-1] - self.moments_s[0]) / (len(self.moments_s) - 1) * 1e3


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000, help="tasks of 256 images (1000)")
    options = parser.parse_args()
    if options.tasks < 2:
        parser.error("--tasks: at least 2, the first is where the clock starts")
    load = os.getloadavg()[0]
    rows, wall_ms = measure(options.tasks)
    print(
        f"{options.tasks:,} tasks of {BATCH} images, {ACTORS} actors, {os.cpu_count()} CPUs, S3 on loopback;"
    )
    print(f"load of the machine {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end\n")
    print_stages(rows, wall_ms)
    driver.print_table()


def measure(tasks: int) -> tuple[dict[str, list[float]], float]:
    """Returns milliseconds per task of every stage, and from one finished task to the next."""
    from tests.servers import start_weed

    with tempfile.TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as name:
        server = start_weed(Path(name) / "s3")
        environment = {**server.environment(), "PYTHONPATH": str(REPO)}
        try:
            with patch.dict(os.environ, environment):
                os.environ.pop("AWS_PROFILE", None)
                os.environ.pop("RAY_ADDRESS", None)
                return measure_on(f"{server.url}/run", config(Path(name), tasks))
        finally:
            server.kill()


def measure_on(url: str, config: RunConfig) -> tuple[dict[str, list[float]], float]:
    """Carries out the run at the URL, the loops of empty actors, and the seal."""
    from nisynth.execution.cluster import connected

    run = begin(config, url)
    with connected("local", config.execution):
        bare_ms = bare_loop(run.plan.num_tasks)
        empty = drive(config, run, EmptyActor)
        full = drive(config, run, TimedActor)
    began_s = time.perf_counter()
    if not seal(run):
        raise RuntimeError(f"{url}: not every task is committed")
    sealed_ms = (time.perf_counter() - began_s) * 1e3 / run.plan.num_tasks
    names = [name + kind for name in (*STAGES, "synthesize") for kind in ("", CPU)]
    rows = {name: [receipt.seconds[name] * 1e3 for receipt in full.receipts] for name in names}
    return {**rows, "seal": [sealed_ms], "driver": [empty.ms_per_task], "bare": [bare_ms]}, full.ms_per_task


def drive(config: RunConfig, run: Run, actor: type[Actor]) -> Watch:
    """Executes the run by the product's driver, with actors of this class."""
    from nisynth.execution.ray import ray_crew

    watch = Watch()
    execute(config, run, watch, "ray", open_crew=partial(ray_crew, actor=actor))
    return watch


def bare_loop(tasks: int) -> float:
    """Returns milliseconds per task of a loop with nothing in it: no attempt, no deadline, no second try."""
    import ray

    class Bare:
        def execute(self, task: int, attempt: str) -> Receipt:
            return empty_receipt(task, attempt)

    actors = [ray.remote(Bare).options(max_concurrency=4).remote() for _ in range(ACTORS)]
    ray.get([actor.execute.remote(0, "") for actor in actors])
    left = iter(range(tasks))
    began_s, calls = time.perf_counter(), {}
    for actor in actors * IN_FLIGHT:
        calls[actor.execute.remote(next(left, 0), str(uuid4()))] = actor
    while calls:
        (done,), _ = ray.wait(list(calls), num_returns=1, fetch_local=False)
        actor = calls.pop(done)
        ray.get(done)
        task = next(left, None)
        if task is not None:
            calls[actor.execute.remote(task, str(uuid4()))] = actor
    elapsed_s = time.perf_counter() - began_s
    for actor in actors:
        ray.kill(actor)
    return elapsed_s / tasks * 1e3


def empty_receipt(task: int, attempt: str) -> Receipt:
    """Returns a receipt of the usual size."""
    seconds = dict.fromkeys((*STAGES, "synthesize"), 0.001)
    return Receipt(task, attempt, "mine", BATCH, seconds, {"teacher_accuracy": 0.5}, "nobody")


def config(folder: Path, tasks: int) -> RunConfig:
    """Returns the config of so many tasks that are noise."""
    torch.manual_seed(0)
    weights = folder / "trivial.safetensors"
    save_file(Trivial(10).state_dict(), weights)
    teacher = {
        "arch": "benchmarks.overhead:Trivial",
        "weights": str(weights),
        "num_classes": 10,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "input_px": 32,
    }
    return load_config(
        {
            "run": {"num_images": BATCH * tasks, "batch_size": BATCH},
            "teacher": teacher,
            "method": {"name": "noise"},
            "execution": {"workers": ACTORS, "quality_gate": 0.0},
        }
    )


def print_stages(rows: Mapping[str, list[float]], wall_ms: float) -> None:
    """Prints the stages, their sum, and what there is to compare them with."""
    table = {name: [mean(rows[name]), median(rows[name])] for name in rows}
    for name in (*STAGES, "synthesize"):
        table[name].append(table.pop(name + CPU)[0])
    shown = {**STAGES, "driver": "driver: its loop, with empty actors", "seal": "seal the run"}
    print(f"{'per task':44}{'mean ms':>10}{'of 17 s':>9}{'median ms':>11}{'CPU ms':>8}")
    for name, words in shown.items():
        print_row(words, *table[name])
    print_row(f"all of it (goal: under {GOAL:.0%})", *(sum(table[name][i] for name in shown) for i in (0, 1)))
    print_row("a bare ray.wait loop of the same shape", table["bare"][0])
    print_row("noise instead of a synthesis", *table["synthesize"])
    print_row(f"from one finished task to the next, {ACTORS} actors", wall_ms)
    print()


def print_row(
    words: str, mean_ms: float, median_ms: float | None = None, cpu_ms: float | None = None
) -> None:
    """Prints one line of the stages' table."""
    line = f"{words:44}{mean_ms:10.2f}{mean_ms / 1e3 / GPU_TASK_S:9.2%}"
    line += f"{median_ms:11.2f}" if median_ms is not None else ""
    print(line + (f"{cpu_ms:8.2f}" if cpu_ms is not None else ""))


if __name__ == "__main__":
    main()
