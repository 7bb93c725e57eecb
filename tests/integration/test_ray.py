"""Runs on real Ray actors: the same images as without Ray, and every failure with its word and its code."""

import re
import threading
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from nisynth import open_dataset
from nisynth.commits import Receipt, Run
from nisynth.commits.audit import verify
from nisynth.config import RunConfig
from nisynth.errors import BudgetExceeded, PlanMismatch, Stalled, StorageError, TaskFailure, TeacherError
from nisynth.execution.actors import Actor
from nisynth.execution.events import AttemptFailed, Ended, Event, TaskDone, WorkerLost
from nisynth.execution.ray import ray_crew
from nisynth.execution.run import begin, execute, run
from nisynth.execution.schedule import Rules
from nisynth.storage import open_store
from tests.faults import Fault, FaultProxy
from tests.faulty_teacher import tell
from tests.processes import wait_until
from tests.tiny import commit_all, keys, tiny_config, tiny_weights

REPO = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Recorder:
    """Remembers what it hears, and may act on a finished task."""

    def __init__(self, on_done: Callable[[Receipt], object] = lambda receipt: None) -> None:
        self.events: list[Event] = []
        self._on_done = on_done

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, TaskDone):
            self._on_done(event.receipt)

    @property
    def done(self) -> list[Receipt]:
        return [event.receipt for event in self.events if isinstance(event, TaskDone)]

    @property
    def failures(self) -> list[AttemptFailed]:
        return [event for event in self.events if isinstance(event, AttemptFailed)]

    @property
    def losses(self) -> list[WorkerLost]:
        return [event for event in self.events if isinstance(event, WorkerLost)]


def faulty_config(folder: Path, tasks: int = 6, **execution: object) -> RunConfig:
    """Returns a config whose teacher does what the files in `folder/faults` say."""
    return tiny_config(
        folder,
        run={"num_images": 4 * tasks},
        teacher={"arch": "tests.faulty_teacher:FaultyNet", "kwargs": {"folder": str(folder / "faults")}},
        execution={"workers": 1, **execution},
    )


def check_whole(url: str, tasks: int) -> None:
    """Every task committed once, every shard what its commit says, and no shard besides."""
    store = open_store(url)
    verdict = verify(Run.open(store), deep=True)
    assert (verdict.checked, verdict.problems) == (tasks, ())
    assert len(keys(store, "data/")) == tasks
    assert store.get("_SUCCESS")


def test_ray_and_local_on_disk_and_s3_give_the_same_set(tmp_path: Path, s3_url: str) -> None:
    """Four runs, one of which has read its teacher from the bucket, and one set of shards, byte for byte."""
    weights = f"{s3_url}/models/tiny.safetensors"
    open_store(f"{s3_url}/models").put("tiny.safetensors", Path(tiny_weights(tmp_path)).read_bytes())
    sets = set()
    for executor, workers, url, teacher in [
        ("ray", 2, f"{s3_url}/ray", {"weights": weights}),
        ("ray", 1, str(tmp_path / "ray"), {}),
        ("local", 1, f"{s3_url}/local", {}),
        ("local", 1, str(tmp_path / "local"), {}),
    ]:
        config = tiny_config(tmp_path, teacher=teacher, execution={"workers": workers})
        heard = Recorder()
        report = run(config, url, executor=executor, listeners=[heard])
        assert (report.exit_code, report.executed, len(heard.done)) == (0, 4, 4)
        assert isinstance(heard.events[-1], Ended)
        check_whole(url, 4)
        shards = {key.removesuffix(".parquet").split("-", 2)[2] for key in keys(open_store(url), "data/")}
        assert shards == {receipt.attempt for receipt in heard.done}
        sets.add(open_dataset(url).content_sha256)
        assert run(config, url, executor=executor).executed == 0
    assert len(sets) == 1


def test_a_worker_that_dies_costs_an_attempt_and_no_task(tmp_path: Path) -> None:
    config, url, heard = faulty_config(tmp_path), str(tmp_path / "run"), Recorder()
    tell(tmp_path / "faults", "exit-1", "segfault-1")
    report = run(config, url, executor="ray", listeners=[heard])
    assert (report.exit_code, report.executed) == (0, 6)
    check_whole(url, 6)
    assert [loss.kind for loss in heard.losses] == ["worker_died"] * 2


def test_a_task_that_fails_once_is_done_by_the_next_attempt(tmp_path: Path) -> None:
    config, url, heard = faulty_config(tmp_path), str(tmp_path / "run"), Recorder()
    commit_all(begin(config, url), tasks=[0])
    tell(tmp_path / "faults", "raise-1", "nan-1", "memory-1")
    report = run(config, url, executor="ray", listeners=[heard])
    assert (report.exit_code, report.executed) == (0, 5)
    check_whole(url, 6)
    assert sorted(failure.kind for failure in heard.failures) == ["not_finite", "out_of_memory", "raised"]


def test_a_hanging_task_is_killed_at_its_deadline(tmp_path: Path) -> None:
    config, url = faulty_config(tmp_path), str(tmp_path / "run")
    heard = Recorder(lambda receipt: tell(tmp_path / "faults", *(["hang-1"] if receipt.task == 0 else [])))
    executed = execute(config, begin(config, url), heard, "ray", rules=Rules(deadline_floor_s=3.0))
    assert executed == 6
    assert run(config, url).exit_code == 0
    check_whole(url, 6)
    assert [loss.kind for loss in heard.losses] == ["deadline"]
    assert "ran over its deadline of" in heard.losses[0].message


def test_a_task_that_kills_three_workers_is_quarantined_and_the_rest_completes(tmp_path: Path) -> None:
    config, url = faulty_config(tmp_path, max_failed_tasks=1), str(tmp_path / "run")
    commit_all(begin(config, url), tasks=[0, 1, 2, 3])
    tell(tmp_path / "faults", "exit-1", "sysexit-2", "segfault-3")
    report = run(config, url, executor="ray")
    assert (report.exit_code, report.committed, report.quarantined, report.executed) == (3, 5, 1, 1)
    found = Run.open(open_store(url))
    (task,) = found.quarantined()
    record = found.read_quarantine(task)
    assert record is not None
    assert [failure["kind"] for failure in record["failures"]] == ["worker_died"] * 3
    assert not found.is_sealed()


def test_a_network_that_always_raises_exceeds_the_budget_with_its_traceback(tmp_path: Path) -> None:
    config, url = faulty_config(tmp_path), str(tmp_path / "run")
    tell(tmp_path / "faults", "raise")
    with pytest.raises(BudgetExceeded, match="1 task failed for good"):
        run(config, url, executor="ray")
    record = Run.open(open_store(url)).read_quarantine(0)
    assert record is not None
    assert [failure["kind"] for failure in record["failures"]] == ["raised"] * 3
    assert 'raise RuntimeError("the network broke")' in record["failures"][0]["message"]


def test_the_canary_stops_the_run_before_it_fans_out(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, execution={"workers": 2, "quality_gate": 1.0})
    heard = Recorder()
    with pytest.raises(TaskFailure, match=r"under execution.quality_gate 100.0%.*canary"):
        run(config, str(tmp_path / "run"), executor="ray", listeners=[heard])
    assert [failure.attempt.task for failure in heard.failures] == [0]
    assert Run.open(open_store(str(tmp_path / "run"))).committed() == set()


def test_a_driver_and_workers_of_two_versions_refuse_each_other(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    joined = begin(config, str(tmp_path / "run"))
    with pytest.raises(PlanMismatch, match=r"has nisynth .*, the driver 9.9.9; install one version"):
        execute(config, joined, Recorder(), "ray", open_crew=partial(ray_crew, version="9.9.9"))


def test_a_worker_whose_teacher_differs_refuses_and_so_does_one_without(tmp_path: Path) -> None:
    config, url = tiny_config(tmp_path), str(tmp_path / "run")
    joined = begin(config, url)
    weights = Path(tiny_weights(tmp_path))
    weights.write_bytes(Path(tiny_weights(tmp_path, seed=1)).read_bytes())
    with pytest.raises(PlanMismatch, match=r"worker .* plans fingerprint"):
        execute(config, joined, Recorder(), "ray")
    weights.unlink()
    with pytest.raises((TeacherError, StorageError), match=weights.name):
        execute(config, joined, Recorder(), "ray")


def test_workers_that_cannot_start_stall_the_run_with_the_reason(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, execution={"workers": 1})
    joined = begin(config, str(tmp_path / "run"))

    class Broken(Actor):
        def start(self, *arguments: Any) -> Any:
            raise RuntimeError("no CUDA-capable device is detected")

    crew = partial(ray_crew, actor=Broken)
    with pytest.raises(Stalled, match=r"4 tasks left .* no CUDA-capable device is detected"):
        execute(config, joined, Recorder(), "ray", rules=Rules(slot_deaths=2), open_crew=crew)


def test_a_store_that_stops_answering_ends_the_run(tmp_path: Path, s3_url: str, s3_proxy: FaultProxy) -> None:
    config = tiny_config(tmp_path, run={"num_images": 4 * 12}, execution={"workers": 1})
    heard = Recorder(lambda receipt: s3_proxy.inject(Fault("dropped", verb="PUT", key="data/", times=None)))
    joined = begin(config, s3_url)
    try:
        with pytest.raises(StorageError, match=s3_url.rpartition("/")[2]):
            execute(config, joined, heard, "ray", rules=Rules(storage_failures=2))
    finally:
        s3_proxy.clear()
    assert {failure.kind for failure in heard.failures} == {"storage"}
    assert run(config, s3_url, executor="ray").exit_code == 0
    check_whole(s3_url, 12)


def test_where_conditions_are_ignored_the_driver_alone_commits(
    tmp_path: Path, s3_url: str, s3_proxy: FaultProxy
) -> None:
    config = tiny_config(tmp_path, execution={"workers": 2, "single_writer": True})
    s3_proxy.clear()
    s3_proxy.inject(Fault("unconditional", verb="PUT", times=None))
    try:
        report = run(config, s3_url, executor="ray")
        assert not [seen for seen in s3_proxy.seen if seen.verb == "PUT" and "/commits/" in seen.key]
    finally:
        s3_proxy.clear()
    assert (report.exit_code, report.executed) == (0, 4)
    check_whole(s3_url, 4)


def test_two_drivers_at_once_make_one_run(tmp_path: Path) -> None:
    tasks, url = 40, str(tmp_path / "run")
    config = tiny_config(tmp_path, run={"num_images": 4 * tasks}, execution={"workers": 2})
    joined = begin(config, url)
    heard = [Recorder(), Recorder()]
    counts = [0, 0]

    def drive_one(number: int) -> None:
        counts[number] = execute(config, joined, heard[number], "ray")

    threads = [threading.Thread(target=drive_one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == tasks
    # In vain: only what both had in flight at once, 2 workers x 2 of either at a time.
    computed = [receipt for each in heard for receipt in each.done if receipt.seconds]
    assert len(computed) - tasks <= tasks // 2
    assert run(config, url, executor="ray").executed == 0
    check_whole(url, tasks)


def test_deleting_commits_redoes_exactly_those(tmp_path: Path) -> None:
    config, url = (
        tiny_config(tmp_path, run={"num_images": 40}, execution={"workers": 1}),
        str(tmp_path / "run"),
    )
    joined = begin(config, url)
    commit_all(joined)
    doomed = keys(joined.store, "commits/")[::2]
    for key in doomed:
        joined.store.delete(key)
    report = run(config, url, executor="ray")
    assert (report.exit_code, report.executed) == (0, 5)


def test_a_task_that_somebody_committed_meanwhile_is_not_computed(tmp_path: Path) -> None:
    config, url = tiny_config(tmp_path, execution={"workers": 1}), str(tmp_path / "run")
    joined = begin(config, url)

    def take_the_rest(receipt: Receipt) -> None:
        if receipt.task == 0:
            commit_all(joined, tasks=[1, 2, 3])

    heard = Recorder(take_the_rest)
    assert execute(config, joined, heard, "ray") < 4
    assert not [receipt for receipt in heard.done if receipt.outcome == "other" and receipt.seconds]


def scraped() -> str:
    """What the nodes of the cluster answer a Prometheus that scrapes them."""
    texts = []
    for node in ray.nodes():
        url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=300) as answer:
            texts.append(answer.read().decode())
    return "\n".join(texts)


def test_metrics_are_scraped_and_the_dashboard_names_only_those(
    tmp_path: Path, s3_url: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.endpoint)  # the driver's way to the store, too
    config = faulty_config(tmp_path)
    tell(tmp_path / "faults", "raise-1", "exit-1")
    s3_proxy.inject(Fault("status", verb="PUT", key="data/", status=503, code="SlowDown"))
    s3_proxy.inject(Fault("status", verb="PUT", key="commits/.*-00000003", status=503, code="SlowDown"))
    s3_proxy.inject(Fault("status", verb="PUT", key=r"plan\.json", status=503, code="SlowDown"))
    assert run(config, s3_url, executor="ray").complete
    mark = f'run="{Run.open(open_store(s3_url)).plan.fp12}"'

    def lines() -> list[str]:
        return [line for line in scraped().splitlines() if mark in line]

    def is_told() -> bool:
        return any('state="committed"' in line and line.endswith(" 6.0") for line in lines())

    wait_until(is_told)
    found = lines()
    images = [line for line in found if line.startswith("ray_nisynth_images_total{")]
    assert [float(line.rpartition(" ")[2]) for line in images] == [24.0]
    retries = [line for line in found if line.startswith("ray_nisynth_store_retries_total{")]
    by_sender = {re.findall(r'sender="(\w+)"', line)[0]: float(line.rpartition(" ")[2]) for line in retries}
    assert by_sender == {"driver": 1.0, "workers": 2.0}
    assert any('kind="raised"' in line for line in found)
    assert any('kind="worker_died"' in line for line in found)
    dashboard = (REPO / "cluster" / "grafana-dashboard.json").read_text()
    asked = set(re.findall(r"ray_nisynth_\w+", dashboard))
    assert len(asked) == 8
    assert asked <= {line.partition("{")[0] for line in found}
