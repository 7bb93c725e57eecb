"""A run on a cluster as the bucket shows it, and what its images are used for."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.config import load_config
from nisynth.execution.run import plan_run
from nisynth.storage import open_store
from tests.guides.pages import blocks, follow, run_code, write_files
from tests.tiny import commit_all

SHIPPED = ["--set", "teacher.arch=resnet20", "--set", "teacher.weights=null"]
TRAINING = ["--set", "train.epochs=1", "--set", "train.batch_size=8"]
BUCKET = "s3://example-bucket/flowers"


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run of 16 images that stands for the one in the bucket."""
    monkeypatch.chdir(tmp_path)
    config = load_config({"run": {"num_images": 16, "batch_size": 4}, "teacher": {"arch": "resnet20"}})
    run = Run.join(open_store(str(tmp_path / "bucket")), plan_run(config))
    commit_all(run)
    assert seal(run)
    return run


def test_a_run_on_a_cluster_is_predicted_watched_mended_and_brought_home(
    flowers: Run, tmp_path: Path
) -> None:
    write_files("cluster", tmp_path)
    said = follow("cluster", {"plan": SHIPPED}, {BUCKET: flowers.store.url}, without=["submit"])
    assert "makespan" in said["plan"]
    assert "complete" in said["status"]
    assert "nothing is bad in 4 committed tasks" in said["redo"]
    assert (tmp_path / "flowers/_SUCCESS").exists()


def test_the_images_are_read_exported_distilled_and_pruned(
    flowers: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files("use-the-images", tmp_path)
    for name in flowers.plan.classes:
        (tmp_path / "real" / name).mkdir(parents=True)
        noise = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / "real" / name / "0.png")
    tiny = {"distill": TRAINING, "prune": [*TRAINING, "--set", "ratios=[0.3]"]}
    said = follow("use-the-images", tiny, {BUCKET: flowers.store.url})
    assert "resnet20 trained on 16 synthetic images" in said["status"]

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    code, _ = blocks("README", "python")
    for written, here in (
        ("s3://bucket/run", flowers.store.url),
        ("./run", "./flowers"),
        ("batch_size=256", "batch_size=8"),
    ):
        assert written in code
        code = code.replace(written, here)
    exec(code, {})
    names = run_code("use-the-images")
    assert len(names["whole"].labels) == len(names["flowers"]) == 16
    assert names["x"].shape == (8, 3, 32, 32)
