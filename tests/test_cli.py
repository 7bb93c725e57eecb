"""The command line as its users meet it: every verb, and one clear line for everything they can get wrong."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from nisynth.cli.verbs import VERBS, Verb
from nisynth.commits import Run
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.tiny import TinyNet, keys, tiny_config

REPO = Path(__file__).resolve().parents[1]
NISYNTH = [sys.executable, "-c", "from nisynth.cli import main; main()"]


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def test_the_installed_command_exits_with_the_code(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    result = subprocess.run(
        [*NISYNTH, "status", str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    says(result, 2, "no run there")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path).to_dict()))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run; tests that damage it take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(folder).to_dict()))
    done = nisynth("run", folder / "tiny.yaml", "--store", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def says(result: subprocess.CompletedProcess[str], exit_code: int, *parts: str) -> None:
    """Checks for the exit code, one line of error that holds the parts, and no traceback."""
    assert result.returncode == exit_code, (result.returncode, result.stdout, result.stderr)
    errors = [line for line in result.stderr.splitlines() if line.startswith("nisynth: error: ")]
    assert len(errors) == 1, result.stderr
    for part in parts:
        assert part in errors[0]
    assert "Traceback" not in result.stderr


def test_the_main_path(finished: Path, tmp_path: Path) -> None:
    status = json.loads(nisynth("status", finished, "--json").stdout)
    assert {k: status[k] for k in ("planned", "committed", "quarantined", "images", "complete", "eta_s")} == {
        "planned": 4,
        "committed": 4,
        "quarantined": 0,
        "images": 16,
        "complete": True,
        "eta_s": 0.0,
    }
    verified = nisynth("verify", finished, "--deep", "--json")
    assert (verified.returncode, json.loads(verified.stdout)) == (
        0,
        {"ok": True, "planned": 4, "checked": 4, "complete": True, "problems": []},
    )
    sheet = tmp_path / "sheet.png"
    assert "16 images" in nisynth("preview", finished, "-o", sheet).stdout
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_runs_nothing(finished: Path, tmp_path: Path) -> None:
    before = {key: open_store(str(finished)).get(key) for key in keys(open_store(str(finished)))}
    again = nisynth("run", finished.parent / "tiny.yaml", "--store", finished)
    assert again.returncode == 0
    assert "0 tasks run now" in again.stdout
    assert {key: open_store(str(finished)).get(key) for key in keys(open_store(str(finished)))} == before


def test_plan_needs_no_store_and_tells_what_is_committed(config: Path, finished: Path) -> None:
    document = json.loads(nisynth("plan", config, "--json").stdout)
    assert (document["tasks"], document["images"]) == (4, 16)
    assert len(document["fingerprint"]) == 64
    told = json.loads(nisynth("plan", finished.parent / "tiny.yaml", "--store", finished, "--json").stdout)
    assert told["committed"] == 4


class Talkative(TinyNet):
    """Prints in every pass, is not deterministic, and normalizes once by a function."""

    def forward(self, x: Tensor) -> Tensor:
        print("forward")
        x = F.batch_norm(x, torch.zeros(3), torch.ones(3)) + 0.1 * torch.rand_like(x)
        return super().forward(x)


def test_plan_says_what_was_understood_of_the_teacher(config: Path) -> None:
    told = nisynth("plan", config)
    for words in ("16x16 px", "4 (0, 1, 2, ...)", "stem 8x16², down 12x8²", "2 of 2"):
        assert words in told.stdout
    odd = ["--set", f"teacher.arch={__name__}:Talkative"]
    told = nisynth("plan", config, *odd)
    assert "2 of 3" in told.stdout
    assert "note: R_BN matches 2 of 3 BatchNorms" in told.stderr
    assert "note: forward is not deterministic" in told.stderr
    document = json.loads(nisynth("plan", config, *odd, "--json").stdout)
    assert document["teacher"]["taps"] == "stem 8x16², down 12x8²"
    assert len(document["teacher"]["notes"]) == 2


def test_plan_says_that_another_configs_run_lies_at_the_url(finished: Path, tmp_path: Path) -> None:
    asked = ["plan", finished.parent / "tiny.yaml", "--set", "run.seed=5", "--store"]
    says(
        nisynth(*asked, finished), 2, f"{finished}: holds a run of another config: run.seed: 0 there, 5 here."
    )
    told = nisynth(*asked, tmp_path / "new", "--json")
    assert (told.returncode, json.loads(told.stdout)["committed"]) == (0, 0)
    assert not (tmp_path / "new").exists()


def test_methods_lists_the_table() -> None:
    listed = nisynth("methods").stdout
    assert "naturalinversion" in listed
    assert "cifar10_paper" in listed
    assert "Adaptive DeepInversion" in " ".join(listed.split())


def test_teachers_lists_the_registry() -> None:
    listed = nisynth("teachers").stdout
    for name in ("resnet18", "resnet20", "resnet34", "resnet56", "vgg11", "vgg16", "mobilenetv2"):
        assert name in listed


def test_help_of_every_verb_teaches() -> None:
    for name, home in VERBS.items():
        command = Verb(name, home).load()
        assert command.help, name
        assert command.help == Verb(name, home).help
        assert command.params or name in ("config", "methods", "teachers"), name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def test_a_size_that_is_no_multiple_of_the_batch_is_told(config: Path, tmp_path: Path) -> None:
    result = nisynth("run", config, "--store", tmp_path / "run", "--set", "run.num_images=14")
    assert result.returncode == 0
    assert "run.num_images 14 is not a multiple of run.batch_size 4" in result.stderr
    assert "the last task synthesizes a full batch and keeps 2" in result.stderr
    assert "14 images" in result.stdout


def test_retry_redo_gc(copy: Path, finished: Path) -> None:
    assert "no task is quarantined" in nisynth("retry", copy).stdout
    (copy / ".tmp" / str(uuid4())).write_bytes(b"half a shard")
    assert "0 losing shards deleted, and 1 file that killed writers left" in nisynth("gc", copy).stdout
    assert "1 commit removed (2)" in nisynth("redo", copy, "--task", "2").stdout
    done = nisynth("run", finished.parent / "tiny.yaml", "--store", copy)
    assert done.returncode == 0
    assert "1 task run now" in done.stdout


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("run.num_image=4", ["run.num_image: unknown key; did you mean 'num_images'?"]),
        ("run.seed=abc", ["run.seed: 'abc': should be a valid integer"]),
        ("run.batch_size=0", ["run.batch_size: 0 is not at least 2"]),
        ("teacher.weights=/nowhere/w.safetensors", ["/nowhere/w.safetensors"]),
        ("teacher.weights=null", ["teacher.weights"]),
        ("teacher.arch=resnet43", ["teacher.arch", "resnet43", "resnet"]),
        ("teacher.arch=no.such:thing", ["teacher.arch", "no.such"]),
        ("teacher.arch=tests.tiny:Missing", ["teacher.arch", "Missing"]),
        ("teacher.arch=resnet34", ["weights"]),
        ("output.format=tar", ["output.format: 'tar'"]),
        ("engine.precision=float8", ["engine.precision: 'float8'"]),
    ],
)
def test_a_wrong_config(config: Path, tmp_path: Path, override: str, parts: list[str]) -> None:
    says(nisynth("run", config, "--store", tmp_path / "run", "--set", override), 2, *parts)
    assert not (tmp_path / "run").exists()


class Bomb:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


class NoBatchNorm(nn.Sequential):
    def __init__(self, num_classes: int = 4) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))


class NoStatistics(nn.Sequential):
    def __init__(self, num_classes: int = 4) -> None:
        norm = nn.BatchNorm2d(4, track_running_stats=False)
        super().__init__(
            nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )


def test_weights_that_cannot_be_used(config: Path, tmp_path: Path) -> None:
    run = ["run", config, "--store", tmp_path / "run", "--set"]
    html = tmp_path / "page.pth"
    html.write_text("<!DOCTYPE html><html>not found</html>")
    says(nisynth(*run, f"teacher.weights={html}"), 2, "teacher.weights", "HTML")
    bomb, crater = tmp_path / "bomb.pth", tmp_path / "crater"
    bomb.write_bytes(pickle.dumps(Bomb(crater)))
    says(nisynth(*run, f"teacher.weights={bomb}"), 2, "teacher.weights")
    torch.save({"state_dict": Bomb(crater)}, bomb)
    says(nisynth(*run, f"teacher.weights={bomb}"), 2, "teacher.weights")
    assert not crater.exists()


@pytest.mark.parametrize(
    ("network", "parts"),
    [(NoBatchNorm, ["teacher", "BatchNorm2d"]), (NoStatistics, ["teacher", "running statistics"])],
)
def test_networks_that_cannot_be_inverted(
    config: Path, tmp_path: Path, network: type[nn.Module], parts: list[str]
) -> None:
    weights = tmp_path / "other.pth"
    torch.save(network().state_dict(), weights)
    arch = f"teacher.arch=tests.test_cli:{network.__name__}"
    result = nisynth(
        "run", config, "--store", tmp_path / "run", "--set", arch, "--set", f"teacher.weights={weights}"
    )
    says(result, 2, *parts)


def test_a_changed_config_on_the_same_url(finished: Path) -> None:
    config = finished.parent / "tiny.yaml"
    result = nisynth("run", config, "--store", finished, "--set", "method.iterations=3")
    says(result, 2, "holds a run of another config", "method.iterations: 2 there, 3 here")


def test_urls_that_are_no_run(tmp_path: Path, config: Path) -> None:
    says(nisynth("status", tmp_path / "nothing"), 2, "no run there")
    says(nisynth("run", config, "--store", "ftp://host/run"), 2, "unknown scheme 'ftp'", "s3://bucket/prefix")


def test_a_corrupted_shard_is_found_redone_and_only_that(copy: Path) -> None:
    store = open_store(str(copy))
    shard = keys(store, "data/")[1]
    store.put(shard, store.get(shard)[:-7] + b"garbage")
    found = nisynth("verify", copy, "--deep", "--json")
    assert found.returncode == 1
    assert [problem["task"] for problem in json.loads(found.stdout)["problems"]] == [1]
    assert "1 commit removed (1)" in nisynth("redo", copy, "--bad").stdout
    assert Run.open(store).committed() == {0, 2, 3}


def test_a_corrupted_commit_is_found(copy: Path) -> None:
    store = open_store(str(copy))
    store.put(keys(store, "commits/")[3], b"\x00\x01")
    found = nisynth("verify", copy)
    assert found.returncode == 1
    assert "damaged JSON" in found.stdout
    assert "1 commit removed (3)" in nisynth("redo", copy, "--bad").stdout


def test_redo_asks_for_what(finished: Path) -> None:
    says(nisynth("redo", finished), 2, "--task N", "--bad")


def test_commits_missing_under_a_seal_are_refused_until_redo(finished: Path, tmp_path: Path) -> None:
    url = Path(shutil.copytree(finished, tmp_path / "sealed"))
    config = finished.parent / "tiny.yaml"
    store = open_store(str(url))
    for key in keys(store, "commits/")[:2]:
        store.delete(key)
    says(nisynth("run", config, "--store", url), 1, "2 commits are missing", "redo")
    assert nisynth("redo", url, "--bad").returncode == 0
    kept = {key: store.get(key) for key in keys(store, "commits/")}
    done = nisynth("run", config, "--store", url)
    assert done.returncode == 0
    assert "2 tasks run now" in done.stdout
    assert {key: store.get(key) for key in kept} == kept


def test_the_quality_gate_of_the_canary_stops_the_run(config: Path, tmp_path: Path) -> None:
    result = nisynth("run", config, "--store", tmp_path / "run", "--set", "execution.quality_gate=1.0")
    says(result, 4, "canary", "quality_gate")
    assert Run.open(open_store(str(tmp_path / "run"))).committed() == set()


def test_usage_errors_exit_with_2() -> None:
    says(nisynth("run", "demo"), 2, "store")
    says(nisynth("rum", "demo"), 2, "rum")
    says(nisynth("run", "demo", "--stor", "x"), 2, "--stor")


TMPFS = """
import subprocess, sys, os
size, mode, folder, *command = sys.argv[1:]
options = f"size={size}" + (",ro" if mode == "ro" else "")
subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
done = subprocess.run(command)
sys.exit(done.returncode)
"""


def on_disk(size: str, mode: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs nisynth where `folder` is a small or read-only disk of a private mount namespace."""
    folder.mkdir()
    probe = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("this machine allows no private mount namespace")
    environment = {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "200", "NO_COLOR": "1"}
    mount = ["unshare", "-m", sys.executable, "-c", TMPFS, size, mode, str(folder)]
    return subprocess.run(
        [*mount, *NISYNTH, *(str(a) for a in arguments)],
        capture_output=True,
        text=True,
        cwd=REPO,
        env=environment,
        timeout=240,
        check=False,
    )


def test_a_full_disk(config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    result = on_disk("16k", "rw", disk, "run", config, "--store", disk / "run")
    says(result, 6, "disk", "full")


def test_a_read_only_disk(config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    result = on_disk("1m", "ro", disk, "run", config, "--store", disk / "run")
    says(result, 6, "read-only")


def test_the_tiny_network_is_importable_by_name() -> None:
    assert isinstance(TinyNet(), nn.Module)


def test_a_precision_that_this_machine_lacks_leaves_the_url_free(tmp_path: Path) -> None:
    run = ("run", "demo", "--store", str(tmp_path / "run"), "--set", "engine.name=fast")
    says(nisynth(*run, "--set", "engine.precision=tf32", "--executor", "local"), 2, "engine.precision 'tf32'")
    assert not (tmp_path / "run").exists()
