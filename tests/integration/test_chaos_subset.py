"""The part of `make chaos` that is quick enough to run with every change; tests/chaos has the whole."""

import pytest

from tests.chaos.play import play
from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.chaos.world import World
from tests.faults import FaultProxy
from tests.servers import WeedServer

QUICK = [scenario for scenario in SCENARIOS if any(trial.quick for trial in scenario.trials)]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, s3_server: WeedServer, s3_proxy: FaultProxy, ray_cluster: str
) -> World:
    return World(tmp_path_factory.mktemp("chaos"), s3_server, s3_proxy, ray_cluster)


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_nothing_is_lost_doubled_or_wrong(world: World, scenario: Scenario) -> None:
    row = play(scenario, world, tuple(trial for trial in scenario.trials if trial.quick))
    assert not row.problems, "\n".join(row.problems)
    assert row.faults >= row.runs
    assert (row.lost, row.duplicates, row.wrong) == (0, 0, 0)
