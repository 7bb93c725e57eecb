"""The sweep of Figure 6 on a small world: what it leaves behind, how it resumes, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.consumers.prune import FineTuneConfig, PruneConfig, prune
from nisynth.consumers.prune_report import point_name
from nisynth.errors import ConfigError, DataError, IncompleteRun, NisynthError, PlanMismatch
from nisynth.storage import open_store
from nisynth.teachers import TeacherConfig, load_teacher
from tests.tiny import commit_all, tiny_config, tiny_plan

TRAIN = FineTuneConfig(epochs=2, batch_size=8, lr=0.05)


def real_set(folder: Path, num_classes: int = 4, side_px: int = 16) -> str:
    """Writes a test set of 5 images a class, one folder a class, and returns its path."""
    for label in range(num_classes):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for i in range(5):
            noise = torch.randint(0, 256, (side_px, side_px, 3), dtype=torch.uint8).numpy()
            Image.fromarray(noise).save(folder / str(label) / f"{i}.png")
    return str(folder)


def a_run(folder: Path, tasks: Any = None) -> str:
    """Commits fake shards of 64 images, seals when all are there, and returns the run's URL."""
    run = Run.join(
        open_store(str(folder / "run")), tiny_plan(folder, run={"num_images": 64, "batch_size": 16})
    )
    commit_all(run, tasks)
    assert seal(run) == (tasks is None)
    return run.store.url


@pytest.fixture
def config(tmp_path: Path) -> PruneConfig:
    return PruneConfig(
        data=a_run(tmp_path),
        output=str(tmp_path / "pruned"),
        teacher=tiny_config(tmp_path).teacher,
        test_set=real_set(tmp_path / "real"),
        ratios=(0.75, 0.5),
        train=TRAIN,
    )


def test_a_sweep_leaves_networks_a_result_and_a_figure(config: PruneConfig) -> None:
    lines: list[str] = []
    report = prune(config, say=lines.append)
    out = Path(config.output)
    assert {path.name for path in out.iterdir()} >= {
        "pruned-50.safetensors", "pruned-75.safetensors", "result.json", "figure6.png",
    }  # fmt: skip
    assert not list(out.glob("*.checkpoint*"))
    assert json.loads((out / "result.json").read_text())["points"][0]["widths"] == {"stem.0": 4, "down.0": 6}
    with Image.open(out / "figure6.png") as figure:
        assert figure.size == (810, 600)

    half, quarter = report.points
    assert (half.ratio, quarter.ratio) == (0.5, 0.75)
    assert quarter.widths == {"stem.0": 2, "down.0": 3}
    # 3->4 and 4->6 3x3 convolutions on 16 and 8 px, BatchNorm, 6 -> 4 linear
    assert half.parameters == 3 * 4 * 9 + 8 + 4 * 6 * 9 + 12 + 6 * 4 + 4
    assert half.macs == 3 * 4 * 9 * 256 + 4 * 6 * 9 * 64 + 6 * 4
    assert (report.num_images, report.num_test_images, report.complete) == (64, 20, True)
    assert [record["epoch"] for record in half.history] == [1, 2]
    assert "\n".join(lines).count("done already") == 0

    teacher = load_teacher(config.teacher, weights=str(out / "pruned-75.safetensors"))
    assert teacher.network.get_submodule("down.0").weight.shape == (3, 2, 3, 3)
    stored = load_file(out / "pruned-75.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in teacher.network.state_dict().items())


def test_fine_tuning_learns_the_synthetic_images(config: PruneConfig) -> None:
    config = replace(config, ratios=(0.5,), train=replace(TRAIN, epochs=40, crop_pad_px=0, flip=False))
    history = prune(config).points[0].history
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["train_accuracy"] > 0.6


def test_the_teachers_answers_instead_of_labels(config: PruneConfig) -> None:
    labels = prune(replace(config, ratios=(0.5,)))
    answers = prune(replace(config, ratios=(0.5,), loss="teacher", output=f"{config.output}-kl"))
    assert answers.identity["loss"] == {"of": "teacher", "temperature": 20.0}
    assert answers.points[0].accuracy_pruned == labels.points[0].accuracy_pruned
    ours, theirs = (load_file(Path(r.output) / "pruned-50.safetensors") for r in (labels, answers))
    assert not torch.equal(ours["linear.weight"], theirs["linear.weight"])


def test_a_sweep_run_again_makes_only_what_is_missing(config: PruneConfig) -> None:
    first = prune(config)
    out = Path(config.output)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    (out / "pruned-50.safetensors").unlink()
    lines: list[str] = []
    again = prune(replace(config, ratios=(0.5, 0.6, 0.75)), say=lines.append)
    assert [point.ratio for point in again.points] == [0.5, 0.6, 0.75]
    assert again.points[0] == replace(first.points[0], history=again.points[0].history)
    assert (out / "pruned-75.safetensors").stat().st_mtime_ns == before["pruned-75.safetensors"]
    assert [line for line in lines if "done already" in line] == ["pruned-75: done already"]


def test_an_output_in_a_store(config: PruneConfig) -> None:
    output = "memory://test_prune/pruned"
    report = prune(replace(config, ratios=(0.5,), output=output))
    assert {info.key for info in open_store(output).list()} == {
        "pruned-50.safetensors", "result.json", "figure6.png",
    }  # fmt: skip
    teacher = load_teacher(config.teacher, weights=f"{output}/pruned-50.safetensors")
    assert teacher.network.get_submodule("stem.0").weight.shape == (4, 3, 3, 3)
    assert report.points[0].weights == "pruned-50.safetensors"


class Killed(Exception):
    """What a test raises in the middle of a fine-tuning."""


def test_an_interrupted_fine_tuning_continues_to_the_same_weights(
    config: PruneConfig, tmp_path: Path
) -> None:
    whole = replace(config, ratios=(0.5,), output=str(tmp_path / "whole"))
    prune(whole)
    broken = replace(config, ratios=(0.5,), checkpoint_minutes=0.0)

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise Killed

    with pytest.raises(Killed):
        prune(broken, say=stop)
    assert (Path(config.output) / "pruned-50.checkpoint.safetensors").exists()
    assert not (Path(config.output) / "result.json").exists()
    prune(broken)
    ours, theirs = (load_file(Path(c.output) / "pruned-50.safetensors") for c in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (Path(config.output) / "pruned-50.checkpoint.safetensors").exists()


def refused(config: PruneConfig, error: type[NisynthError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        prune(config)
    assert "\n" not in str(caught.value)


def test_another_config_at_the_output_is_refused(config: PruneConfig) -> None:
    config = replace(config, ratios=(0.5,))
    prune(config)
    changed = replace(config, train=replace(TRAIN, lr=0.1))
    refused(changed, PlanMismatch, r"of another config: train.lr: 0.05 there, 0.1 here")
    result = Path(config.output) / "result.json"
    sound = json.loads(result.read_text())
    result.write_text(json.dumps({**sound, "points": [{"ratio": 0.5}]}))
    refused(config, DataError, r"result.json: damaged; delete it")
    result.write_text("{")
    refused(config, DataError, r"result.json: damaged; delete it")
    result.write_text(json.dumps({"identity": {"kind": "distil"}}))
    refused(config, PlanMismatch, r'kind: "distil" there, "prune" here')


def test_an_incomplete_run_needs_leave(config: PruneConfig, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    url = a_run(tmp_path / "other", tasks=[0, 2])
    refused(replace(config, data=url), IncompleteRun, r"not complete")
    report = prune(replace(config, data=url, allow_partial=True, ratios=(0.5,)))
    assert (report.num_images, report.complete) == (32, False)


def test_what_does_not_fit_together(config: PruneConfig, tmp_path: Path) -> None:
    ten = TeacherConfig(arch="resnet20")
    other = replace(config.teacher, mean=(0.4, 0.4, 0.4))
    hundred = real_set(tmp_path / "hundred", num_classes=5)
    refused(replace(config, teacher=ten), ConfigError, r"has 4 classes, the teacher 10")
    refused(
        replace(config, teacher=other), ConfigError, r"teacher.mean: \[0.4, 0.4, 0.4\] contradicts the run's"
    )
    refused(replace(config, test_set=hundred), ConfigError, r"has 5 classes, the teacher 4")
    refused(
        replace(config, test_set=real_set(tmp_path / "big", side_px=20)), ConfigError, r"images are 20x20 px"
    )
    refused(
        replace(config, test_set="nowhere"), ConfigError, r"data 'nowhere': there is no such file or folder"
    )
    refused(
        replace(config, layers=("conv9",)),
        ConfigError,
        r"layers: 'conv9' matches none of stem.0, down.0",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, r"data: missing; give the URL of a run"),
        ({"output": ""}, r"output: missing"),
        ({"test_set": ""}, r"test_set: missing; give real images"),
        ({"ratios": ()}, r"ratios: \[\] are not shares"),
        ({"ratios": (0.5, 1.0)}, r"ratios: \[0.5, 1.0\] are not shares"),
        ({"ratios": (0.5, 0.5)}, r"contain one twice"),
        ({"temperature": 0.0}, r"temperature: 0.0 is not above 0"),
        ({"checkpoint_minutes": -1.0}, r"checkpoint_minutes: -1.0 is negative"),
    ],
)
def test_values_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    fields = {
        "data": "d",
        "output": "o",
        "test_set": "t",
        "teacher": TeacherConfig(arch="resnet20"),
        **changes,
    }
    with pytest.raises(ConfigError, match=message):
        PruneConfig(**fields)


def test_the_recipe_is_the_papers() -> None:
    config = PruneConfig(data="d", output="o", test_set="t", teacher=TeacherConfig(arch="resnet34"))
    train = config.train
    assert (train.epochs, train.lr, train.momentum, train.weight_decay, train.batch_size) == (
        20, 0.001, 0.9, 1e-4, 128,
    )  # fmt: skip
    assert [train.lr_at(epoch) for epoch in (0, 19)] == [0.001, 0.001]
    assert config.ratios == (0.5, 0.6, 0.7, 0.8, 0.9)
    assert [point_name(ratio) for ratio in (0.5, 0.7, 0.625)] == ["pruned-50", "pruned-70", "pruned-62.5"]


def test_features_before_the_logits_change_no_figure(config: PruneConfig) -> None:
    config = replace(config, ratios=(0.5,))
    plain = prune(config)
    teacher = replace(config.teacher, arch="tests.tiny:FeaturesFirst")
    both = prune(replace(config, teacher=teacher, output=f"{config.output}-both"))
    figures = ("accuracy_pruned", "accuracy_fine_tuned", "widths", "parameters")
    assert both.accuracy == plain.accuracy
    assert [getattr(both.points[0], name) for name in figures] == [
        getattr(plain.points[0], name) for name in figures
    ]
    ours, theirs = (load_file(Path(r.output) / "pruned-50.safetensors") for r in (plain, both))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
