"""A run over a generator that takes no labels, on actors: the teacher's verdicts are the same everywhere."""

from pathlib import Path

import pytest
import torch

import nisynth
from nisynth.commits.seal import read_manifest
from nisynth.fitting import fit, load_fit_config
from nisynth.series.run import open_run
from nisynth.teachers import TeacherConfig, load_teacher
from tests.tiny import tiny_config


@pytest.mark.usefixtures("ray_cluster")
def test_several_workers_observe_the_labels_of_one_process(tmp_path: Path) -> None:
    teacher = tiny_config(tmp_path).to_dict()["teacher"]
    student = {"arch": "tests.tiny:TinyNet"}
    method = {"name": "dfad", "student": student, "latent_dim": 8, "iterations": 2, "student_steps": 1}
    values = {"teacher": teacher, "method": method, "batch_size": 4, "output": str(tmp_path / "fit")}
    fit(load_fit_config(values))
    sampling = {"name": "sampling", "generator": str(tmp_path / "fit/generator.safetensors")}
    document = tiny_config(tmp_path, execution={"workers": 3}).to_dict() | {"method": sampling}
    shards = {}
    for executor in ("local", "ray"):
        report = nisynth.run(document, str(tmp_path / executor), executor=executor)
        assert report.committed == 4
        verdict = nisynth.verify(str(tmp_path / executor), deep=True)
        assert (verdict.checked, verdict.problems) == (4, ())
        rows = read_manifest(open_run(str(tmp_path / executor)))
        shards[executor] = {row.task: row.sha256 for row in rows}
    assert shards["local"] == shards["ray"]
    images = nisynth.open_dataset(str(tmp_path / "ray")).load()
    known = load_teacher(TeacherConfig(**teacher))
    assert torch.equal(images.labels, known.predict(images.pixels))
