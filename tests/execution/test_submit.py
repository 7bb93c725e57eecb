"""What a job is made of: packed, named and judged without any cluster."""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nisynth.config import load_config
from nisynth.errors import ConfigError, TeacherError
from nisynth.execution.run import plan_run
from nisynth.execution.submit import CONFIG_NAME, MAX_UPLOAD_BYTES, Shipment, pack
from nisynth.synthesis.generators import FittedGenerator, GeneratorSpec
from nisynth.synthesis.sampling import generator_bytes
from nisynth.teachers import load_teacher
from tests.tiny import tiny_config, tiny_weights


def packed(folder: Path, store: str = "s3://bucket/run", **options: object) -> Shipment:
    return pack(tiny_config(folder), store, **options)  # type: ignore[arg-type]


def test_what_travels_gives_the_same_plan(tmp_path: Path) -> None:
    shipment = packed(tmp_path)
    staged = tmp_path / "staged"
    staged.mkdir()
    shipment.stage(staged)
    assert sorted(str(f.relative_to(staged)) for f in staged.rglob("*")) == [
        CONFIG_NAME,
        "weights",
        "weights/tiny-0.safetensors",
    ]
    there = load_config(json.loads((staged / CONFIG_NAME).read_text()))
    assert there.teacher.weights == "weights/tiny-0.safetensors"
    absolute = dataclasses.replace(there.teacher, weights=str(staged / there.teacher.weights))
    assert plan_run(dataclasses.replace(there, teacher=absolute)).fingerprint == shipment.fingerprint


def test_the_command_names_everything_it_needs(tmp_path: Path) -> None:
    shipment = packed(tmp_path, store=str(tmp_path / "two words"))
    assert shlex.split(shipment.entrypoint) == [
        *("python", "-m", "nisynth", "run", CONFIG_NAME, "--store", str(tmp_path / "two words")),
        *("--executor", "ray", "--address", "auto"),
    ]


def test_python_m_nisynth_is_the_command_line() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "nisynth", "run", "--help"], capture_output=True, text=True, check=True
    )
    assert "--executor" in said.stdout


def test_the_name_is_the_runs_own(tmp_path: Path) -> None:
    name = packed(tmp_path).name
    assert name == packed(tmp_path, store="s3://bucket/run/").name
    assert name != packed(tmp_path, store="s3://bucket/run10").name
    assert name != pack(tiny_config(tmp_path, run={"seed": 1}), "s3://bucket/run").name
    # How a run is executed changes no image: it is the same run, and its job is attached to.
    assert name == pack(tiny_config(tmp_path, execution={"workers": 7}), "s3://bucket/run").name


def test_weights_with_a_url_stay_where_they_are(tmp_path: Path) -> None:
    url = f"file://{tiny_weights(tmp_path)}"
    shipment = pack(tiny_config(tmp_path, teacher={"weights": url}), "s3://bucket/run")
    assert (shipment.config.teacher.weights, dict(shipment.files)) == (url, {})


def test_a_local_generator_travels(tmp_path: Path) -> None:
    """The job's folder is on the cluster, where a path of this machine names nothing."""
    teacher = load_teacher(tiny_config(tmp_path).teacher)
    spec = GeneratorSpec(arch="dfad", num_classes=4, image_px=16, latent_dim=8)
    generator = tmp_path / "generator.safetensors"
    network = FittedGenerator(spec, teacher.normalization)
    generator.write_bytes(generator_bytes(network, teacher.normalization, {}))
    document = tiny_config(tmp_path).to_dict()
    document["method"] = {"name": "sampling", "generator": str(generator)}
    shipment = pack(load_config(document), "s3://bucket/run")
    assert vars(shipment.config.method)["generator"] == "generator/generator.safetensors"
    assert shipment.files["generator/generator.safetensors"] == generator


def test_files_too_large_for_a_job(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    with (package / "table.bin").open("wb") as file:
        file.truncate(MAX_UPLOAD_BYTES)  # a hole: it takes no space on the disk
    with pytest.raises(ConfigError, match=r"mine: 99 MiB, and a job carries 99 MiB in all; put it in the"):
        packed(tmp_path, modules=[package])


def test_modules_travel_without_their_leavings(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    for name in ("__init__.py", "net.py", "__pycache__/net.pyc", ".gitignore"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    (tmp_path / "single.py").write_text("")
    shipment = packed(tmp_path, modules=[package, tmp_path / "single.py"])
    staged = tmp_path / "staged"
    staged.mkdir()
    shipment.stage(staged)
    found = {str(f.relative_to(staged)) for f in staged.rglob("*.*") if f.name != CONFIG_NAME}
    assert found == {"mine/__init__.py", "mine/net.py", "single.py", "weights/tiny-0.safetensors"}


@pytest.mark.parametrize("path", ["nowhere", "notes.txt"])
def test_what_is_no_module(tmp_path: Path, path: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=f"{path}': neither a .py file nor the folder of a package"):
        packed(tmp_path, modules=[tmp_path / path])


def test_a_variable_is_forwarded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert packed(tmp_path).environment == {}
    shipment = packed(tmp_path, environment=["AWS_ENDPOINT_URL"])
    assert shipment.environment == {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_SECRET_ACCESS_KEY", "hidden-value", "looks like a secret"),
        ("AWS_ACCESS_KEY_ID", "hidden-value", "looks like a secret"),
        ("AWS_SESSION_TOKEN", "hidden-value", "looks like a secret"),
        ("HF_TOKEN", "hidden-value", "looks like a secret"),
        ("DB_PASSWORD", "hidden-value", "looks like a secret"),
        ("HTTPS_PROXY", "http://user:hidden-value@proxy:3128", "its URL holds a password"),
        ("NISYNTH_NEVER_SET", None, "is not set here"),
    ],
)
def test_what_is_not_forwarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, message: str
) -> None:
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message) as caught:
        packed(tmp_path, environment=[name])
    assert name in str(caught.value)
    assert "hidden-value" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_no_run_without_a_teacher_is_packed(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"nowhere\.safetensors"):
        pack(
            tiny_config(tmp_path, teacher={"weights": str(tmp_path / "nowhere.safetensors")}),
            "s3://bucket/run",
        )


def test_a_store_that_no_other_process_sees(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lives in one process; a job needs s3:"):
        packed(tmp_path, store="memory://run")


def test_a_relative_folder_is_named_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert pack(config, "runs/here").store_url == str(tmp_path / "runs/here")
