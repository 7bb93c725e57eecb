"""Two drivers on one URL at once make one run; whatever is un-committed is made again, and nothing else."""

import os
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from nisynth import run
from nisynth.cli import execute
from nisynth.commits import Run
from nisynth.commits.audit import verify
from nisynth.commits.seal import read_commits
from nisynth.storage import open_store
from tests.chaos.drivers import run_apart
from tests.faulty_teacher import FaultyNet, is_of_a_loss, tell
from tests.processes import wait_until
from tests.servers import WeedServer
from tests.tiny import keys, tiny_config

TASKS = 40
DONE_TWICE = 14
"""Two workers that draw from what is left at random hold one task at once about 5 times in 40 tasks, task 0
among them; more than 14 times in no one of 60,000 simulated runs."""
ITERATIONS = 2


class CountingNet(FaultyNet):
    """Writes one byte to `folder/passes`, whatever process it is in, for each pass of a loss."""

    def forward(self, x: Tensor) -> Tensor:
        if is_of_a_loss(x):
            with open(self.faults / "passes", "ab", buffering=0) as file:
                file.write(b".")
        return super().forward(x)


@pytest.fixture(params=["local", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else request.getfixturevalue("s3_url")


def test_two_drivers_at_once_make_one_run(url: str, tmp_path: Path, s3_server: WeedServer) -> None:
    faults, path = tmp_path / "faults", tmp_path / "config.yaml"
    config = tiny_config(
        tmp_path,
        run={"num_images": 4 * TASKS},
        teacher={"arch": "tests.integration.test_two_drivers:CountingNet", "kwargs": {"folder": str(faults)}},
        method={"iterations": ITERATIONS},
    )
    path.write_text(yaml.safe_dump(config.to_dict()))
    tell(faults, "wait", "passes")

    def passes() -> int:
        return os.stat(faults / "passes").st_size

    with ThreadPoolExecutor() as pool:
        command, environment = ["run", str(path), "--store", url], s3_server.environment()
        drivers = [pool.submit(run_apart, command, environment, tmp_path / f"driver-{n}") for n in range(2)]
        try:
            wait_until(lambda: passes() == 2)  # both at task 0, which is alone first
        finally:
            (faults / "wait").unlink()
        ended = [driver.result() for driver in drivers]
    assert [driver.code for driver in ended] == [0, 0], ended
    executed = [int(found) for driver in ended for found in re.findall(r"(\d+) tasks? run now", driver.words)]
    assert len(executed) == 2
    assert sum(executed) == TASKS
    # In vain: task 0, and what both happened to have in flight at once in their two orders.
    assert TASKS < passes() // ITERATIONS <= TASKS + DONE_TWICE
    found = Run.open(open_store(url))
    assert verify(found, deep=True).problems == ()
    assert found.is_sealed()
    assert len(keys(found.store, "data/")) == TASKS


@pytest.mark.usefixtures("ray_cluster")
def test_what_redo_took_out_is_made_again_by_ray_and_nothing_else(tmp_path: Path, s3_url: str) -> None:
    tasks = 20
    config = tiny_config(tmp_path, run={"num_images": 4 * tasks})
    assert run(config, s3_url).executed == tasks
    found = Run.open(open_store(s3_url))
    shards = {commit.task: commit.sha256 for commit in read_commits(found)}
    for number in (tasks // 10, tasks // 2, tasks):
        before = {commit.task: commit for commit in read_commits(found)}
        doomed = random.Random(number).sample(range(tasks), number)
        assert execute(["redo", s3_url, *(f"--task={task}" for task in doomed)]) == 0
        assert found.committed() == set(range(tasks)) - set(doomed)
        assert not found.is_sealed()
        report = run(config, s3_url, executor="ray")
        assert (report.exit_code, report.executed) == (0, number)
        after = {commit.task: commit for commit in read_commits(found)}
        assert {task for task in after if after[task] != before[task]} == set(doomed)
        assert {task: commit.sha256 for task, commit in after.items()} == shards
        assert verify(found, deep=True).problems == ()
        assert len(keys(found.store, "data/")) == tasks
