"""Several workers under Ray Train train the student that one process would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.config import load_consumer_config
from nisynth.consumers.distill import DistillConfig, distill
from nisynth.errors import ConfigError, DataError
from nisynth.storage import open_store
from tests.tiny import commit_all, tiny_config, tiny_plan

# Ray warns itself of settings of its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    run = Run.join(open_store(str(folder / "run")), tiny_plan(folder, run={"num_images": 64}))
    commit_all(run)
    assert seal(run)
    return folder


def config(world: Path, output: Path, **changes: Any) -> DistillConfig:
    values = {
        "data": str(world / "run"),
        "output": str(output),
        "teacher": tiny_config(world).to_dict()["teacher"],
        "student": {"arch": "tests.tiny:TinyNet"},
        "train": {"epochs": 3, "batch_size": 16, "lr": 0.05},
        **changes,
    }
    return load_consumer_config(DistillConfig, values, kind="distil")


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
    import shutil

    shutil.copytree(world / "run", tmp_path / "run")
    shard = next((tmp_path / "run/data").iterdir())
    shard.write_bytes(b"no shard")
    with pytest.raises(DataError, match=f"{shard.name}.*nisynth redo"):
        distill(config(world, tmp_path / "out", data=str(tmp_path / "run"), workers=2))


def test_workers_that_do_not_divide_the_batch_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"workers: 3 do not divide train.batch_size 16"):
        distill(config(world, tmp_path / "out", workers=3))
