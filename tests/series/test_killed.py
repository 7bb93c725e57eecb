"""kill -9 of the conductor at every seam, and two conductors at once: the series of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import nisynth
from nisynth.cli import execute
from nisynth.consumers import distill
from tests.series.recipes import SIZES, recipe, what_counts

REPO = Path(__file__).resolve().parents[2]
HASH = "[0-9a-f]{64}"
SEAMS: dict[str, dict[str, Any]] = {
    "begun": {"key": "series.json"},
    "mid-round": {"key": "rounds/0000/commits/.*-00000001.json"},
    "round-not-sealed": {"key": "rounds/0000/_SUCCESS", "after": False},
    "round-sealed": {"key": "rounds/0000/_SUCCESS"},
    "mid-training": {"key": "rivals/0001/checkpoint.safetensors"},
    "student-without-result": {"key": "rivals/0001/student.safetensors"},
    "result-without-rival": {"key": "rivals/0001/result.json"},
    "rival-without-round": {"key": f"rivals/0001/{HASH}.safetensors"},
    "round-begun": {"key": "rounds/0001/plan.json"},
    "second-training": {"key": "rivals/0002/result.json", "after": False},
    "not-sealed": {"key": "_SUCCESS", "after": False},
}
DONE = [-signal.SIGKILL, 0]
Ended = tuple[Path, dict[str, list[int]]]
"""Where the series are, by seam, and how their two conductors ended."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete series, and its recipe beside it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    nisynth.adapt(recipe(folder), str(folder / "series"))
    (folder / "recipe.json").write_text(json.dumps(recipe(folder)))
    return folder


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=REPO,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def killed(undisturbed: Path, folder: Path, seams: dict[str, dict[str, Any]]) -> dict[str, list[int]]:
    """Returns how the conductors of each seam ended, the killed one and the next, at `folder`/<seam>."""
    words = [str(undisturbed / "recipe.json"), str(folder), json.dumps(seams)]
    out, err = start("-m", "tests.series.killed", *words).communicate(timeout=1800)
    ended = {name: codes for name, *codes in map(json.loads, out.splitlines())}
    assert len(ended) == len(seams), err
    return ended


@pytest.fixture(scope="module")
def at_the_seams(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("killed")
    return folder, killed(undisturbed, folder, SEAMS)


@pytest.mark.parametrize("seam", SEAMS)
def test_killed_at_a_seam_and_run_again_it_is_the_same_series(
    undisturbed: Path, at_the_seams: Ended, seam: str
) -> None:
    folder, ended = at_the_seams
    assert ended[seam] == DONE
    assert what_counts(str(folder / seam)) == what_counts(str(undisturbed / "series"))
    assert execute(["verify", str(folder / seam), "--deep", "--complete", "-q"]) == 0


@pytest.mark.slow
def test_killed_before_each_write_and_run_again_it_is_the_same_series(
    undisturbed: Path, tmp_path: Path
) -> None:
    """One conductor for every write that a series takes, until one is not killed any more."""
    before, number = what_counts(str(undisturbed / "series")), 0
    while True:
        seams = {str(n): {"number": n, "after": False} for n in range(number, number + 10)}
        ended = killed(undisturbed, tmp_path, seams)
        for name, codes in ended.items():
            assert codes in (DONE, [0, 0]), name
            assert what_counts(str(tmp_path / name)) == before, name
        if [0, 0] in ended.values():
            break
        number += 10
    assert number >= 40


def test_two_conductors_at_once_make_one_series(undisturbed: Path, tmp_path: Path) -> None:
    config = tmp_path / "recipe.json"
    config.write_text((undisturbed / "recipe.json").read_text())
    url = str(tmp_path / "series")
    words = ["-m", "nisynth", "adapt", str(config), "--store", url, "--json"]
    processes = [start(*words), start(*words)]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda process: process.communicate(timeout=300), processes))
    assert [process.returncode for process in processes] == [0, 0], said
    reports = [json.loads(out) for out, _ in said]
    assert sum(report["executed"] for report in reports) == sum(SIZES)
    assert reports[0]["rivals"] == reports[1]["rivals"]
    assert what_counts(url) == what_counts(str(undisturbed / "series"))
    assert execute(["verify", url, "--deep", "--complete", "-q"]) == 0


def test_a_student_of_other_last_bits_than_the_first_conductors_is_not_taken(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU may train another student each time: whoever begins the round says which one counts."""
    from nisynth.series import conductor

    url, values = str(tmp_path / "series"), recipe(tmp_path)
    rival = {"of": ""}

    def another_was_quicker(config: Any, **options: Any) -> Any:
        if not rival["of"] and config.rounds == 1:
            rival["of"] = "the other"
            report = nisynth.adapt(values, url)
            rival["of"] = report.rivals[0]
            _change(Path(url) / "rivals/0001/student.safetensors")
            return None
        return distill.distill(config, **options)

    monkeypatch.setattr(conductor, "distill", another_was_quicker)
    report = nisynth.adapt(values, url)
    assert report.executed == SIZES[0]
    assert report.rivals[0] == rival["of"]
    copies = Path(url, "rivals/0001")
    assert len(list(copies.glob("?" * 64 + ".safetensors"))) == 2
    assert execute(["gc", url]) == 0
    assert [path.stem for path in copies.glob("?" * 64 + ".safetensors")] == [rival["of"]]
    assert execute(["verify", url, "--deep", "--complete", "-q"]) == 0


def _change(path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["linear.bias"] = tensors["linear.bias"] + 1e-6
    save_file(tensors, path, metadata)
