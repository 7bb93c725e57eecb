"""Drivers, actors and nodes that end in the middle of a run: no task is lost, no process left behind."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from nisynth.commits import Run
from nisynth.commits.audit import verify
from nisynth.config import RunConfig
from nisynth.errors import counted
from nisynth.storage import open_store
from tests.faulty_teacher import tell
from tests.head import MISSES_NODES_SOON
from tests.processes import actors, alive, descendants, kill_9, listening, wait_until
from tests.tiny import keys, tiny_config

REPO = Path(__file__).resolve().parents[2]
TASKS = 12

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `nisynth run --executor ray`; whatever of it is left at the end of the test is killed."""
    started = []
    wait_until(lambda: not actors())  # those of the test before may still be ending

    def start_driver(config: RunConfig, *options: str) -> subprocess.Popen[str]:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config.to_dict()))
        code = "from nisynth.cli import main; main()"
        arguments = ["run", str(path), "--store", str(tmp_path / "run"), "--executor", "ray", *options]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": str(REPO)},
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_driver
    for process in started:
        kill_9(descendants(process.pid) if process.poll() is None else set())
        process.communicate()


def faulty_config(folder: Path, **execution: object) -> RunConfig:
    """Returns the config of a run that `folder/faults` can hold up and break."""
    return tiny_config(
        folder,
        run={"num_images": 4 * TASKS},
        teacher={"arch": "tests.faulty_teacher:FaultyNet", "kwargs": {"folder": str(folder / "faults")}},
        execution=execution,
    )


def commits(folder: Path) -> dict[str, bytes]:
    store = open_store(str(folder / "run"))
    return {key: store.get(key) for key in keys(store, "commits/")}


def wait_for_commits(folder: Path, process: subprocess.Popen[str], number: int) -> None:
    def enough() -> bool:
        assert process.poll() is None, process.communicate()
        return len(commits(folder)) >= number

    wait_until(enough)


def check_whole(folder: Path, tasks: int) -> None:
    store = open_store(str(folder / "run"))
    verdict = verify(Run.open(store), deep=True)
    assert (verdict.checked, verdict.problems) == (tasks, ())
    assert len(keys(store, "data/")) == tasks


def test_kill_9_of_the_driver_and_rerun(tmp_path: Path, start: Start, ray_cluster: str) -> None:
    config = tiny_config(
        tmp_path, run={"num_images": 4 * TASKS}, method={"iterations": 12}, execution={"workers": 2}
    )
    wanted = random.Random().randrange(1, TASKS // 2)
    first = start(config, "--address", ray_cluster)
    wait_for_commits(tmp_path, first, wanted)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    wait_until(lambda: not actors())
    before = commits(tmp_path)
    second = start(config, "--address", ray_cluster)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert f"{counted(TASKS - len(before), 'task')} run now" in out
    after = commits(tmp_path)
    assert {key: after[key] for key in before} == before
    check_whole(tmp_path, TASKS)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 7), (signal.SIGINT, 130)])
def test_a_signal_ends_the_driver_and_its_actors(
    tmp_path: Path, start: Start, ray_cluster: str, number: signal.Signals, exit_code: int
) -> None:
    tell(tmp_path / "faults", "wait")
    config = faulty_config(tmp_path)
    process = start(config, "--address", ray_cluster)
    wait_until(actors)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == exit_code, err
    assert "Traceback" not in err
    assert number != signal.SIGTERM or "stopped by SIGTERM; run again to resume" in err
    wait_until(lambda: not actors())
    if number == signal.SIGTERM:
        (tmp_path / "faults" / "wait").unlink()
        again = start(config, "--address", ray_cluster)
        _, err = again.communicate(timeout=300)
        assert again.returncode == 0, err
        check_whole(tmp_path, TASKS)


def test_a_cluster_of_its_own_listens_on_loopback_only_and_leaves_nothing(
    tmp_path: Path, start: Start
) -> None:
    tell(tmp_path / "faults", "wait", "exit-1")
    process = start(faulty_config(tmp_path), "--json")
    wait_until(actors)
    cluster = descendants(process.pid)
    addresses = listening(cluster)
    assert addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    (tmp_path / "faults" / "wait").unlink()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["committed"] == TASKS
    assert "is gone (worker_died)" in err
    wait_until(lambda: not alive(cluster))
    check_whole(tmp_path, TASKS)


@contextmanager
def small_cluster(monkeypatch: pytest.MonkeyPatch, head_cpus: int = 0) -> Iterator[Any]:
    """A Ray cluster on loopback that nodes can join and leave, and that misses them within seconds."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # so that every node listens on 127.0.0.1
    for name, value in MISSES_NODES_SOON.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False}
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_gpu_nodes_that_come_and_go(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_cluster(monkeypatch, head_cpus=2) as cluster:
        first = cluster.add_node(num_cpus=1, num_gpus=1)
        config = faulty_config(tmp_path, workers=2, gpus_per_worker=0.5)
        tell(tmp_path / "faults", "wait")
        process = start(config, "--address", cluster.address)
        wait_until(actors)
        assert len(actors()) == 1  # the head's CPUs are no place for a worker where there are GPUs
        cluster.add_node(num_cpus=1, num_gpus=1)
        wait_until(lambda: len(actors()) == 2)
        (raylet,) = first.all_processes["raylet"]
        kill_9(descendants(raylet.process.pid))
        (tmp_path / "faults" / "wait").unlink()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        # Which of the two depends on whether the node or the call to it is missed first.
        assert "is gone (node_died)" in err or "is gone (unavailable)" in err
        assert f"{TASKS} tasks run now" in out
    check_whole(tmp_path, TASKS)


@pytest.mark.slow
def test_throughput_follows_the_nodes_within_15_seconds(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node joins, one is lost while a third is idle; then SIGTERM, inside a grace of 30 s.

    A task takes half a second of waiting, so workers do not slow each other down on two cores.
    """
    with small_cluster(monkeypatch) as cluster:
        cluster.add_node(num_cpus=1)
        config = tiny_config(
            tmp_path,
            run={"num_images": 4 * 10_000},
            teacher={
                "arch": "tests.faulty_teacher:FaultyNet",
                "kwargs": {"folder": str(tmp_path / "faults")},
            },
            execution={"workers": 2},
        )
        tell(tmp_path / "faults", "slow")
        process = start(config, "--address", cluster.address)
        wait_for_commits(tmp_path, process, 3)
        first = workers(tmp_path)

        doomed = cluster.add_node(num_cpus=1)
        joined_s = seconds_until(lambda: len(workers(tmp_path)) == 2)
        second = workers(tmp_path) - first
        before = rate(tmp_path)

        cluster.add_node(num_cpus=1)
        (raylet,) = doomed.all_processes["raylet"]
        kill_9(descendants(raylet.process.pid))
        restored_s = seconds_until(lambda: workers(tmp_path) - first - second)
        after = rate(tmp_path)

        process.send_signal(signal.SIGTERM)
        stopped_s = seconds_until(lambda: process.poll() is not None)
    _, err = process.communicate()
    print(
        f"joined after {joined_s:.1f} s, restored after {restored_s:.1f} s, stopped after {stopped_s:.1f} s"
    )
    print(f"{before:.2f} tasks/s with two workers, {after:.2f} after the loss")
    assert process.returncode == 7, err
    assert joined_s < 15
    assert restored_s < 15
    assert after > 0.8 * before
    assert stopped_s < 30


def workers(folder: Path) -> set[str]:
    """Returns the names of the workers that have committed something."""
    return {json.loads(commit)["worker"] for commit in commits(folder).values()}


def rate(folder: Path, tasks: int = 20) -> float:
    """Returns how many tasks a second are committed from now on, by the time that so many take."""
    before = len(commits(folder))
    return tasks / seconds_until(lambda: len(commits(folder)) >= before + tasks)


def seconds_until(condition: Callable[[], object]) -> float:
    began_s = time.monotonic()
    wait_until(condition)
    return time.monotonic() - began_s


def test_sigterm_while_ray_starts_ends_with_7_and_leaves_nothing(tmp_path: Path, start: Start) -> None:
    process = start(faulty_config(tmp_path))
    started: set[int] = set()

    def is_starting() -> bool:
        started.update(descendants(process.pid))
        return any(b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in alive(started))

    wait_until(is_starting)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 7, err
    assert "stopped by SIGTERM" in err
    assert "Traceback" not in err
    wait_until(lambda: not alive(started))


def test_workers_that_ray_ends_for_want_of_memory_are_the_machines_failure(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    process = start(faulty_config(tmp_path))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 5, err
    assert re.search(
        r"is gone \(node_memory\): Ray ended it because its node is out of memory: [\d.]+GB used / ", err
    )
    assert "quarantined" not in err
