"""Maps: reproducible, of equally many images, with the figure that a map itself is not."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nisynth.commits import Run
from nisynth.evaluation.embedding import embed
from nisynth.evaluation.networks import EmbeddingNetwork
from nisynth.evaluation.tsne import map_layers, two_sample_accuracy
from nisynth.report.maps import draw_maps, draw_small_map, points_csv
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.evaluation.conftest import CLASSES, images
from tests.report.pages import real_folder
from tests.tiny import commit_all, tiny_plan


@pytest.fixture(autouse=True)
def libraries() -> None:
    pytest.importorskip("openTSNE")
    pytest.importorskip("sklearn")


def test_a_map_is_the_same_twice(network: EmbeddingNetwork) -> None:
    synthetic, real = embed(images(30), network), embed(images(50, seed=1), network)
    first, again = (map_layers(synthetic, real, ["tap1", "pool"], 20)[1] for _ in range(2))
    assert (first.layer, first.num_each, first.positions.shape) == ("pool", 20, (40, 2))
    assert np.array_equal(first.positions, again.positions)
    assert 0.0 <= first.accuracy <= 1.0
    with pytest.raises(ValueError, match="needs at least 10"):
        map_layers(embed(images(9), network), real, ["pool"], 20)


def test_two_sets_are_told_apart_as_far_as_they_differ() -> None:
    rng = np.random.default_rng(0)
    alike = rng.standard_normal((400, 4))
    assert two_sample_accuracy(alike) == pytest.approx(0.5, abs=0.08)
    assert two_sample_accuracy(np.concatenate([alike[:200], alike[200:] + 20.0])) == 1.0


def test_pictures_and_points(network: EmbeddingNetwork) -> None:
    maps = map_layers(embed(images(30), network), embed(images(50, seed=1), network), ["tap1", "pool"], 20)
    with Image.open(io.BytesIO(draw_maps(maps, CLASSES, "title"))) as picture:
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert len(draw_small_map(maps[0], CLASSES)) < 150_000
    rows = list(csv.DictReader(io.StringIO(points_csv(maps).decode())))
    assert len(rows) == 80
    assert {(row["set"], row["layer"]) for row in rows} == {
        (name, layer) for name in ("synthetic", "real") for layer in ("tap1", "pool")
    }


def test_the_commands_draw_and_compare(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    url = str(tmp_path / "run")
    commit_all(Run.join(open_store(url), plan))
    real = real_folder(tmp_path / "real", plan.classes)
    drawn = nisynth(
        "tsne", url, "--real", real, "-o", tmp_path / "map.png", "--points", 12, "--allow-partial"
    )
    assert drawn.returncode == 0, drawn.stderr
    assert "pool 0." in drawn.stdout
    assert (tmp_path / "map.csv").read_text().startswith("set,label,x,y,layer\n")
    unlogged = nisynth("compare", url, url, "-o", tmp_path / "compare.png")
    assert unlogged.returncode == 2
    assert "no run logged ce or r_bn" in unlogged.stderr
