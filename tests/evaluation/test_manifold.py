"""Literal clouds on a line; torch-fidelity and prdc, whose signs at a tie differ, give the same values."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch

from nisynth.evaluation import manifold
from nisynth.evaluation.manifold import Manifold, compare_manifolds, near_duplicates, nearest_neighbours

REAL = [0.0, 1.0, 2.0, 3.0]
LITERALS = [
    ([0, 1, 2, 3], 1, Manifold(1, 1, 1, 1)),
    ([0.5, 1.5, 2.5, 10], 1, Manifold(0.75, 1, 1.5, 1)),
    ([100, 101, 102, 103], 1, Manifold(0, 0, 0, 0)),
    ([0, 0.1, 0.2, 0.3], 1, Manifold(1, 0.25, 1.75, 0.5)),
    ([0.2, 1.2, 50, 51], 1, Manifold(0.5, 0.75, 1.0, 0.75)),
    ([0.2, 1.2, 50, 51], 2, Manifold(0.5, 1, 0.75, 1)),
    ([1, 1, 1, 1], 1, Manifold(1, 0.25, 1, 0.25)),
]


def line(values: Any) -> Any:
    return np.array(values, dtype=np.float64)[:, None]


@pytest.mark.parametrize(("generated", "k", "expected"), LITERALS)
def test_literals(generated: list[float], k: int, expected: Manifold) -> None:
    assert compare_manifolds(line(generated), line(REAL), [k]) == {k: expected}


@pytest.mark.parametrize(("generated", "k"), [(row[0], row[1]) for row in LITERALS])
def test_torch_fidelity_gives_these_precisions_and_recalls(generated: list[float], k: int) -> None:
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    theirs = metric.prc_features_to_metric(
        torch.from_numpy(line(generated)),
        torch.from_numpy(line(REAL)),
        prc_neighborhood=k,
        prc_batch_size=10000,
        save_cpu_ram=False,
        verbose=False,
    )
    ours = compare_manifolds(line(generated), line(REAL), [k])[k]
    assert (ours.precision, ours.recall) == (theirs["precision"], theirs["recall"])


def test_prdc_gives_these_densities_and_coverages(monkeypatch: pytest.MonkeyPatch) -> None:
    prdc = pytest.importorskip("prdc")
    rng = np.random.default_rng(0)
    generated, real = rng.standard_normal((60, 3)) + 0.5, rng.standard_normal((50, 3))
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = prdc.compute_prdc(real, generated, nearest_k=3)
    monkeypatch.setattr(manifold, "ROWS_AT_ONCE", 7)  # chunks change nothing
    ours = compare_manifolds(generated, real, [5, 3])[3]
    assert ours == Manifold(**{name: pytest.approx(value) for name, value in theirs.items()})


def test_precision_one_way_is_recall_the_other_and_order_counts_for_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((400, 4)), rng.standard_normal((300, 4)) + 0.5
    there, back = compare_manifolds(a, b, [3])[3], compare_manifolds(b, a, [3])[3]
    assert (there.precision, there.recall) == (back.recall, back.precision)
    assert compare_manifolds(a[rng.permutation(400)], b[rng.permutation(300)], [3])[3] == there


def test_two_samples_of_one_distribution_have_density_one() -> None:
    rng = np.random.default_rng(0)
    found = compare_manifolds(rng.standard_normal((2000, 4)), rng.standard_normal((2000, 4)), [5])[5]
    assert found.density == pytest.approx(1.0, abs=0.05)


def test_features_far_from_the_origin_keep_their_distances() -> None:
    rng = np.random.default_rng(0)
    a, b = 0.05 * rng.standard_normal((200, 32)), 0.05 * rng.standard_normal((200, 32))
    assert compare_manifolds(a + 100.0, b + 100.0, [3]) == compare_manifolds(a, b, [3])


def test_a_set_smaller_than_its_neighbourhoods_is_refused() -> None:
    with pytest.raises(ValueError, match="k=3 needs more than 3 points in each set, not 3"):
        compare_manifolds(line([1, 2, 3]), line(REAL), [3])


def test_nearest_neighbours_come_nearest_first() -> None:
    distances, positions = nearest_neighbours(line([0.9, 2.6]), line(REAL), 2)
    assert positions.tolist() == [[1, 0], [3, 2]]
    assert distances == pytest.approx(np.array([[0.1, 0.9], [0.4, 0.6]]))


def test_near_duplicates_join_along_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "ROWS_AT_ONCE", 2)
    angles = np.radians([0.0, 90.0, 5.0, 10.0, 180.0, 90.0])  # cos 5 degrees is 0.996, cos 10 degrees 0.985
    found = near_duplicates(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert (found.near, found.clusters) == (5, 3)
