"""One small batch says whether a run of a config is on its way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from nisynth.in_memory import probe
from nisynth.synthesis.deepinversion.config import DeepInversionConfig
from nisynth.synthesis.diagnosis import progress_made
from tests.command_line import nisynth
from tests.tiny import tiny_config


def test_a_config_whose_images_are_recognised_is_on_its_way(tmp_path: Path) -> None:
    """The smoke config takes the teacher's word for anything: its gate is 0."""
    sheet = tmp_path / "sheet.png"
    found = nisynth("probe", "smoke_cpu", "--json", "-q", "--output", str(sheet))
    assert (found.returncode, found.stderr) == (0, "")
    document = json.loads(found.stdout)
    assert (document["on_its_way"], document["iterations"], document["planned_iterations"]) == (True, 4, 4)
    assert document["pictures"] == [str(sheet), str(tmp_path / "sheet-curve.png")]
    for picture in document["pictures"]:
        Image.open(picture).verify()


def test_what_is_not_on_its_way_says_what_to_change_and_ends_with_4(tmp_path: Path) -> None:
    changes = ["--set", "execution.quality_gate=1", "--set", "method.iterations=40"]
    found = nisynth("probe", "smoke_cpu", "-o", str(tmp_path / "p.png"), "--seconds", "1", *changes)
    assert found.returncode == 4
    assert "of 40 iterations at" in found.stderr
    assert found.stdout.startswith("not on its way: the teacher recognises ")
    assert "raise method.iterations" in found.stdout
    assert "pictures:" in found.stdout


def test_each_stage_of_a_method_is_shortened_alike(tmp_path: Path) -> None:
    method = DeepInversionConfig(iterations=3000, half_size_iterations=1500)
    said: list[str] = []
    found = probe(replace(tiny_config(tmp_path), method=method), 0.001, say=said.append)
    assert (found.iterations, found.planned) == (20, 3000)
    assert said[0].startswith("4 images, 20 of 3,000 iterations at ")
    assert found.on_its_way  # the tiny config's gate is 0 as well
    assert len(found.labels) == 4


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([2.5, 2.2, 2.1, 1.9, 1.6, 1.2], "cross-entropy still falls: 2.50 -> 1.40 (guessing: 2.30)"),
        ([2.5, 2.2, 1.6, 1.6, 1.6, 1.6], None),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], None),
        ([2.5, 1.0], None),
        ([], None),
    ],
)
def test_losses_that_still_fall_are_progress(losses: list[float], told: str | None) -> None:
    curve = [{"iteration": float(i), "ce": ce} for i, ce in enumerate(losses)]
    assert progress_made(curve, 10) == told
