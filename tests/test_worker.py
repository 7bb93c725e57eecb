"""The worker: one task, start to commit, the same pixels whoever runs it and in whatever order."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from nisynth.commits import Run
from nisynth.config import RunConfig
from nisynth.errors import NisynthError, PlanMismatch, TaskFailure
from nisynth.execution.run import begin
from nisynth.storage import open_store
from nisynth.worker import Worker
from tests.tiny import keys, tiny_config

REPO = Path(__file__).resolve().parents[1]


def make(tmp_path: Path, name: str = "run", **sections: dict[str, Any]) -> tuple[Worker, Run, RunConfig]:
    config = tiny_config(tmp_path, **sections)
    run = begin(config, str(tmp_path / name))
    return Worker(config, run.plan.fingerprint, run.store.url), run, config


def pixels(url: str) -> dict[int, bytes]:
    run = Run.open(open_store(url))
    found = {}
    for task in run.committed():
        commit = run.read(task)
        assert commit is not None
        shard = run.read_shard(commit)
        tensor = shard.images.pixels if shard.normalized is None else shard.normalized
        found[task] = tensor.numpy().tobytes() + shard.images.labels.numpy().tobytes()
    return found


def test_a_task_becomes_a_commit_that_says_how(tmp_path: Path) -> None:
    worker, run, _ = make(tmp_path)
    receipt = worker.execute(1, str(uuid4()))
    assert receipt.outcome == "mine"
    assert set(receipt.seconds) == {"synthesize", "judge", "encode", "put", "commit"}
    commit = run.read(1)
    assert commit is not None
    assert (commit.rows, commit.seed, commit.attempt) == (4, run.plan[1].seed, receipt.attempt)
    assert [point["iteration"] for point in commit.curve] == [1, 2]
    assert set(commit.curve[0]) == {"iteration", "total", "ce", "r_bn", "tv", "l2"}
    assert 0.0 <= commit.figures["teacher_accuracy"] <= 1.0
    assert commit.versions["nisynth"]
    assert commit.device
    assert commit.worker == worker.name == receipt.worker
    assert 0 < commit.started_at <= commit.finished_at


@pytest.mark.parametrize("format_", ["parquet", "npz"])
def test_order_and_process_do_not_change_a_pixel(tmp_path: Path, format_: str) -> None:
    """Forward here; in reverse, at the same time, in two other processes."""
    script = (
        "import sys; from pathlib import Path; from uuid import uuid4; import tests.test_worker as t\n"
        "folder, name, format_ = Path(sys.argv[1]), sys.argv[2], sys.argv[3]\n"
        "worker, run, _ = t.make(folder, name, output={'format': format_})\n"
        "for task in reversed(range(run.plan.num_tasks)): worker.execute(task, str(uuid4()))\n"
    )
    worker, run, _ = make(tmp_path, "here", output={"format": format_})
    others = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name, format_], cwd=REPO)
        for name in ("there-1", "there-2")
    ]
    for task in range(run.plan.num_tasks):
        worker.execute(task, str(uuid4()))
    assert [process.wait(120) for process in others] == [0, 0]
    here = pixels(str(tmp_path / "here"))
    assert len(here) == 4
    assert len(set(here.values())) == 4
    assert pixels(str(tmp_path / "there-1")) == here
    assert pixels(str(tmp_path / "there-2")) == here


def test_the_last_task_keeps_its_first_rows(tmp_path: Path) -> None:
    whole, _, _ = make(tmp_path, "whole")
    worker, _, _ = make(tmp_path, "part", run={"num_images": 14})
    whole.execute(3, str(uuid4()))
    assert worker.execute(3, str(uuid4())).rows == 2
    all_rows, first_rows = pixels(str(tmp_path / "whole"))[3], pixels(str(tmp_path / "part"))[3]
    image_bytes = 3 * 16 * 16
    assert first_rows[: 2 * image_bytes] == all_rows[: 2 * image_bytes]


def test_the_quality_gate_stops_before_anything_is_stored(tmp_path: Path) -> None:
    worker, run, _ = make(tmp_path, execution={"quality_gate": 1.0})
    with pytest.raises(
        TaskFailure, match=r"under execution\.quality_gate 100\.0%; cross-entropy did not fall far enough"
    ) as caught:
        worker.execute(1, str(uuid4()))
    assert caught.value.kind == "quality_gate"
    assert keys(run.store, "data/") == []
    assert run.committed() == set()


def test_a_worker_whose_weights_differ_from_the_drivers_refuses(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with pytest.raises(PlanMismatch, match=r"weights of teacher or rival differ between"):
        Worker(config, "0" * 64, str(tmp_path / "run"))


def test_whatever_a_network_raises_is_a_failed_task_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _, _ = make(tmp_path)

    class Odd(Exception):
        pass

    def fails(*_: Any) -> None:
        raise Odd("strange\nnews")

    monkeypatch.setattr(worker.teacher.network, "forward", fails)
    with pytest.raises(TaskFailure, match=r"task 2: Odd: strange$") as caught:
        worker.execute(2, str(uuid4()))
    assert caught.value.kind == "raised"
    assert "in fails" in caught.value.trace


def test_a_step_callback_may_abort_a_task_and_nothing_is_stored(tmp_path: Path) -> None:
    worker, run, _ = make(tmp_path)

    class Enough(NisynthError):
        pass

    def stop(iteration: int, losses: Any) -> None:
        if iteration == 2:
            raise Enough

    with pytest.raises(Enough):
        worker.execute(0, str(uuid4()), stop)
    assert keys(run.store, "data/") == []
    assert worker.execute(0, str(uuid4())).outcome == "mine"


def test_single_writer_hands_the_commit_to_the_driver(tmp_path: Path) -> None:
    worker, run, _ = make(tmp_path, execution={"single_writer": True})
    receipt = worker.execute(0, str(uuid4()))
    assert receipt.commit is not None
    assert run.committed() == set()
    assert run.commit(receipt.commit) == "mine"
    assert run.committed() == {0}
