"""The figures between synthetic and real features, in one table, and the floor of each.

The floor is the same figure of other real images instead of the synthetic ones. A seed splits the real set,
class by class, in two halves: one is the reference, the other gives the images of the floor. Every figure
depends on the number of images, so a figure and its floor are measured on equally many.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nisynth.errors import ConfigError
from nisynth.evaluation import frechet, manifold, scores
from nisynth.evaluation.embedding import Features, Labels
from nisynth.evaluation.frechet import Gaussian
from nisynth.evaluation.networks import LOGITS, POOL
from nisynth.evaluation.published import CLIP

KS = (3, 5)
MOST_POINTS = 10_000
"""Images of each set, at most, in figures whose cost grows with the square of the number of images."""
FLOOR_DRAWS = 3

Array = frechet.Features
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """One figure. n_generated, n_real: images it was measured on. k: neighbours, where it counts them.

    floor: the same between real images; floor_std: over its draws, None for a single one. The figure of all
    images has no floor.
    """

    name: str
    layer: str
    value: float
    n_generated: int
    n_real: int
    k: int | None = None
    floor: float | None = None
    floor_std: float | None = None


@dataclass(frozen=True)
class Metric:
    """One row of the table. measure: of generated and real features -> values by (figure's name, k).

    least, most: images of each set. embedding: the only network that it is measured with, None for any.
    """

    layers: Literal["every", "pool", "logits"]
    measure: Callable[[Array, Array], Mapping[tuple[str, int | None], float]]
    least: int = 2
    most: int | None = None
    embedding: str | None = None

    def reads(self, layer: str) -> bool:
        """Says whether the metric is measured on this layer."""
        return {"every": True, "pool": layer == POOL, "logits": layer == LOGITS}[self.layers]


def _frechet(generated: Array, real: Array) -> dict[tuple[str, int | None], float]:
    found = frechet.frechet_distance(Gaussian.of(generated), Gaussian.of(real))
    return {("fd", None): found.distance, ("fd_mean_term", None): found.mean_term}


def _manifolds(generated: Array, real: Array) -> dict[tuple[str, int | None], float]:
    found = manifold.compare_manifolds(generated, real, KS)
    return {(name, k): value for k in KS for name, value in vars(found[k]).items()}


def _neighbours(generated: Array, real: Array) -> dict[tuple[str, int | None], float]:
    found = manifold.authenticity(generated, real)
    return {("nearest_real", None): found.nearest, ("authentic", None): found.authentic}


def _kid(generated: Array, real: Array) -> dict[tuple[str, int | None], float]:
    return {("kid_x1000", None): scores.kernel_distance(generated, real).mean}


def _sajjadi(generated: Array, real: Array) -> dict[tuple[str, int | None], float]:
    found = scores.precision_recall_curve(generated, real)
    return {("prd_f8", None): found.f8, ("prd_f1_8", None): found.f1_8}


def _inception_score(generated: Array, real: Array) -> dict[tuple[str, int | None], float]:
    return {("is", None): scores.inception_score(generated).mean}


def _cmmd(generated: Array, real: Array) -> dict[tuple[str, int | None], float]:
    return {("cmmd", None): scores.clip_discrepancy(generated, real)}


METRICS = (
    Metric("every", _frechet),
    Metric("pool", _manifolds, least=max(KS) + 1, most=MOST_POINTS),
    Metric("pool", _neighbours, least=3, most=MOST_POINTS),
    Metric("pool", _kid, most=MOST_POINTS),
    Metric("pool", _cmmd, most=MOST_POINTS, embedding=CLIP),
    Metric("pool", _sajjadi, least=scores.PRD_CLUSTERS, most=MOST_POINTS),
    Metric("logits", _inception_score, least=10 * scores.IS_SPLITS),
)


@dataclass(frozen=True, eq=False)
class Samples:
    """Which images figures are measured on: `generated`, and each of `floors`, against `reference`."""

    generated: Indices
    reference: Indices
    floors: tuple[Indices, ...]

    @classmethod
    def draw(cls, generated: Labels, real: Labels, seed: int, most: int | None = None) -> "Samples":
        """Returns equally many synthetic and floor images, drawn by the seed, `most` of each set at most.

        generated, real: the labels. Each part holds the classes evenly, as a synthetic set does: a floor
        can double when chance decides how often each class is drawn.
        """
        rng = np.random.default_rng(seed)
        order, rank = _evenly(real, rng)
        limit = most or len(real)
        reference, other = order[rank % 2 == 0][:limit], order[rank % 2 == 1]
        count = min(len(generated), len(other), limit)
        draws = min(FLOOR_DRAWS, len(other) // count) if count else 0
        floors = [np.sort(other[i * count : (i + 1) * count]) for i in range(draws)]
        chosen, _ = _evenly(generated, rng)
        return cls(np.sort(chosen[:count]), np.sort(reference), tuple(floors))


def _evenly(labels: Labels, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Returns positions in a random order in which classes take turns, and the number of each turn."""
    shuffled = rng.permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels) if len(labels) else np.zeros(0, dtype=np.int64)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    turns = np.lexsort((labels[grouped], rank))
    return grouped[turns], rank[turns]


def measure_figures(
    generated: Features, real: Features, metrics: Sequence[Metric], notes: list[str], seed: int = 0
) -> list[Figure]:
    """Returns every figure that the metrics give, layer by layer; `notes` gets a line for each left out."""
    figures: list[Figure] = []
    for metric in metrics:
        samples = Samples.draw(generated.labels, real.labels, seed, metric.most)
        if min(len(samples.generated), len(samples.reference)) < metric.least:
            name = metric.measure.__name__.strip("_")
            notes.append(f"not measured: {name}, which needs {metric.least} images of each set")
            continue
        for layer in generated.layers:
            if metric.reads(layer):
                try:
                    figures += _with_floor(
                        metric, layer, generated.layers[layer], real.layers[layer], samples
                    )
                except ConfigError as error:  # the extra is not installed
                    notes.append(f"not measured: {metric.measure.__name__.strip('_')}: {error}")
    return figures + _copying(generated, real, notes, seed) + _of_all_images(generated, real)


def _copying(generated: Features, real: Features, notes: list[str], seed: int) -> list[Figure]:
    """Returns C_T, which takes a third set: the real images that lend the floors. It has none itself."""
    samples = Samples.draw(generated.labels, real.labels, seed, MOST_POINTS)
    if len(samples.reference) < scores.COPYING_CELLS or not samples.floors:
        return []
    mine, theirs = generated.layers[POOL], real.layers[POOL]
    parts = mine[samples.generated], theirs[samples.reference], theirs[samples.floors[0]]
    try:
        value = scores.data_copying(*parts, seed)
    except ConfigError as error:  # the extra is not installed
        notes.append(f"not measured: C_T: {error}")
        return []
    counts = len(samples.generated), len(samples.reference)
    return [] if value is None else [Figure("c_t", POOL, value, *counts)]


def _with_floor(metric: Metric, layer: str, generated: Array, real: Array, samples: Samples) -> list[Figure]:
    reference = real[samples.reference]
    values = metric.measure(generated[samples.generated], reference)
    floors = [metric.measure(real[rows], reference) for rows in samples.floors]
    return [
        Figure(
            name,
            layer,
            value,
            n_generated=len(samples.generated),
            n_real=len(samples.reference),
            k=k,
            floor=float(np.mean([floor[name, k] for floor in floors])) if floors else None,
            floor_std=float(np.std([floor[name, k] for floor in floors], ddof=1))
            if len(floors) > 1
            else None,
        )
        for (name, k), value in values.items()
    ]


def _of_all_images(generated: Features, real: Features) -> list[Figure]:
    """Returns the Frechet distance in the pool of all images, as papers print it, without a floor."""
    counts = len(generated.labels), len(real.labels)
    if min(counts) < 2:
        return []
    found = _frechet(generated.layers[POOL], real.layers[POOL])
    return [Figure("fd_all_images", POOL, found["fd", None], *counts)]
