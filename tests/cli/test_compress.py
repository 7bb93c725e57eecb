"""evaluate and prune as their users meet them, and one clear line for everything they can get wrong."""

import contextlib
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from nisynth.cli import execute
from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.config_loader import load_as, shipped_configs
from nisynth.consumers.prune import PruneConfig
from nisynth.storage import open_store
from tests.tiny import commit_all, tiny_config, tiny_plan, tiny_weights


def nisynth(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a command line as `main` does, in this process: starting one takes seconds."""
    words = [str(argument) for argument in arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        exit_code = execute(words)
    return subprocess.CompletedProcess(words, exit_code, stdout.getvalue(), stderr.getvalue())


def says(result: subprocess.CompletedProcess[str], exit_code: int, *parts: str) -> None:
    """Checks for the exit code, one line of error that holds the parts, and no traceback."""
    assert result.returncode == exit_code, (result.returncode, result.stdout, result.stderr)
    errors = [line for line in result.stderr.splitlines() if line.startswith("nisynth: error: ")]
    assert len(errors) == 1, result.stderr
    for part in parts:
        assert part in errors[0]
    assert "Traceback" not in result.stderr


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    plan = tiny_plan(tmp_path, run={"num_images": 32, "batch_size": 16})
    made = Run.join(open_store(str(tmp_path / "run")), plan)
    commit_all(made)
    seal(made)
    return made


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A run's config, whose teacher is the tiny one."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path).to_dict()))
    return path


@pytest.fixture
def real(tmp_path: Path) -> Path:
    for label in range(4):
        folder = tmp_path / "real" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(4):
            noise = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
            Image.fromarray(noise).save(folder / f"{i}.png")
    return tmp_path / "real"


def test_evaluate_on_real_images_and_on_a_run(network: Path, real: Path, run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "confusion.png"
    told = nisynth("evaluate", network, "--data", real, "--against", network, "--confusion", picture)
    assert told.returncode == 0, told.stderr
    first, *rest = told.stdout.splitlines()
    assert first.startswith("tests.tiny:TinyNet: accuracy ")
    assert first.endswith(f"% on real, N=16 ({real})")
    assert any("class3" not in line and "3  " in line for line in rest)
    assert rest[-1].startswith(f"against {network}: accuracy ")
    assert rest[-1].endswith("both choose the same class for 100.00% of the 16 images")
    with Image.open(picture) as drawn:
        assert drawn.width > 300

    told = nisynth("evaluate", network, "--data", run.store.url, "--json")
    found = json.loads(told.stdout)
    assert (found["num_images"], found["split"]) == (32, f"synthetic images of run {run.plan.fp12}")
    assert sum(map(sum, found["confusion"])) == 32
    assert found["against"] is None


def test_evaluate_takes_arch_and_weights(real: Path, tmp_path: Path) -> None:
    settings = ["num_classes=4", "input_px=16", "mean=[0.5, 0.5, 0.5]", "std=[0.25, 0.25, 0.25]"]
    overrides = [word for setting in settings for word in ("--set", f"teacher.{setting}")]
    one = ["--arch", "tests.tiny:TinyNet", "--weights", tiny_weights(tmp_path)]
    told = nisynth("evaluate", *one, "--data", real, *overrides)
    assert told.returncode == 0, told.stderr
    assert "N=16" in told.stdout


def test_prune_and_evaluate_what_is_left(network: Path, real: Path, run: Run, tmp_path: Path) -> None:
    config = tmp_path / "prune.yaml"
    teacher = tiny_config(tmp_path).to_dict()["teacher"]
    config.write_text(yaml.safe_dump({"teacher": teacher, "train": {"epochs": 1, "batch_size": 8}}))
    out = tmp_path / "pruned"
    flags = ["--data", run.store.url, "--output", out, "--test-set", real, "--ratios", "0.5,0.75"]
    told = nisynth("prune", config, *flags)
    assert told.returncode == 0, told.stderr
    table = told.stdout.splitlines()
    assert table[0].startswith("tests.tiny:TinyNet fine-tuned on 32 images of run")
    assert [line.split()[0] for line in table[2:5]] == ["0", "0.5", "0.75"]
    assert "accuracy" in told.stderr
    report = json.loads(nisynth("prune", config, *flags, "--json").stdout)
    assert report["config"]["train"]["epochs"] == 1
    assert report["config"]["train"]["lr"] == 0.001

    unpruned, half, _ = (f"{p:.2%}" for p in (report["accuracy"], *accuracies(report)))
    said = nisynth("status", out).stdout
    assert said.startswith(
        f"tests.tiny:TinyNet pruned: not pruned {unpruned}, pruned 0.5 {half}, pruned 0.75"
    )
    found = json.loads(nisynth("evaluate", config, "--data", real, "--json").stdout)
    assert found["accuracy"] == report["accuracy"]  # of the config's teacher

    pruned = {"teacher": {**teacher, "weights": str(out / "pruned-75.safetensors")}}
    (tmp_path / "pruned.yaml").write_text(yaml.safe_dump(pruned))
    found = json.loads(nisynth("evaluate", tmp_path / "pruned.yaml", "--data", real, "--json").stdout)
    assert found["accuracy"] == report["points"][1]["accuracy_fine_tuned"]


def accuracies(report: dict[str, Any]) -> list[float]:
    return [point["accuracy_fine_tuned"] for point in report["points"]]


def test_a_students_config_is_told_how_to_measure_the_student(real: Path, tmp_path: Path) -> None:
    config = tmp_path / "student.yaml"
    student = {"arch": "tests.tiny:TinyNet", "kwargs": {"width": 8}}
    config.write_text(yaml.safe_dump({"student": student, "teacher": {"arch": "resnet20"}}))
    told = nisynth("evaluate", config, "--data", real)
    words = (
        "--arch tests.tiny:TinyNet --weights OUTPUT/student.safetensors --set teacher.kwargs.width=8 --data"
    )
    says(told, 2, "trains a student; to measure it: `nisynth evaluate", words, "give the run's config")


def test_the_shipped_configs_are_sound() -> None:
    assert set(shipped_configs("prune")) == {"demo", "cifar10_resnet34", "cifar100_resnet34"}
    places = {"data": "d", "output": "o", "test_set": "t"}
    for name in shipped_configs("prune"):
        load_as(PruneConfig, name, kind="prune", given=places)
    paper = load_as(PruneConfig, "cifar10_resnet34", kind="prune", given=places)
    by_hand = {"teacher": {"arch": "resnet34", "weights": "cifar10_resnet34.safetensors"}}
    assert paper == load_as(PruneConfig, by_hand, kind="prune", given=places)


def test_mistakes(network: Path, real: Path, run: Run, tmp_path: Path) -> None:
    data = ("--data", real)
    says(nisynth("evaluate", *data), 2, "name the network once: by a config, or by --arch and --weights")
    says(nisynth("evaluate", network, "--arch", "resnet20", *data), 2, "name the network once")
    says(nisynth("evaluate", network, "--weights", "w", *data), 2, "--weights goes with --arch")
    says(
        nisynth("evaluate", "--arch", "resnet19", *data),
        2,
        "'resnet19' is unknown",
        "did you mean 'resnet18'",
    )
    says(nisynth("evaluate", "--arch", "resnet34", *data), 2, "teacher.weights is not given")
    says(nisynth("evaluate", "--arch", "resnet34", "--weights", "no.pt", *data), 2, "no.pt")
    says(nisynth("evaluate", "nowhere.yaml", *data), 2, "config 'nowhere.yaml': no such file")
    says(nisynth("evaluate", network, *data, "--set", "teachr.input_px=8"), 2, "teachr: unknown key")
    says(nisynth("evaluate", network, "--data", tmp_path / "none"), 2, "there is no such file or folder")
    says(nisynth("evaluate", "--arch", "resnet20", *data), 2, "has 4 classes, the network 10")
    says(
        nisynth("evaluate", network, *data, "--against", "resnet20"),
        2,
        "against: has 10 classes, the network 4",
    )
    says(
        nisynth("evaluate", network, *data, "--confusion", tmp_path), 2, "cannot be written (it is a folder)"
    )
    places = ("--data", run.store.url, "--output", tmp_path / "out")
    says(nisynth("prune", network, *places), 2, "unknown key")
    says(nisynth("prune", "--arch", "resnet20", *places), 2, "test_set: missing; give real images")
    says(
        nisynth("prune", "--arch", "resnet20", *places, "--test-set", real),
        2,
        "has 4 classes, the teacher 10",
    )
    says(
        nisynth("prune", "--arch", "resnet20", *places, "--test-set", real, "--ratios", "half"),
        2,
        "--ratios 'half': write",
    )
    says(
        nisynth("prune", "--arch", "resnet20", *places, "--test-set", real, "--ratios", "2"),
        2,
        "ratios: [2.0] are not",
    )
    says(
        nisynth("prune", "--arch", "resnet20", *places, "--test-set", real, "--set", "train.epoch=3"),
        2, "train.epoch: unknown key; did you mean 'epochs'",
    )  # fmt: skip
