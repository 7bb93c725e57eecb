"""What is said of a set as a whole: at equal numbers of images, with floors, and with what misleads."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.measure import Measurement

from nisynth.cli import quality as tables
from nisynth.commits import Run
from nisynth.evaluation import figures
from nisynth.evaluation.embedding import ImageSet
from nisynth.evaluation.figures import Samples
from nisynth.evaluation.networks import EmbeddingNetwork
from nisynth.evaluation.pixels import measure_pixels
from nisynth.evaluation.quality import Quality, how_to_read, measure_quality
from nisynth.images import LabelledImages
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.evaluation.conftest import CLASSES, images
from tests.tiny import commit_all, tiny_plan

FAST = tuple(metric for metric in figures.METRICS if metric.measure.__name__ in ("_frechet", "_manifolds"))


def measure(synthetic: ImageSet, network: EmbeddingNetwork, **more: Any) -> Quality:
    """Returns a set's quality without KID and clusterings, which take seconds whatever the set."""
    return measure_quality(synthetic, network, metrics=FAST, **more)


def test_both_sides_of_a_figure_have_equally_many_images() -> None:
    samples = Samples.draw(np.zeros(30, dtype=np.int64), np.zeros(200, dtype=np.int64), seed=0)
    assert len(samples.reference) == 100
    assert [len(samples.generated), *map(len, samples.floors)] == [30, 30, 30, 30]
    used = np.concatenate([samples.reference, *samples.floors])
    assert len(set(used.tolist())) == len(used)  # the reference and the floors share no image
    large = Samples.draw(np.zeros(10**5, dtype=np.int64), np.zeros(200, dtype=np.int64), seed=0, most=50)
    assert [len(large.generated), len(large.reference), *map(len, large.floors)] == [50, 50, 50, 50]


def test_every_part_holds_the_classes_evenly() -> None:
    real = np.repeat(np.arange(5), [20, 40, 20, 20, 20])
    samples = Samples.draw(np.arange(500) % 5, real, seed=1)
    assert np.bincount(real[samples.reference]).tolist() == [10, 20, 10, 10, 10]
    few = Samples.draw(np.repeat(np.arange(5), 100)[:10], real, seed=1)
    for part in few.floors:
        assert np.bincount(real[part]).tolist() == [2, 2, 2, 2, 2]


def test_real_images_are_at_their_floor(network: EmbeddingNetwork) -> None:
    found = measure(images(100, seed=1), network, real=images(200))
    fd, coverage = found.figure("fd"), found.figure("coverage", k=3)
    assert fd is not None
    assert coverage is not None
    assert fd.floor == pytest.approx(fd.value, rel=0.7)
    assert coverage.floor == pytest.approx(coverage.value, abs=0.15)
    assert (fd.n_generated, fd.n_real) == (100, 100)
    assert found.figure("fd_all_images") is not None
    assert [note for note in found.notes if "times its floor" in note] == []
    assert found.copies.exact == 0


def test_a_collapsed_set_is_called_far_from_the_real_ones(network: EmbeddingNetwork) -> None:
    collapsed = images(100, seed=1, low=250, high=253)
    found = measure(collapsed, network, real=images(200))
    text = " ".join(found.notes)
    assert "precision alone misleads" in text
    assert "times its floor: these images are far from the real ones" in text
    assert "coverage is 0.000" in text
    assert found.copies.near_share == 1.0


def test_a_floor_below_zero_is_explained() -> None:
    kid = figures.Figure("kid_x1000", "pool", 36.8, 128, 5000, floor=-14.3)
    assert any("KID may be below 0" in note for note in how_to_read((kid,)))
    assert not any("KID" in note for note in how_to_read((dataclasses.replace(kid, floor=-0.1),)))


def test_without_a_real_set_there_is_still_something_to_say(network: EmbeddingNetwork) -> None:
    found = measure(images(20), network)
    assert found.figures == ()
    assert found.real_pixels is None
    assert found.closest == ()
    assert [row.n for row in found.classes] == [5, 5, 5, 5]
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_who_recognises_the_labels(network: EmbeddingNetwork) -> None:
    alone = measure(images(20), network, teacher_sha256=network.sha256)
    assert not alone.independent
    assert list(alone.recognition) == ["teacher"]
    assert alone.agreement is None
    other = dataclasses.replace(network, name="other", sha256="0" * 64)
    both = measure(images(20), network, teacher=other, teacher_sha256=other.sha256)
    assert list(both.recognition) == ["independent", "teacher"]
    assert both.agreement == 1.0
    assert both.classes[0].teacher_accuracy == both.classes[0].independent_accuracy
    foreign = dataclasses.replace(network, classes=("a", "b", "c", "d"))
    assert measure(images(20), foreign).recognition == {}


def test_a_copied_real_image_is_found(network: EmbeddingNetwork) -> None:
    real = images(40)
    rng = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=rng)
    pixels[7] = next(real.batches())[0][11]
    pixels[9] = pixels[8]
    synthetic = ImageSet.of_real(LabelledImages(pixels, torch.arange(30) % 4, CLASSES, "copy", "test"))
    found = measure(synthetic, network, real=real)
    assert (found.closest[0].synthetic, found.closest[0].real) == (7, 11)
    assert (found.closest[0].ratio, found.closest[0].pixel_distance) == (pytest.approx(0.0, abs=1e-3), 0.0)
    assert found.closest[1].pixel_distance > 50
    assert found.copies.exact == 1


def test_pixel_statistics() -> None:
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    pixels[:, 1] = 255
    pixels[:, 2] = torch.arange(4, dtype=torch.uint8) * 10
    found = measure_pixels(
        ImageSet.of_real(LabelledImages(pixels, torch.zeros(2).long(), (), "memory", "test"))
    )
    assert found.mean == (0.0, 255.0, 15.0)
    assert found.std == (0.0, 0.0, pytest.approx(125**0.5))
    assert found.saturated == (1.0, 1.0, 0.25)
    assert found.total_variation == pytest.approx(10 / 3 / 2)
    assert found.duplicates == 1


def test_what_a_metric_cannot_measure_is_said(network: EmbeddingNetwork) -> None:
    found = measure(images(8), network, real=images(8, seed=1))
    assert any(note.startswith("not measured: manifolds, which needs 6 images") for note in found.notes)


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    worst = {"n_generated": 10_000, "n_real": 10_000, "k": None, "floor": 0.0012345, "floor_std": 0.00012}
    names = ("nearest_real", "fd_all_images", "precision")
    figures = [SimpleNamespace(name=name, layer="logits", value=12345.6, **worst) for name in names]
    rates = {"teacher_accuracy": 1.0, "independent_accuracy": 1.0, "n": 10_000}
    compared = {
        "fd_diagonal": 1.234e-5,
        "fd_diagonal_floor": 1.2e-5,
        "coverage": 0.123,
        "coverage_floor": 0.9,
    }
    classes = (SimpleNamespace(name="a class with a name that is long", **rates, **compared),)
    found = SimpleNamespace(figures=figures, classes=classes, real="set")
    wide = Console(width=500)
    for table in (tables._figures(found), tables._classes(found)):
        assert Measurement.get(wide, wide.options, table).maximum <= 80


def test_the_command_prints_figures_and_json(tmp_path: Path) -> None:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))
    commit_all(run)
    shown = nisynth("quality", str(tmp_path / "run"), "--allow-partial")
    assert shown.returncode == 0
    assert "16 images" in shown.stdout
    assert "resnet20 (ships with nisynth)" in shown.stdout
    document = json.loads(nisynth("quality", str(tmp_path / "run"), "--allow-partial", "--json").stdout)
    assert document["num_images"] == 16
    assert document["independent"] is True
