"""Figures of one set's logits, or of two sets' features, by kept libraries where they are right.

Inception score and KID are torch-fidelity's, in float64 and without logits that would give NaN; the clusters
of Sajjadi's curve and of C_T are scikit-learn's. CMMD and calibration need numpy alone.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nisynth.errors import ConfigError
from nisynth.evaluation.frechet import ROWS_AT_ONCE, Array, Features
from nisynth.evaluation.manifold import nearest_neighbours

IS_SPLITS = 10
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
PRD_CLUSTERS = 20
PRD_ANGLES = 1001
PRD_RUNS = 10
ECE_BINS = 15
CMMD_SIGMA = 10.0
CMMD_ROWS_AT_ONCE = 1000
COPYING_CELLS = 20
LEAST_IN_CELL = 20
LEAST_LOGIT = -80.0


@dataclass(frozen=True)
class Score:
    """A mean over parts of the set, and the standard deviation over them."""

    mean: float
    std: float


@dataclass(frozen=True)
class Kid:
    """KID x 1000, over subsets of `subset_size` images; slightly negative for equal sets."""

    mean: float
    std: float
    subset_size: int


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """Sajjadi's curve, `(angles,)` each, and its two ends: F8 weighs recall, F1/8 precision."""

    precision: Array
    recall: Array
    f8: float
    f1_8: float


@dataclass(frozen=True)
class Calibration:
    """accuracy, mean confidence and expected calibration error over 15 bins, all 0..1."""

    accuracy: float
    confidence: float
    ece: float


def extra(module: str) -> Any:
    """Returns a module of the extra `evaluation`. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        raise ConfigError(f"{library} is not installed; pip install 'nisynth[evaluation]' has it") from None


def inception_score(logits: Features, splits: int = IS_SPLITS) -> Score:
    """Returns the Inception score (Salimans et al., NeurIPS-16) of `(N, C)` logits over seeded random splits.

    Raises ValueError for fewer than 10 images a split, ConfigError without torch-fidelity.
    """
    if len(logits) < 10 * splits:
        raise ValueError(f"{len(logits)} images; {splits} splits of the Inception score need {10 * splits}")
    relative = logits - logits.max(axis=1, keepdims=True)
    # A probability that underflows to 0 in a whole split would make its logarithm, and the score, NaN.
    safe = torch.from_numpy(np.maximum(relative.astype(np.float64), LEAST_LOGIT))
    found = extra("torch_fidelity.metric_isc").isc_features_to_metric(safe, splits, True, 2020)
    return Score(found["inception_score_mean"], found["inception_score_std"])


def kernel_distance(
    generated: Features, real: Features, subsets: int = KID_SUBSETS, subset_size: int = KID_SUBSET_SIZE
) -> Kid:
    """Returns KID x 1000 (Binkowski et al., ICLR-18) over seeded subsets, of at most the smaller set's size.

    Raises ValueError for fewer than two images, ConfigError without torch-fidelity.
    """
    size = min(subset_size, len(generated), len(real))
    if size < 2:
        raise ValueError(f"{size} images; KID needs at least 2 in each set")
    found = extra("torch_fidelity.metric_kid").kid_features_to_metric(
        torch.from_numpy(generated.astype(np.float64)),
        torch.from_numpy(real.astype(np.float64)),
        kid_subsets=subsets,
        kid_subset_size=size,
        verbose=False,
    )
    mean, std = (found[f"kernel_inception_distance_{name}"] for name in ("mean", "std"))
    return Kid(1000.0 * mean, 1000.0 * std, size)


def clip_discrepancy(generated: Features, real: Features) -> float:
    """Returns CMMD (Jayasumana et al., CVPR-24): 1000 times the squared MMD of features of unit length.

    The kernel is a Gaussian of sigma 10. No image is compared with itself, so that equal sets may give
    slightly less than 0; the published code compares them, which adds about 10 / N. Features are CLIP's.
    Raises ValueError for fewer than two images.
    """
    if min(len(generated), len(real)) < 2:
        raise ValueError(f"{min(len(generated), len(real))} images; CMMD needs at least 2 in each set")
    x, y = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in map(np.float64, (generated, real)))
    within = [(_kernel_sum(part, part) - len(part)) / (len(part) * (len(part) - 1)) for part in (x, y)]
    return 1000.0 * float(sum(within) - 2.0 * _kernel_sum(x, y) / (len(x) * len(y)))


def _kernel_sum(x: Array, y: Array) -> float:
    """Returns the sum of exp(-|a - b|^2 / (2 sigma^2)) over all pairs of rows of unit length."""
    parts = (x[start : start + CMMD_ROWS_AT_ONCE] for start in range(0, len(x), CMMD_ROWS_AT_ONCE))
    return float(sum(np.exp((part @ y.T - 1.0) / CMMD_SIGMA**2).sum() for part in parts))


def data_copying(generated: Features, real: Features, held_out: Features, seed: int = 0) -> float | None:
    """Returns C_T (Meehan et al., AISTATS-20): how much farther from the real set than other real images are.

    In each of 20 clusters of the real set, the distances to the nearest real image are compared by a
    Mann-Whitney test, and the z values averaged by the share of held-out images. About 0 for images that
    keep the distance of unseen real ones; far below 0 (-3) for copies. None where no cluster holds 20 of
    both. Raises ConfigError without scikit-learn, ValueError for fewer real images than clusters.
    """
    if len(real) < COPYING_CELLS:
        raise ValueError(f"{len(real)} real images; C_T needs at least {COPYING_CELLS}")
    clusters = extra("sklearn.cluster").MiniBatchKMeans(COPYING_CELLS, n_init=10, random_state=seed)
    clusters.fit(real.astype(np.float64))
    sets = [part.astype(np.float64) for part in (generated, held_out)]
    cells = [clusters.predict(part) for part in sets]
    distances = [nearest_neighbours(part, real, 1)[0][:, 0] for part in sets]
    found = [
        [values[own == cell] for values, own in zip(distances, cells, strict=True)]
        for cell in range(COPYING_CELLS)
    ]
    full = [pair for pair in found if min(map(len, pair)) >= LEAST_IN_CELL]
    weights = [len(pair[1]) for pair in full]
    return float(np.average([mann_whitney(*pair) for pair in full], weights=weights)) if full else None


def mann_whitney(first: Array, second: Array) -> float:
    """Returns the z value of the Mann-Whitney test: above 0 where `first` holds the larger values."""
    n, m = len(first), len(second)
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, "left") + np.searchsorted(ordered, first, "right")
    return float((below.sum() / 2.0 - n * m / 2.0) / np.sqrt(n * m * (n + m + 1) / 12.0))


def precision_recall_curve(
    generated: Features, real: Features, runs: int = PRD_RUNS, seed: int = 0
) -> PrecisionRecall:
    """Returns Sajjadi et al.'s curve (NeurIPS-18) over 20 clusters of both sets, equally many images of each.

    Raises ConfigError without scikit-learn, ValueError for fewer points than clusters.
    """
    count = min(len(generated), len(real))
    if count < PRD_CLUSTERS:
        raise ValueError(f"{count} images; the curve needs at least {PRD_CLUSTERS} in each set")
    rng = np.random.default_rng(seed)
    parts = [part[rng.permutation(len(part))[:count]] for part in (generated, real)]
    both = np.concatenate(parts).astype(np.float64)
    curves = [_clustered_curve(both, count, seed + run) for run in range(runs)]
    precision = np.mean([curve[0] for curve in curves], axis=0)
    recall = np.mean([curve[1] for curve in curves], axis=0)
    return PrecisionRecall(
        precision,
        recall,
        f8=float(f_beta(precision, recall, 8.0).max()),
        f1_8=float(f_beta(precision, recall, 1 / 8).max()),
    )


def _clustered_curve(both: Array, count: int, seed: int) -> tuple[Array, Array]:
    clusters = extra("sklearn.cluster").MiniBatchKMeans(PRD_CLUSTERS, n_init=10, random_state=seed)
    chosen = clusters.fit(both).labels_
    shares = [np.bincount(part, minlength=PRD_CLUSTERS) / count for part in (chosen[:count], chosen[count:])]
    return histogram_curve(shares[0], shares[1])


def histogram_curve(
    generated: npt.ArrayLike, real: npt.ArrayLike, angles: int = PRD_ANGLES
) -> tuple[Array, Array]:
    """Returns precision and recall `(angles,)` of two histograms of sum 1 each (Sajjadi et al., Eq. 5, 6)."""
    slopes = np.tan(np.linspace(1e-10, np.pi / 2 - 1e-10, angles))[:, None]
    precision = np.minimum(np.asarray(real) * slopes, np.asarray(generated)).sum(axis=1)
    return np.clip(precision, 0.0, 1.0), np.clip(precision / slopes[:, 0], 0.0, 1.0)


def f_beta(precision: Array, recall: Array, beta: float) -> Array:
    """Returns the F score that weighs recall beta times as much as precision; 0 where both are."""
    weighted = beta**2 * precision + recall
    return (1.0 + beta**2) * precision * recall / np.where(weighted > 0.0, weighted, 1.0)


def calibrate(logits: Features, labels: npt.NDArray[np.int64]) -> Calibration:
    """Returns accuracy, mean confidence and calibration error of `(N, C)` logits for the labels `(N,)`.

    Memory is `ROWS_AT_ONCE` rows of logits.
    """
    hits, surety, gaps = 0, 0.0, np.zeros(ECE_BINS)
    for start in range(0, len(logits), ROWS_AT_ONCE):
        part = logits[start : start + ROWS_AT_ONCE]
        odds = np.exp(part.astype(np.float64) - part.max(axis=1, keepdims=True))
        confidence = (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)
        right = part.argmax(axis=1) == labels[start : start + ROWS_AT_ONCE]
        bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
        gaps += np.bincount(bins, weights=right - confidence, minlength=ECE_BINS)
        hits, surety = hits + int(right.sum()), surety + float(confidence.sum())
    count = len(labels)
    return Calibration(hits / count, surety / count, float(np.abs(gaps).sum() / count))
