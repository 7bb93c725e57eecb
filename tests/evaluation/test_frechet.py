"""Literal values on which torch-fidelity, torchmetrics and scipy agree, and what must hold of any set."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nisynth.evaluation.frechet import Gaussian, diagonal_frechet_distance, frechet_distance

Array = npt.NDArray[np.float64]

LITERALS: list[tuple[Any, Any, Any, Any, float]] = [
    ([1, 2], [[2, 1], [1, 3]], [1, 2], [[2, 1], [1, 3]], 0.0),
    ([0, 0], np.eye(2), [3, 4], np.eye(2), 25.0),
    ([0, 0, 0], np.eye(3), [0, 0, 0], 4 * np.eye(3), 3.0),
    ([1, -2], np.diag([1, 4]), [0, 0], np.diag([9, 16]), 13.0),
    ([0, 0], [[2, 1], [1, 2]], [0, 0], np.diag([1, 3]), 0.516685226452),
    ([0, 0], np.diag([1, 0]), [0, 0], np.diag([0, 1]), 2.0),
    ([0, 0], [[0.5, 0.5], [0.5, 0.5]], [0, 0], np.eye(2), 1.0),
]


def cloud(count: int, width: int, seed: int, shift: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + shift


def distance(x: Any, y: Any) -> float:
    return frechet_distance(Gaussian.of(x), Gaussian.of(y)).distance


@pytest.mark.parametrize(("mean_x", "cov_x", "mean_y", "cov_y", "expected"), LITERALS)
def test_literals(mean_x: Any, cov_x: Any, mean_y: Any, cov_y: Any, expected: float) -> None:
    found = frechet_distance(Gaussian.of_moments(mean_x, cov_x), Gaussian.of_moments(mean_y, cov_y))
    assert found.distance == pytest.approx(expected, abs=1e-12)
    assert found.mean_term == float(np.square(np.subtract(mean_x, mean_y)).sum())


@pytest.mark.parametrize(("n", "m"), [(300, 200), (300, 20), (15, 300), (10, 20)])
def test_every_rank_gives_what_the_definition_says(n: int, m: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = cloud(n, 30, 0), cloud(m, 30, 1, shift=0.3)
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # sqrt(Sx) Sy sqrt(Sx) is symmetric, so that its eigenvalues are what they should be at any rank
    root = linalg.sqrtm(covariances[0] + 1e-13 * np.eye(30)).real
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0.0)).sum()
    difference = x.mean(axis=0) - y.mean(axis=0)
    expected = difference @ difference + sum(map(np.trace, covariances)) - 2.0 * cross
    assert distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_torchmetrics_says_the_same_at_full_rank() -> None:
    image = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    x, y = cloud(400, 12, 0), cloud(300, 12, 1, shift=0.5)
    metric = image.FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2), normalize=False)
    metric.set_dtype(torch.float64)
    for part, real in ((x, True), (y, False)):
        metric.update(torch.from_numpy(part).view(-1, 3, 2, 2), real=real)
    assert distance(x, y) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_symmetric_and_blind_to_a_common_rotation() -> None:
    x, y = cloud(50, 8, 0), cloud(6, 8, 1)
    rotation = np.linalg.qr(cloud(8, 8, 2))[0]
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-12)
    assert distance(x @ rotation, y @ rotation) == pytest.approx(distance(x, y), rel=1e-10)


def test_a_collapsed_set_has_a_distance() -> None:
    x, y = cloud(100, 8, 0), np.ones((100, 8))
    expected = np.trace(np.cov(x, rowvar=False)) + np.square(x.mean(axis=0) - 1.0).sum()
    assert distance(x, y) == pytest.approx(expected)


def test_rows_beyond_a_chunk_count() -> None:
    x = cloud(9000, 3, 0)
    found = Gaussian.of(x.astype(np.float32))
    assert found.mean == pytest.approx(x.mean(axis=0), abs=1e-6)
    assert found.root.T @ found.root == pytest.approx(np.cov(x, rowvar=False), rel=1e-5)


def test_the_diagonal_distance_is_the_whole_one_without_correlations() -> None:
    x, y = cloud(50, 4, 0), cloud(40, 4, 1)
    moments = [(part.mean(axis=0), np.diag(part.var(axis=0, ddof=1))) for part in (x, y)]
    expected = frechet_distance(Gaussian.of_moments(*moments[0]), Gaussian.of_moments(*moments[1]))
    assert diagonal_frechet_distance(x, y) == pytest.approx(expected.distance)


@pytest.mark.parametrize("measure", [distance, diagonal_frechet_distance])
def test_one_image_has_no_distance(measure: Any) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        measure(np.ones((1, 3)), np.ones((5, 3)))
