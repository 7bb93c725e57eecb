"""How two sets of features lie in each other: precision, recall, density, coverage, nearest neighbours.

Precision and recall as Kynkaanniemi et al. (NeurIPS-19) define them, density and coverage as Naeem et al.
(ICML-20): a set is the union of balls around its points, each as large as the distance to its k-th
neighbour. A point on the surface of a ball counts as inside (<=) for precision and recall and as outside (<)
for density and coverage, as in the authors' code. Distances are float64, after the joint mean is
subtracted, in chunks of rows: memory is O(chunk x N).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nisynth.evaluation.frechet import Array, Features

ROWS_AT_ONCE = 1000
NEAR_COSINE = 0.99
"""Above this cosine of their features, two images are near duplicates."""


@dataclass(frozen=True)
class Manifold:
    """precision: share of generated points inside a real ball; recall the reverse, both 0..1.

    density: real balls that hold a generated point, over k; about 1 for two samples of one distribution.
    coverage: share of real points with a generated one inside their ball, 0..1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def compare_manifolds(generated: Features, real: Features, ks: Sequence[int]) -> dict[int, Manifold]:
    """Returns the four figures for every neighbourhood size k. Raises ValueError for k >= a set's size."""
    most = max(ks)
    if most >= min(len(generated), len(real)):
        raise ValueError(
            f"k={most} needs more than {most} points in each set, not {min(len(generated), len(real))}"
        )
    own, theirs = _centred(generated, real)
    own_radii, their_radii = _squared_radii(own, ks), _squared_radii(theirs, ks)
    inside_real = np.zeros((len(ks), len(own)), dtype=bool)
    balls = np.zeros((len(ks), len(own)), dtype=np.int64)
    inside_generated = np.zeros((len(ks), len(theirs)), dtype=bool)
    covered = np.zeros((len(ks), len(theirs)), dtype=bool)
    for rows, squared in _squared_distances(own, theirs):
        for place in range(len(ks)):
            radii = their_radii[place]
            inside_real[place, rows] = (squared <= radii).any(axis=1)
            strictly = squared < radii
            balls[place, rows] = strictly.sum(axis=1)
            covered[place] |= strictly.any(axis=0)
            inside_generated[place] |= (squared <= own_radii[place, rows, None]).any(axis=0)
    return {
        k: Manifold(
            precision=float(inside_real[place].mean()),
            recall=float(inside_generated[place].mean()),
            density=float(balls[place].mean() / k),
            coverage=float(covered[place].mean()),
        )
        for place, k in enumerate(ks)
    }


def nearest_neighbours(
    queries: Features, reference: Features, count: int = 2
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Returns distances and positions `(N, count)` of each query's nearest reference points, nearest first.

    Raises ValueError when the reference has fewer points.
    """
    if len(reference) < count:
        raise ValueError(f"{len(reference)} points hold no {count} neighbours")
    distances = np.empty((len(queries), count))
    positions = np.empty((len(queries), count), dtype=np.int64)
    own, theirs = _centred(queries, reference)
    for rows, squared in _squared_distances(own, theirs):
        found = np.argpartition(squared, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(squared, found, axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        positions[rows] = np.take_along_axis(found, order, axis=1)
        distances[rows] = np.sqrt(np.take_along_axis(values, order, axis=1))
    return distances, positions


@dataclass(frozen=True)
class Authenticity:
    """nearest: median distance of a generated point to the nearest real one.

    authentic: share of generated points that are no closer to their nearest real point than that one is to
    its own nearest neighbour (Alaa et al., ICML-22), 0..1. A set that copies the real one has few.
    """

    nearest: float
    authentic: float


def authenticity(generated: Features, real: Features) -> Authenticity:
    """Returns how far generated points are from the nearest real ones.

    Raises ValueError for one real point.
    """
    distances, positions = nearest_neighbours(generated, real, 1)
    own, _ = nearest_neighbours(real, real, 2)
    keeps = distances[:, 0] >= own[positions[:, 0], 1]
    return Authenticity(float(np.median(distances[:, 0])), float(keeps.mean()))


@dataclass(frozen=True)
class Duplicates:
    """near: images with another of cosine above 0.99. clusters: what is left when these count once."""

    near: int
    clusters: int


def near_duplicates(features: Features) -> Duplicates:
    """Returns how many images have a near duplicate, and how many clusters of them there are.

    Images belong to one cluster where a chain of near duplicates connects them. Memory is N^2 bytes.
    """
    unit = features.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    alike = np.empty((len(unit), len(unit)), dtype=bool)
    for start in range(0, len(unit), ROWS_AT_ONCE):
        alike[start : start + ROWS_AT_ONCE] = unit[start : start + ROWS_AT_ONCE] @ unit.T > NEAR_COSINE
    np.fill_diagonal(alike, False)
    clusters = 0
    alone = np.ones(len(unit), dtype=bool)
    while alone.any():
        reached = np.array([alone.argmax()])
        clusters += 1
        while len(reached):
            alone[reached] = False
            reached = np.flatnonzero(alike[reached].any(axis=0) & alone)
    return Duplicates(int(alike.any(axis=1).sum()), clusters)


def _centred(first: Features, second: Features) -> tuple[Array, Array]:
    one, two = first.astype(np.float64), second.astype(np.float64)
    middle = (one.sum(axis=0) + two.sum(axis=0)) / (len(one) + len(two))
    return one - middle, two - middle


def _squared_radii(points: Array, ks: Sequence[int]) -> Array:
    """Returns `(len(ks), N)` squared distances to the k-th neighbour within the set, itself excluded."""
    radii = np.empty((len(ks), len(points)))
    for rows, squared in _squared_distances(points, points):
        squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = -1.0  # itself comes first
        radii[:, rows] = np.partition(squared, ks, axis=1)[:, list(ks)].T
    return radii


def _squared_distances(own: Array, theirs: Array) -> Iterator[tuple[slice, Array]]:
    """Yields, for rows of `own` in turn, their squared distances to every point of `theirs`."""
    lengths = np.square(theirs).sum(axis=1)
    for start in range(0, len(own), ROWS_AT_ONCE):
        part = own[start : start + ROWS_AT_ONCE]
        squared = np.square(part).sum(axis=1)[:, None] + lengths - 2.0 * (part @ theirs.T)
        yield slice(start, start + len(part)), np.maximum(squared, 0.0)
