"""Distillation and training from scratch: from a run to a stored student, and all that can be wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from nisynth import load_teacher
from nisynth.cli import execute
from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.config_loader import load_as, shipped_configs
from nisynth.consumers.distill import DistillConfig, LossConfig, distill, distillation_loss
from nisynth.consumers.prune import PruneConfig
from nisynth.consumers.scratch import ScratchConfig, train_from_scratch
from nisynth.consumers.student import read_test_set
from nisynth.errors import ConfigError
from nisynth.reader import open_dataset
from nisynth.storage import open_store
from nisynth.teachers import Teacher
from tests.tiny import TinyNet, commit_all, tiny_config, tiny_plan, tiny_weights

REPO = Path(__file__).resolve().parents[2]


class Bare(nn.Module):
    """A student without any BatchNorm."""

    def __init__(self, num_classes: int, width: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).mean((2, 3)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, the teacher it was made from, and a real test set of its classes."""
    folder = tmp_path_factory.mktemp("world")
    run = Run.join(open_store(str(folder / "run")), tiny_plan(folder))
    commit_all(run)
    assert seal(run)
    rng = np.random.default_rng(0)
    for label in range(4):
        (folder / "test" / str(label)).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "test" / str(label) / f"{number}.png")
    return folder


def values(world: Path, output_: Path, **changes: Any) -> dict[str, Any]:
    """A distillation that takes a fraction of a second."""
    found: dict[str, Any] = {
        "data": str(world / "run"),
        "output": str(output_),
        "teacher": tiny_config(world).to_dict()["teacher"],
        "student": {"arch": "tests.tiny:TinyNet"},
        "train": {"epochs": 3, "batch_size": 8, "crop_pad_px": 2},
        "test_set": str(world / "test"),
        "evaluate_every": 2,
    }
    for name, value in changes.items():
        found[name] = {**found[name], **value} if isinstance(value, dict) and name in found else value
    return found


def config(world: Path, output: Path, **changes: Any) -> DistillConfig:
    return load_as(DistillConfig, values(world, output, **changes), kind="distill")


def scratch_values(world: Path, output: Path, **changes: Any) -> dict[str, Any]:
    found = values(world, output, **changes)
    del found["teacher"]
    return found


def teacher_of(world: Path) -> Teacher:
    return load_teacher(tiny_config(world).teacher)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two output folders hold the same student, bit for bit."""
    first, second = (load_file(folder / "student.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Runs a command line in this process: its exit code, standard output, standard error."""
    capsys.readouterr()
    code = execute([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_loss_is_the_scaled_divergence() -> None:
    """Two classes, T=2, teacher logits (2 ln 3, 0), student (0, 0): 4 (ln 2 - H(3/4))."""

    class Answers:
        network = nn.Identity()

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[2 * np.log(3.0), 0.0]])

    student, labels = torch.zeros(1, 2, requires_grad=True), torch.tensor([1])
    loss = distillation_loss(Answers(), LossConfig(temperature=2.0))(student, torch.zeros(1), labels)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(4 * (np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25)), rel=1e-6)
    loss.backward()
    assert student.grad is not None
    # T² times the gradient of the KL: T (softmax of the student - softmax of the teacher)
    assert student.grad.tolist() == [pytest.approx([2 * (0.5 - 0.75), 2 * (0.5 - 0.25)], rel=1e-6)]
    both = distillation_loss(Answers(), LossConfig(temperature=2.0, hard_label_weight=0.5))  # type: ignore[arg-type]
    assert both(student, torch.zeros(1), labels).item() == pytest.approx(
        loss.item() + 0.5 * np.log(2), rel=1e-6
    )


@pytest.mark.parametrize(
    ("temperature", "value"), [(1.0, 1.0704400116), (3.0, 4.1362238612), (20.0, 4.5840840774)]
)
def test_the_loss_by_its_values(temperature: float, value: float) -> None:
    """Teacher logits (3 ln 8, 0, 0), student 0, in float64, worked out by hand: (4/5, 1/10, 1/10) at T=3."""

    class Answers:
        network = nn.Identity()

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[3 * np.log(8.0), 0.0, 0.0]], dtype=torch.float64).expand(len(x), -1)

    loss = distillation_loss(Answers(), LossConfig(temperature=temperature))  # type: ignore[arg-type]
    student, labels = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    assert loss(student, student, labels).item() == pytest.approx(value, rel=1e-9)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(world: Path) -> None:
    teacher = teacher_of(world)
    read = open_dataset(str(world / "run")).load()
    images = teacher.normalization.normalize(read.pixels)
    loss = distillation_loss(teacher, LossConfig())(teacher.logits(images), images, read.labels)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def test_a_run_becomes_a_student(world: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = distill(config(world, tmp_path / "out"), say=said.append)
    assert (report.kind, report.num_images, report.complete) == ("distill", 16, True)
    assert report.identity["kind"] == "distil"  # as stored since the first release, so that its jobs resume
    assert report.fingerprint == open_dataset(str(world / "run")).fingerprint
    assert report.num_parameters == sum(p.numel() for p in TinyNet().parameters())
    assert [record["epoch"] for record in report.history] == [1, 2, 3]
    assert ["test_accuracy" in record for record in report.history] == [False, True, True]
    assert report.num_test_images == 12
    assert report.history[-1]["loss"] < report.history[0]["loss"]
    assert sum(line.startswith("epoch ") for line in said) == 3

    found = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file())
    assert found == ["curve.png", "result.json", "student.safetensors"]
    stored = json.loads((tmp_path / "out/result.json").read_text())
    assert stored["test_accuracy"] == report.test_accuracy == report.history[-1]["test_accuracy"]
    assert stored["config"]["loss"] == {"temperature": 20.0, "hard_label_weight": 0.0}
    assert stored["identity"]["teacher"]["weights_sha256"] == teacher_of(world).identity["weights_sha256"]
    assert (tmp_path / "out/curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("job", ["distill", "scratch"])
def test_features_before_the_logits_change_no_student(world: Path, tmp_path: Path, job: str) -> None:
    students = []
    for arch in ("TinyNet", "FeaturesFirst"):
        wanted = {"student": {"arch": f"tests.tiny:{arch}"}}
        if job == "distill":
            report = distill(config(world, tmp_path / arch, teacher={"arch": f"tests.tiny:{arch}"}, **wanted))
        else:
            values_ = scratch_values(world, tmp_path / arch, **wanted)
            report = train_from_scratch(load_as(ScratchConfig, values_, kind="scratch"))
        students.append(report.test_accuracy)
    assert students[0] == students[1]
    assert same_weights(tmp_path / "TinyNet", tmp_path / "FeaturesFirst")


def test_the_stored_student_opens_as_a_teacher_of_the_same_accuracy(world: Path, tmp_path: Path) -> None:
    report = distill(config(world, tmp_path))
    student = load_teacher(arch="tests.tiny:TinyNet", weights=str(tmp_path / "student.safetensors"))
    assert student.classes == ("0", "1", "2", "3")
    assert student.normalization == open_dataset(str(world / "run")).normalization
    real = read_test_set(config(world, tmp_path), open_dataset(str(world / "run")))
    assert real is not None
    assert student.accuracy(real.pixels, real.labels) == report.test_accuracy


def test_scratch_is_the_same_machinery_with_labels_and_its_own_recipe(world: Path, tmp_path: Path) -> None:
    changes = scratch_values(
        world, tmp_path / "out", train={"epochs": 25, "batch_size": 16, "crop_pad_px": 0}
    )
    resolved = load_as(ScratchConfig, changes, kind="scratch")
    assert (resolved.train.lr, resolved.train.weight_decay, resolved.train.schedule) == (0.05, 5e-4, "cosine")
    assert (resolved.train.momentum, resolved.train.batch_size) == (0.9, 16)
    report = train_from_scratch(resolved)
    assert (report.kind, report.teacher_accuracy) == ("scratch", None)
    assert report.history[-1]["train_accuracy"] > report.history[0]["train_accuracy"]


def test_crops_are_padded_as_the_teachers_were_and_the_student_tells_it_on(
    world: Path, tmp_path: Path
) -> None:
    tensors, says = load_file(tiny_weights(world)), {"padding": "reflect"}
    save_file(tensors, tmp_path / "reflects.safetensors", says)
    teacher = {"weights": str(tmp_path / "reflects.safetensors")}
    followed = distill(config(world, tmp_path / "followed", teacher=teacher))
    asked = distill(config(world, tmp_path / "asked", train={"padding": "reflect"}))
    black = distill(config(world, tmp_path / "black", teacher=teacher, train={"padding": "zero"}))
    before = distill(config(world, tmp_path / "before"))
    assert same_weights(tmp_path / "followed", tmp_path / "asked")
    assert same_weights(tmp_path / "black", tmp_path / "before")
    assert not same_weights(tmp_path / "asked", tmp_path / "before")
    assert followed.identity == asked.identity
    assert asked.identity["train"]["padding"] == "reflect"
    assert "padding" not in before.identity["train"]  # what was trained before this option resumes
    assert black.identity == before.identity
    for name, padding in (("followed", "reflect"), ("before", "zero")):
        student = str(tmp_path / name / "student.safetensors")
        assert load_teacher(arch="tests.tiny:TinyNet", weights=student).padding == padding


@pytest.mark.parametrize("mix", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_the_teacher_answers_to_mixtures_which_have_no_label(
    world: Path, tmp_path: Path, mix: dict[str, float]
) -> None:
    report = distill(config(world, tmp_path / "mixed", train=mix))
    plain = distill(config(world, tmp_path / "plain"))
    assert not same_weights(tmp_path / "mixed", tmp_path / "plain")
    assert report.identity["train"] == {**plain.identity["train"], **mix}
    with pytest.raises(ConfigError, match=r"loss.hard_label_weight: .* no label"):
        config(world, tmp_path, train=mix, loss={"hard_label_weight": 0.5})
    with pytest.raises(ConfigError, match=r"train.mixup, train.cutmix: .* no label"):
        load_as(ScratchConfig, scratch_values(world, tmp_path, train=mix), kind="scratch")


def test_a_student_needs_no_batch_norm_and_a_job_no_test_set(world: Path, tmp_path: Path) -> None:
    student = {"arch": f"{__name__}:Bare", "kwargs": {"width": 5}}
    report = distill(config(world, tmp_path, student=student, test_set=None))
    assert (report.test_accuracy, report.num_test_images) == (None, 0)
    assert report.num_parameters == 5 * 27 + 5 + 4 * 5 + 4


def test_the_same_job_twice_gives_the_same_student_and_trains_once(world: Path, tmp_path: Path) -> None:
    first = distill(config(world, tmp_path / "a"))
    distill(config(world, tmp_path / "b"))
    assert same_weights(tmp_path / "a", tmp_path / "b")
    said: list[str] = []
    assert distill(config(world, tmp_path / "a"), say=said.append) == first
    assert said == [f"{tmp_path / 'a'}: done already; nothing to train"]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_another_test_set_measures_the_stored_student_and_trains_nothing(
    world: Path, tmp_path: Path, batch_norm: bool
) -> None:
    shutil.copytree(world / "test", tmp_path / "other")
    (tmp_path / "other/0/0.png").unlink()
    student = {"arch": "tests.tiny:TinyNet" if batch_norm else f"{__name__}:Bare"}
    first, fresh = (
        distill(config(world, tmp_path / name, student=student, test_set=str(test_set)))
        for name, test_set in (("out", world / "test"), ("fresh", tmp_path / "other"))
    )
    weights = (tmp_path / "out/student.safetensors").read_bytes()
    said: list[str] = []
    changed = config(world, tmp_path / "out", student=student, test_set=str(tmp_path / "other"))
    again = distill(changed, say=said.append)
    assert (again.test_set, again.num_test_images) == (str(tmp_path / "other"), 11)
    assert (again.test_accuracy, again.teacher_accuracy) == (fresh.test_accuracy, fresh.teacher_accuracy)
    assert again.history == first.history
    assert said == [
        f"{tmp_path / 'out'}: done already; nothing to train",
        f"measured anew on 11 real images ({tmp_path / 'other'})",
    ]
    assert distill(changed, say=said.append) == again
    assert said[2:] == [f"{tmp_path / 'out'}: done already; nothing to train"]
    assert distill(config(world, tmp_path / "out", student=student, test_set=None)) == again
    assert (tmp_path / "out/student.safetensors").read_bytes() == weights


def test_a_distillation_killed_by_9_ends_with_the_same_student(world: Path, tmp_path: Path) -> None:
    """The command is killed in the middle of its second epoch; then the job's file runs it again."""
    script = (
        "import os, signal, sys, json; import nisynth.consumers.training_log as n\n"
        "from nisynth.cli import execute\n"
        "told = n.TrainingLog.on_step\n"
        "def on_step(self, done, total):\n"
        "    if done == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    told(self, done, total)\n"
        "n.TrainingLog.on_step = on_step\n"
        "execute(['distill', sys.argv[1]])\n"
    )
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values(world, tmp_path / "killed", checkpoint_minutes=0)))
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "killed/checkpoint.safetensors").is_file()
    again = [sys.executable, str(REPO / "jobs/distill.py"), str(path), "--json"]
    resumed = subprocess.run(again, env=environment, check=True, capture_output=True, text=True)
    whole = distill(config(world, tmp_path / "whole"))
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    history = json.loads(resumed.stdout)["history"]
    assert [record["loss"] for record in history] == [record["loss"] for record in whole.history]
    assert "continuing from the checkpoint at step 3 of 6" in resumed.stderr
    assert not (tmp_path / "killed/checkpoint.safetensors").exists()


def test_a_student_starts_from_given_weights_and_takes_so_many_steps(world: Path, tmp_path: Path) -> None:
    """5 steps over 16 images, 8 a batch: two epochs and a half; the hash of the start is identity."""
    train = {"epochs": 1, "steps": 5, "schedule": "constant"}
    first = distill(config(world, tmp_path / "first", train=train))
    assert [record["epoch"] for record in first.history] == [1, 2, 3]
    assert first.identity["train"]["steps"] == 5
    assert "test_accuracy" in first.history[-1]
    start = tmp_path / "first/student.safetensors"
    student = {"arch": "tests.tiny:TinyNet", "weights": str(start)}
    second = distill(config(world, tmp_path / "second", train=train, student=student))
    assert second.history[0]["loss"] < first.history[0]["loss"]
    moved = shutil.copy(start, tmp_path / "moved.safetensors")
    again = config(world, tmp_path / "second", train=train, student={**student, "weights": str(moved)})
    assert distill(again) == second
    started = load_teacher(arch="tests.tiny:TinyNet", weights=str(start)).identity["weights_sha256"]
    assert second.identity["student"]["weights"] == started


def test_a_students_identity_knows_nothing_of_options_that_it_does_not_use(
    world: Path, tmp_path: Path
) -> None:
    """What was distilled before these options existed is still the same student."""
    found = distill(config(world, tmp_path)).identity
    assert "steps" not in found["train"]
    assert found["student"] == {"arch": "tests.tiny:TinyNet", "kwargs": {}}


def test_the_command_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values(world, tmp_path / "from_file")))
    code, out, err = command(
        capsys, "distill", path, "--output", tmp_path / "out", "--set", "train.epochs=2", "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert len(report["history"]) == 2
    assert report["output"] == str(tmp_path / "out")
    assert "epoch 2 of 2" in err
    code, out, _ = command(capsys, "distill", path, "--output", tmp_path / "out", "--set", "train.epochs=2")
    assert code == 0
    assert "student over teacher" in out


@pytest.mark.parametrize("kind", ["distill", "scratch"])
def test_what_ships_is_valid_and_is_the_recipe(kind: str, tmp_path: Path) -> None:
    owner: Any = {"distill": DistillConfig, "scratch": ScratchConfig}[kind]
    names = shipped_configs(kind)
    assert names
    for name in names:
        found = load_as(owner, name, kind=kind, given={"data": "d", "output": "o"})
        if name != "demo":
            assert found.train == owner.__dataclass_fields__["train"].default_factory()


def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str, document: dict[str, Any]
) -> tuple[int, str]:
    """The exit code and the one line that a command ends with."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    code, out, err = command(capsys, verb, path)
    assert out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("nisynth: error: "), err
    assert "Traceback" not in err
    return code, line.removeprefix("nisynth: error: ")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("unknown key", {"tempreture": 3}, "tempreture: unknown key; valid: .*test_set"),
    ("unknown inner key", {"train": {"epoch": 3}}, "train.epoch: unknown key; did you mean 'epochs'"),
    ("wrong type", {"train": {"epochs": "3"}}, "train.epochs: '3': should be a valid integer"),
    ("no data", {"data": ""}, "data: missing; .*--data"),
    ("no output", {"output": ""}, "output: missing; .*--output"),
    ("temperature", {"loss": {"temperature": 0.0}}, "loss.temperature: 0.0 is not above 0"),
    ("steps", {"train": {"steps": 0, "schedule": "constant"}}, "train.steps: 0 is not at least 1"),
    ("steps and epochs", {"train": {"steps": 9}}, "train.steps: 9 with train.schedule 'steps', which counts"),
    (
        "no weights to start from",
        {"student": {"weights": "nowhere.safetensors"}},
        "student.weights nowhere.safetensors cannot be found",
    ),
    ("student", {"student": {"arch": "resnet19"}}, "arch 'resnet19' is unknown; did you mean"),
    (
        "classes of the student",
        {"student": {"kwargs": {"num_classes": 7}}},
        r"student.arch: .* gives logits \(2, 7\) for 2 images, but these have 4 classes",
    ),
    (
        "classes of the teacher",
        {"teacher": {"arch": "resnet20", "weights": None, "num_classes": None, "mean": None, "std": None}},
        "data .*run: has 4 classes, the teacher 10",
    ),
    (
        "normalization",
        {"teacher": {"mean": [0.4, 0.5, 0.5]}},
        r"teacher.mean: \[0.4, 0.5, 0.5\] contradicts the run's \[0.5, 0.5, 0.5\]",
    ),
    ("no test set", {"test_set": "nowhere.parquet"}, "data 'nowhere.parquet': there is no such file"),
    ("no run", {"data": "nowhere"}, "nowhere: no run there"),
]


@pytest.mark.parametrize(
    ("changes", "expected"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_bad_input_is_one_clear_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], expected: str
) -> None:
    import re

    code, line = refused(capsys, tmp_path, "distill", values(world, tmp_path / "out", **changes))
    assert code == 2
    assert re.search(expected, line), line
    assert not (tmp_path / "out").exists()


def test_a_test_set_of_other_classes_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "test", tmp_path / "test")
    shutil.copytree(world / "test/0", tmp_path / "test/4")
    document = scratch_values(world, tmp_path / "out", test_set=str(tmp_path / "test"))
    code, line = refused(capsys, tmp_path, "scratch", document)
    assert (code, "has 5 classes, the run 4" in line) == (2, True), line


def test_a_test_set_of_another_size_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "test", tmp_path / "test")
    for path in (tmp_path / "test").rglob("*.png"):
        Image.new("RGB", (20, 18)).save(path)
    document = scratch_values(world, tmp_path / "out", test_set=str(tmp_path / "test"))
    code, line = refused(capsys, tmp_path, "scratch", document)
    assert code == 2
    assert line.endswith("images are 20x18 px, run.input_px is 16; they must be the same"), line


def test_an_incomplete_run_is_refused_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], world: Path
) -> None:
    run = Run.join(open_store(str(tmp_path / "part")), tiny_plan(world))
    commit_all(run, [0, 1])
    document = values(world, tmp_path / "out", data=str(tmp_path / "part"))
    code, line = refused(capsys, tmp_path, "distill", document)
    assert (code, "is not complete" in line) == (2, True), line
    report = distill(config(world, tmp_path / "out", data=str(tmp_path / "part"), allow_partial=True))
    assert (report.num_images, report.complete) == (8, False)


def test_a_damaged_shard_ends_the_job_with_its_name(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    shard = next((tmp_path / "run/data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-9])
    document = values(world, tmp_path / "out", data=str(tmp_path / "run"))
    code, line = refused(capsys, tmp_path, "distill", document)
    assert code == 1
    assert shard.name in line
    assert "nisynth redo" in line


@pytest.mark.parametrize("finished", [True, False])
def test_an_output_of_another_config_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: bool
) -> None:
    """Whether the other job left its result there or only a checkpoint."""
    document = values(world, tmp_path / "out", checkpoint_minutes=0)
    with pytest.MonkeyPatch.context() as patch:
        if not finished:
            patch.setattr("nisynth.consumers.student._store_result", lambda *_: 1 / 0)
        code, _, err = command_of(capsys, tmp_path, document)
        assert code == (0 if finished else 70), err
    document["loss"] = {"temperature": 3.0}
    code, line = refused(capsys, tmp_path, "distill", document)
    assert code == 2
    assert "of another config: loss.temperature: 20.0 there, 3.0 here" in line
    assert ("result.json" if finished else "checkpoint.safetensors") in line


def command_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, document: dict[str, Any]
) -> tuple[int, str, str]:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return command(capsys, "distill", path)


def test_a_damaged_result_is_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/result.json").write_text("{")
    code, line = refused(capsys, tmp_path, "distill", values(world, tmp_path / "out"))
    assert (code, "result.json: damaged" in line) == (1, True), line


def test_another_seed_is_another_student(world: Path, tmp_path: Path) -> None:
    distill(config(world, tmp_path / "a"))
    distill(config(world, tmp_path / "b", train={"seed": 1}))
    assert not same_weights(tmp_path / "a", tmp_path / "b")


def test_a_config_is_refused_in_python_as_on_the_command_line(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size: 1 is not at least 2"):
        config(world, tmp_path, train={"batch_size": 1})
    assert tiny_weights(world)


@pytest.mark.parametrize(
    ("data", "output"),
    [("runs/a", "./runs/a/"), ("s3://bucket/a", "s3://bucket/a/"), ("runs/a", "{here}/runs/a")],
)
@pytest.mark.parametrize("config", [DistillConfig, PruneConfig, ScratchConfig])
def test_a_result_is_not_written_into_the_run_itself(config: Any, data: str, output: str) -> None:
    networks = {"teacher": {"arch": "resnet20"}, "student": {"arch": "resnet20"}, "test_set": "real"}
    wanted = {field.name for field in fields(config)}
    output = output.format(here=Path.cwd())
    values = {"data": data, "output": output} | {k: v for k, v in networks.items() if k in wanted}
    with pytest.raises(ConfigError, match=r"output: .* holds the run itself; give another folder or URL"):
        load_as(config, values, kind="distill")
    load_as(config, {**values, "output": f"{data}/student"}, kind="distill")
