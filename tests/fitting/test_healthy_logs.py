"""Fits of minutes on a CPU move as a healthy log does; the bounds leave room around what was measured."""

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nisynth.fitting import fit, load_fit_config
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow
RESNET20 = {"arch": "resnet20"}


def curve(output: Path, teacher: dict[str, Any], method: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Returns each loss term of a fit, iteration by iteration."""
    values = {"teacher": teacher, "method": method, "output": str(output), "log_every": 1, **options}
    points = fit(load_fit_config(values)).curve
    return {name: [point[name] for point in points] for name in points[0]}


def test_dafl_spreads_its_images_over_the_classes(tmp_path: Path) -> None:
    """Of log10, -1 is balanced; a collapse ends near 0. Measured: -.46 to -.80, entropy .39 to .8."""
    method = {"name": "dafl", "student": RESNET20, "latent_dim": 100, "iterations": 25}
    terms = curve(tmp_path, RESNET20, method, batch_size=64)
    assert terms["balance"][-1] < -0.65
    assert max(terms["balance"]) < -0.3
    assert mean(terms["class_balance"][-5:]) > terms["class_balance"][0] + 0.2


@pytest.mark.parametrize("seed", [0, 1])
def test_dfads_discrepancy_goes_up_and_then_down(seed: int, tmp_path: Path) -> None:
    """A generator quicker than its student finds where both differ; then the student learns it there."""
    method = {
        **{"name": "dfad", "student": {"arch": "tests.tiny:TinyNet"}, "latent_dim": 16, "iterations": 120},
        **{"student_steps": 1, "lr_student": 3e-4, "schedule": "constant"},
    }
    teacher = tiny_config(tmp_path).to_dict()["teacher"]
    terms = curve(tmp_path / "fit", teacher, method, batch_size=16, seed=seed)
    discrepancy = [-value for value in terms["total"]]
    highest = max(discrepancy)
    assert highest > 1.03 * discrepancy[0]
    assert mean(discrepancy[-5:]) < 0.9 * highest


def test_dfads_generator_finds_where_an_idle_student_differs(tmp_path: Path) -> None:
    """Against ResNet-20; measured: 2.6 at first, 4.3 after 12 steps of the generator."""
    method = {"name": "dfad", "student": RESNET20, "latent_dim": 16, "iterations": 12, "lr_student": 1e-6}
    terms = curve(tmp_path, RESNET20, {**method, "student_steps": 1}, batch_size=16)
    assert -mean(terms["total"][-3:]) > -1.3 * terms["total"][0]


def test_wgan_gps_distance_goes_up_and_then_down(tmp_path: Path) -> None:
    """The critic learns first, then the generator. Measured: 2.4, 46 at iteration 6, 17 to 27 from 24 on."""
    rng, ramp = np.random.default_rng(0), np.linspace(0.5, 1, 32)
    for label in range(10):
        (tmp_path / "real" / str(label)).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 255, 3) * ramp[:, None, None] * np.ones((32, 32, 1))
            Image.fromarray(pixels.astype("uint8")).save(tmp_path / "real" / str(label) / f"{number}.png")
    method = {
        **{"name": "wgan_gp", "preset": "dcgan", "width": 8, "latent_dim": 16, "iterations": 40, "lr": 1e-3},
        "data": str(tmp_path / "real"),
    }
    terms = curve(tmp_path / "fit", RESNET20, method, batch_size=16)
    distance, penalty = terms["distance"], terms["penalty"]
    highest = max(distance)
    assert highest > 5 * distance[0]
    assert distance.index(highest) < 20
    assert 0 < mean(distance[-5:]) < 0.75 * highest
    assert mean(penalty[-5:]) < max(penalty) < 3  # a slope of the critic near 1, after it was larger
