"""Predictions of the planner: what the drive loop does on virtual clusters."""

import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from nisynth import run
from nisynth.commits import Run
from nisynth.errors import IncompleteRun
from nisynth.execution.simulate import Costs, costs_of, simulate
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.faults import FaultProxy
from tests.servers import WeedServer
from tests.tiny import commit_all, tiny_config

PAPER = Costs(compute_s=[17.5])


@pytest.mark.parametrize(("gpus", "makespan_s"), [(8, 60 + 17.7 + 125 * 17.5), (64, 60 + 17.7 + 16 * 17.5)])
def test_a_thousand_tasks_take_what_arithmetic_says(gpus: int, makespan_s: float) -> None:
    found = simulate(1000, gpus, PAPER)
    assert found.makespan_s == pytest.approx(makespan_s, abs=1.0)
    assert found.useful_hours == pytest.approx(1000 * 17.5 / 3600)
    assert found.held_hours == pytest.approx(gpus * found.makespan_s / 3600)
    assert found.wasted_hours == pytest.approx(0.0)


@pytest.mark.parametrize("gpus", [8, 64, 256])
def test_once_all_workers_have_work_they_are_used(gpus: int) -> None:
    """Of 1,000 tasks: 97 % without faults, 90 % where a tenth of the nodes is lost in an hour."""
    assert simulate(1000, gpus, PAPER).after_canary >= 0.97
    lossy = [simulate(1000, gpus, PAPER, loss_per_hour=0.1, seed=seed) for seed in range(20)]
    assert mean(found.after_canary for found in lossy) >= 0.90


def test_what_is_lost_with_a_node_is_waste_and_not_use() -> None:
    found = simulate(500, 8, PAPER, loss_per_hour=5.0)
    assert found.losses > 5
    assert found.useful_hours == pytest.approx(500 * 17.5 / 3600)
    assert 0 < found.wasted_hours < found.losses * 2 * 17.7 / 3600
    assert {bar.kind for bar in found.bars} >= {"committed", "lost"}


def test_a_prediction_is_a_function_of_its_seed() -> None:
    found = [simulate(100, 8, PAPER, loss_per_hour=2.0, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_the_picture_is_bounded() -> None:
    found = simulate(30_000, 100, PAPER)
    assert len(found.bars) <= 20_000
    assert max(bar.slot for bar in found.bars) < 64


def test_costs_come_from_a_run(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    run(tiny_config(tmp_path), url)
    opened = Run.open(open_store(url))
    costs = costs_of(opened)
    assert len(costs.compute_s) == 4
    assert 0 < max(costs.compute_s) < 60
    assert 0 < costs.store_s < 60
    assert 0 <= costs.start_s < 60  # what the event log says, not the default
    assert costs_of(opened, 7.0).start_s == 7.0


def test_a_run_whose_commits_say_nothing_of_time(tmp_path: Path) -> None:
    from nisynth.execution.run import begin

    begun = begin(tiny_config(tmp_path), str(tmp_path / "run"))
    commit_all(begun, [0])
    with pytest.raises(IncompleteRun, match=r"no commit says how long its task took; give --task-s"):
        costs_of(begun)


@pytest.mark.usefixtures("s3_url")
def test_requests_are_those_that_a_store_sees(
    tmp_path: Path, s3_server: WeedServer, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = 24
    with FaultProxy(s3_server.endpoint) as proxy:
        for name, value in proxy.environment().items():
            monkeypatch.setenv(name, value)
        run(tiny_config(tmp_path, run={"num_images": 4 * tasks}), s3_url)
        seen = len(proxy.seen)
    predicted = simulate(tasks, 1, Costs(compute_s=[0.1], start_s=1.0)).requests
    assert predicted == pytest.approx(seen, rel=0.15)


def test_plan_prints_a_table_and_draws_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "gantt.png"
    options = ["--simulate", "--gpus", 8, "--task-s", 17.5, "--gpu-hour-price", 2.5, "--gantt", picture]
    said = nisynth("plan", "demo", *options)
    assert said.returncode == 0, said.stderr
    rows = [line.split() for line in said.stdout.splitlines() if line.split()[:1] in (["2"], ["4"], ["16"])]
    assert [row[0] for row in rows] == ["2", "4"]  # of 4 tasks, no more than 4 workers
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task-s", 1], "say how many GPUs with --gpus N"),
        (["--gpus", 8], "either by --task-s S or --from URL"),
        (["--gpus", 8, "--task-s", 1, "--from", "x"], "either by --task-s S or --from URL"),
    ],
)
def test_options_that_do_not_fit(options: list[object], message: str) -> None:
    said = nisynth("plan", "demo", "--simulate", *options)
    assert said.returncode == 2
    assert message in said.stderr


@pytest.mark.slow
def test_a_million_tasks_fit_into_a_gigabyte() -> None:
    code = (
        "import resource\n"
        "from nisynth.execution.simulate import Costs, simulate\n"
        "simulate(1_000_000, 64, Costs(compute_s=[17.5]), loss_per_hour=0.1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(found.stdout) * 1024 < 1e9
