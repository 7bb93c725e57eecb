"""A series on a cluster: rounds by actors, rivals by Ray Train, whatever the number of workers."""

from pathlib import Path

import pytest

import nisynth
from nisynth.cli import execute
from nisynth.execution.run import Executor
from tests.series.recipes import recipe, what_counts

# Ray warns itself of settings of its own.
EXECUTORS: tuple[Executor, Executor] = ("local", "ray")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.mark.parametrize("workers", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_of_any_size_makes_the_series_of_one_process(tmp_path: Path, workers: int) -> None:
    """The bits of images and rivals; one rival, which learns from three tasks, is enough to tell."""
    found = []
    for executor in EXECUTORS:
        url, said = str(tmp_path / executor), list[str]()
        values = recipe(tmp_path, run={"num_images": 16}, execution={"workers": workers})
        report = nisynth.adapt(values, url, executor=executor, say=said.append)
        assert (report.rounds, report.executed) == (2, 4)
        assert any(line.startswith("epoch 3 of 3") for line in said)
        assert execute(["verify", url, "--deep", "--complete", "-q"]) == 0
        found.append(what_counts(url))
    assert found[0] == found[1]
