"""The planner's predictions beside real runs on two Ray workers."""

import time
from pathlib import Path
from statistics import mean

import pytest

from nisynth import run
from nisynth.commits import Run
from nisynth.config import RunConfig
from nisynth.execution.events import Event, Listed, TaskDone, WorkerReady
from nisynth.execution.simulate import costs_of, simulate
from nisynth.storage import open_store
from tests.faulty_teacher import tell
from tests.tiny import tiny_config

TASKS, ITERATIONS, WORKERS = 24, 8, 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_makespan_is_predicted_within_a_tenth_from_another_run(tmp_path: Path) -> None:
    """Tasks of two seconds that wait and do not compute: what is tested is the planner, not the machine.

    The first run gives the costs, as `nisynth plan --simulate --from URL` takes them; the second is
    predicted. What its workers took to start is told to the planner, as by `--start-s`: on one machine it
    differs by a factor of three, with what of PyTorch is in memory already.
    """
    config = tiny_config(
        tmp_path,
        run={"num_images": 4 * TASKS},
        teacher={"arch": "tests.faulty_teacher:FaultyNet", "kwargs": {"folder": str(tmp_path / "faults")}},
        method={"iterations": ITERATIONS},
        execution={"workers": WORKERS},
    )
    tell(tmp_path / "faults", "slow")
    known = str(tmp_path / "known")
    timed(config, known)
    start_s, took_s = timed(config, str(tmp_path / "predicted"))
    costs = costs_of(Run.open(open_store(known)), start_s)
    predicted_s = mean(simulate(TASKS, WORKERS, costs, seed=seed).makespan_s for seed in range(10))
    print(f"{start_s:.1f} s to start; predicted {predicted_s:.1f} s, took {took_s:.1f} s")
    assert took_s == pytest.approx(predicted_s, rel=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_makespan_of_tasks_that_compute_is_what_their_seconds_add_up_to(tmp_path: Path) -> None:
    """Two workers that compute, and whatever else this machine does meanwhile.

    How long a task takes then is the machine's affair, so it is taken from the run itself (`--from`); what
    is predicted is the rest: starts, the canary alone, uploads beside compute, the last tasks, Ray's part.
    """
    config = tiny_config(
        tmp_path,
        run={"num_images": 64 * TASKS, "batch_size": 64},
        method={"iterations": 40},
        execution={"workers": WORKERS, "log_every": 20},
    )
    url = str(tmp_path / "run")
    start_s, took_s = timed(config, url)
    costs = costs_of(Run.open(open_store(url)), start_s)
    predicted_s = mean(simulate(TASKS, WORKERS, costs, seed=seed).makespan_s for seed in range(20))
    print(f"{start_s:.1f} s to start, {mean(costs.compute_s):.1f} s a task; ", end="")
    print(f"predicted {predicted_s:.1f} s, took {took_s:.1f} s")
    assert took_s == pytest.approx(predicted_s, rel=0.1)


def timed(config: RunConfig, url: str) -> tuple[float, float]:
    """Runs; returns the seconds from the request for workers to the first one, and to the last commit."""
    at_s: dict[type[Event], float] = {}

    def hear(event: Event) -> None:
        if isinstance(event, TaskDone):
            at_s[TaskDone] = time.monotonic()
        elif isinstance(event, Listed | WorkerReady):
            at_s.setdefault(type(event), time.monotonic())

    assert run(config, url, executor="ray", listeners=[hear]).complete
    return at_s[WorkerReady] - at_s[Listed], at_s[TaskDone] - at_s[Listed]
