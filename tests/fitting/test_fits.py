"""DAFL, DFAD and WGAN-GP through the public door, killed and resumed, and runs over what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import nisynth
from nisynth.commits import Run
from nisynth.commits.audit import verify
from nisynth.config import load_config
from nisynth.errors import ConfigError, NisynthError
from nisynth.execution.run import run
from nisynth.fitting import FITS, FitConfig, fit, load_fit_config
from nisynth.in_memory import probe
from nisynth.reader import open_dataset
from nisynth.storage import open_store
from nisynth.synthesis.judgement import class_balance
from nisynth.teachers import load_teacher

STUDENT = {"student": {"arch": "resnet20"}, "latent_dim": 8, "iterations": 3}
WGAN = {"name": "wgan_gp", "width": 4, "latent_dim": 4, "iterations": 3, "critic_steps": 2}
METHODS = {
    "dafl": {"name": "dafl", **STUDENT},
    "dafl_datafree": {"name": "dafl", "preset": "datafree", **STUDENT, "student_steps": 1},
    "dfad": {"name": "dfad", **STUDENT, "student_steps": 1},
    "dfad_datafree": {"name": "dfad", "preset": "datafree", **STUDENT, "student_steps": 1},
    "wgan_resnet": WGAN,
    "wgan_dcgan": {**WGAN, "preset": "dcgan", "conditional": True, "width": 4, "iterations": 3},
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    for label, name in enumerate(load_teacher(arch="resnet20").classes):
        (folder / name).mkdir()
        Image.new("RGB", (32, 32), (25 * label, 100, 30)).save(folder / name / "0.png")
    return folder


def config(output: Path, method: dict[str, Any], real: Path, **options: Any) -> FitConfig:
    method = {**method, "data": str(real)} if method["name"] == "wgan_gp" else dict(method)
    values = {"teacher": {"arch": "resnet20"}, "method": method, "batch_size": 8, "log_every": 1}
    return load_fit_config({**values, "output": str(output), "checkpoint_minutes": 0.0, **options})


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_fit_goes_on_bit_for_bit(name: str, real: Path, tmp_path: Path) -> None:
    def stop(iteration: int, terms: dict[str, float]) -> None:
        if iteration == 2:
            raise KeyboardInterrupt

    cut, whole = (config(tmp_path / part, METHODS[name], real) for part in ("cut", "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(cut, on_step=stop)
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    assert fit(cut) == fit(whole)
    for file in ("generator.safetensors", "student.safetensors"):
        parts = [tmp_path / part / file for part in ("cut", "whole")]
        assert parts[0].exists() == (file.startswith("generator") or not name.startswith("wgan"))
        if parts[0].exists():
            one, other = (load_file(part) for part in parts)
            assert one.keys() == other.keys()
            assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.parametrize("name", ["dafl", "dfad"])
def test_features_before_a_students_logits_change_no_fit(name: str, real: Path, tmp_path: Path) -> None:
    curves = []
    for arch in ("TinyNet", "FeaturesFirst"):
        method = {**METHODS[name], "student": {"arch": f"tests.tiny:{arch}"}}
        curves.append(fit(config(tmp_path / arch, method, real)).curve)
    assert curves[0] == curves[1]


def sampling(generator: Path, **execution: Any) -> dict[str, Any]:
    return {
        "run": {"num_images": 10, "batch_size": 4},
        "teacher": {"arch": "resnet20"},
        "method": {"name": "sampling", "generator": str(generator)},
        "execution": {"quality_gate": 0.0, **execution},
    }


def test_observed_labels_are_the_teachers_and_survive_the_audit(real: Path, tmp_path: Path) -> None:
    fit(config(tmp_path / "fit", METHODS["dafl"], real))
    generator = tmp_path / "fit" / "generator.safetensors"
    for name in ("a", "b"):
        assert run(load_config(sampling(generator)), str(tmp_path / name)).committed == 3
    one, other = (open_dataset(str(tmp_path / name)) for name in ("a", "b"))
    assert torch.equal(one.load().pixels, other.load().pixels)
    labels = load_teacher(arch="resnet20").predict(one.load().pixels)
    assert torch.equal(one.load().labels, labels)
    assert torch.equal(one.targets, labels)
    assert not verify(Run.open(open_store(str(tmp_path / "a"))), deep=True).problems
    card = (tmp_path / "a" / "README.md").read_text()
    assert "what the classifier says" in card
    assert "None was used" in card


def test_observed_labels_survive_a_pull_and_hugging_face_datasets(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    fit(config(tmp_path / "fit", METHODS["dafl"], real))
    run(load_config(sampling(tmp_path / "fit" / "generator.safetensors")), str(tmp_path / "run"))
    assert nisynth.pull(str(tmp_path / "run"), str(tmp_path / "copy")).complete
    assert not verify(Run.open(open_store(str(tmp_path / "copy"))), deep=True).problems
    images = open_dataset(str(tmp_path / "copy")).load()
    assert torch.equal(images.labels, load_teacher(arch="resnet20").predict(images.pixels))
    found = datasets.load_dataset(str(tmp_path / "copy"), cache_dir=str(tmp_path / "cache"))["train"]
    assert found["label"][:] == images.labels.tolist()
    assert found.features["label"].names == list(images.classes)


def test_a_card_says_that_real_images_were_used(real: Path, tmp_path: Path) -> None:
    report = fit(config(tmp_path / "fit", METHODS["wgan_resnet"], real))
    assert report.real_images is not None
    run(load_config(sampling(tmp_path / "fit" / "generator.safetensors")), str(tmp_path / "run"))
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"fitted to 10 real images (sha256 `{report.real_images['sha256']}`)" in card
    assert "data-free" not in card
    assert "None was used" not in card


def test_the_gate_of_observed_labels_is_the_balance_of_classes(real: Path, tmp_path: Path) -> None:
    fit(config(tmp_path / "fit", METHODS["dafl"], real))
    document = sampling(tmp_path / "fit" / "generator.safetensors", quality_gate=1.0)
    document["run"]["batch_size"] = 10
    with pytest.raises(NisynthError, match="entropy of balanced classes"):
        run(load_config(document), str(tmp_path / "run"))


def test_a_probe_judges_observed_labels_by_their_balance(real: Path, tmp_path: Path) -> None:
    """The teacher recognises each image by what its label is: that is no sign of anything."""
    fit(config(tmp_path / "fit", METHODS["dafl"], real))
    generator = tmp_path / "fit" / "generator.safetensors"
    found = {gate: probe(load_config(sampling(generator, quality_gate=gate))) for gate in (0.0, 1.0)}
    assert all(one.judgement.teacher_accuracy == 1 for one in found.values())
    assert (found[0.0].on_its_way, found[1.0].on_its_way) == (True, False)
    assert found[0.0].verdict.startswith("on its way, as far as labels can tell: ")
    assert "the generator leaves classes out: fit it longer" in found[1.0].verdict


def test_the_balance_of_classes() -> None:
    assert class_balance(torch.arange(10), 10) == 1.0
    assert class_balance(torch.zeros(10, dtype=torch.int64), 10) == 0.0
    assert class_balance(torch.tensor([3]), 10) == 1.0
    halves = torch.arange(1000) % 2
    assert class_balance(halves, 4) == pytest.approx(0.5, abs=1e-3)


def test_a_fit_that_is_killed_goes_on_bit_for_bit(real: Path, tmp_path: Path) -> None:
    method = {**METHODS["dfad"], "iterations": 6}
    config(tmp_path / "cut", method, real)
    words = ["fit", "demo_dfad", "--output", str(tmp_path / "cut"), "--set", f"method={json.dumps(method)}"]
    for override in ("batch_size=8", "log_every=1", "checkpoint_minutes=0"):
        words += ["--set", override]
    process = subprocess.Popen(
        [sys.executable, "-m", "nisynth", *words],
        # Other numbers of threads round otherwise, and an earlier test may have set this process's.
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    seen = any("iteration 3 of 6" in line for line in process.stderr)
    process.kill()
    process.wait()
    process.stderr.close()
    assert seen
    assert not (tmp_path / "cut" / "result.json").exists()
    resumed = fit(config(tmp_path / "cut", method, real))
    assert resumed == fit(config(tmp_path / "whole", method, real))


def test_a_student_is_measured_and_can_be_loaded(real: Path, tmp_path: Path) -> None:
    report = fit(config(tmp_path, {**METHODS["dafl"], "test_set": str(real)}, real))
    student = load_teacher(arch="resnet20", weights=str(tmp_path / "student.safetensors"))
    assert report.test_accuracy is not None
    assert 0 <= report.test_accuracy <= 1
    assert student.classes == load_teacher(arch="resnet20").classes


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "dafi"}, "method.name: unknown method 'dafi'; did you mean 'dafl'"),
        ({"name": "wgan_gp"}, "method.data: missing"),
        ({"name": "wgan_gp", "data": "/absent"}, "method.data '/absent'"),
        ({**STUDENT, "name": "dafl", "student": {"arch": "resnet21"}}, "resnet21"),
        ({"name": "dfad", "lr_student": 0.0}, "method.lr_student: 0.0"),
        ({"name": "dafl", "betas": [0.5, 1.0]}, "method.betas"),
        ({"name": "dafl", "preset": "cifar"}, "method.preset"),
        ({"name": "dafl", "balance": 3}, "method.balance: unknown key"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(method: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(NisynthError, match=message) as refusal:
        fit(load_fit_config({"output": str(tmp_path), "teacher": {"arch": "resnet20"}, "method": method}))
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_real_set_of_other_classes_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "set" / name / "0.png")
    with pytest.raises(ConfigError, match=r"method.data .*: has 2 classes"):
        fit(config(tmp_path / "out", METHODS["wgan_resnet"], tmp_path / "set"))


def test_every_shipped_config_is_sound() -> None:
    from nisynth.config_loader import shipped_configs

    for name in shipped_configs("fit"):
        data = ["method.data=somewhere"] if "wgan" in name else []
        loaded = load_fit_config(name, data, {"output": "there"})
        assert any(loaded.method.name == fit for fit in FITS)
