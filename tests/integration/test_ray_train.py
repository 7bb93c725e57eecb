"""Several workers under Ray Train train the student that one process would."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file

from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.config_loader import load_as
from nisynth.consumers import ray_train
from nisynth.consumers.distill import DistillConfig, distill
from nisynth.errors import ConfigError, DataError
from nisynth.storage import open_store
from tests.processes import kill_9, wait_until
from tests.tiny import TinyNet, commit_all, tiny_config, tiny_plan

REPO = Path(__file__).resolve().parents[2]

# Ray warns itself of settings of its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    run = Run.join(open_store(str(folder / "run")), tiny_plan(folder, run={"num_images": 64}))
    commit_all(run)
    assert seal(run)
    return folder


def values(world: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": str(world / "run"),
        "output": str(output),
        "teacher": tiny_config(world).to_dict()["teacher"],
        "student": {"arch": "tests.tiny:TinyNet"},
        "train": {"epochs": 3, "batch_size": 16, "lr": 0.05},
        **changes,
    }


def config(world: Path, output: Path, **changes: Any) -> DistillConfig:
    return load_as(DistillConfig, values(world, output, **changes), kind="distill")


class DiesOnce(TinyNet):
    """A student whose second worker dies in its sixth step, once, when the first has saved five."""

    def __init__(self, num_classes: int, output: str) -> None:
        super().__init__(num_classes)
        self.output, self.steps = Path(output), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        mark = self.output / "died"
        if self.steps == 6 and dist.is_initialized() and dist.get_rank() == 1 and not mark.exists():
            wait_until((self.output / "checkpoint.safetensors").exists)
            mark.touch()
            kill_9({os.getpid()})
        return super().forward(x)


class Endless(TinyNet):
    """A student that takes an hour for a step: the driver hears nothing and waits inside Ray."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(3600)
        return super().forward(x)


def dies_when_done(num_classes: int, output: str) -> TinyNet:
    """A student whose second worker dies as soon as the result is stored."""

    def wait_and_die() -> None:
        wait_until((Path(output) / "result.json").exists)
        kill_9({os.getpid()})

    if dist.is_initialized() and dist.get_rank() == 1:
        threading.Thread(target=wait_and_die, daemon=True).start()
    return TinyNet(num_classes)


def test_two_workers_give_the_one_process_result(ray_cluster: str, world: Path, tmp_path: Path) -> None:
    """Weights, BatchNorm statistics, loss and accuracy of 12 steps; and progress reaches the driver."""
    alone = distill(config(world, tmp_path / "alone"))
    said: list[str] = []
    together = distill(config(world, tmp_path / "together", workers=2), say=said.append)
    assert [line.split(":")[0] for line in said if line.startswith("epoch")] == [
        f"epoch {epoch} of 3" for epoch in (1, 2, 3)
    ]
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("alone", "together"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    for ours, theirs in zip(together.history, alone.history, strict=True):
        # A KL of some thousandths, scaled by T²: its rounding is absolute, as that of the weights.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=2e-5)
        assert ours["train_accuracy"] == pytest.approx(theirs["train_accuracy"], abs=1.5 / 64)
    assert together.identity == alone.identity


def test_an_error_of_a_worker_is_the_one_line_it_would_be_here(
    ray_cluster: str, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    shard = next((tmp_path / "run/data").iterdir())
    shard.write_bytes(b"no shard")
    with pytest.raises(DataError, match=f"{shard.name}.*nisynth redo"):
        distill(config(world, tmp_path / "out", data=str(tmp_path / "run"), workers=2))


def test_workers_that_do_not_divide_the_batch_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"workers: 3 do not divide train.batch_size 16"):
        distill(config(world, tmp_path / "out", workers=3))


def test_a_worker_that_dies_after_the_result_is_stored_costs_no_second_training(
    ray_cluster: str, world: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    student = {"arch": f"{__name__}:dies_when_done", "kwargs": {"output": str(tmp_path)}}
    report = distill(config(world, tmp_path, student=student, workers=2), say=said.append)
    assert len(report.history) == 3
    assert sum(line.startswith("epoch 3") for line in said) == 1
    assert not any("failed" in line for line in said)


@pytest.mark.slow
def test_two_workers_that_stream_224_px_resume_to_the_same_weights(ray_cluster: str, tmp_path: Path) -> None:
    sizes = {"run": {"num_images": 64}, "teacher": {"input_px": 224}}
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path, **sizes))
    commit_all(run)
    assert seal(run)
    train = {"epochs": 3, "batch_size": 16, "lr": 0.05, "stream": "always"}
    teacher = tiny_config(tmp_path, teacher={"input_px": 224}).to_dict()["teacher"]
    weights, said = [], list[str]()
    for name in ("undisturbed", "killed"):
        output = tmp_path / name
        output.mkdir()
        student = {"arch": f"{__name__}:DiesOnce", "kwargs": {"output": str(output)}}
        if name == "undisturbed":
            (output / "died").touch()
        changes = {"train": train, "teacher": teacher, "student": student, "checkpoint_minutes": 0}
        distill(config(tmp_path, output, workers=2, **changes), say=said.append)
        weights.append(load_file(output / "student.safetensors"))
    assert sum("try 1 of 3 failed" in line for line in said) == 1
    assert (tmp_path / "killed/died").exists()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 7), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_command_with_its_code(
    ray_cluster: str, world: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values(world, tmp_path / "out", student={"arch": f"{__name__}:Endless"})))
    command = [
        sys.executable,
        "-m",
        "nisynth",
        "distill",
        str(path),
        "--workers",
        "2",
        "--address",
        ray_cluster,
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert any(line.startswith("64 images ") for line in process.stderr)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == exit_code, err
    assert "Traceback" not in err
    assert number != signal.SIGTERM or "stopped by SIGTERM; run again to resume" in err


@pytest.mark.parametrize("wait", [False, True])
def test_gpus_are_asked_for_where_the_cluster_has_none_yet(
    ray_cluster: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """What Ray Train is asked for; a GPU that only the test claims could not train."""
    asked = []

    def trainer(loop: Any, *, scaling_config: Any, run_config: Any) -> Any:
        asked.append((scaling_config.num_workers, scaling_config.use_gpu))
        return SimpleNamespace(fit=lambda: SimpleNamespace(return_value=None))

    monkeypatch.setattr(ray_train, "TorchTrainer", trainer)
    distill(config(world, tmp_path, workers=2, wait_for_gpus=wait))
    assert asked == [(2, wait)]
