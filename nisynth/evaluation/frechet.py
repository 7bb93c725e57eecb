"""The Frechet distance (Heusel et al., NeurIPS-17, Eq. 6) between the Gaussians of two sets of features.

    |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr sqrt(S_x S_y)

With a root R of each covariance, R^T R = S, the last trace is the nuclear norm of R_x R_y^T. That needs
neither full rank nor a matrix square root, whose usual implementations fail on sets smaller than the
features or collapsed to a point. A set smaller than d gives its centred rows as the root, exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]
"""`(N, d)`, an image a row; may be mapped from a file."""

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Frechet:
    """distance: the whole of it. mean_term: |m_x - m_y|^2, what of it the means alone give."""

    distance: float
    mean_term: float


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean `(d,)` and a root `(r, d)` of the covariance S of n features: root^T root = S, r <= d."""

    mean: Array
    root: Array

    @classmethod
    def of(cls, features: Features) -> "Gaussian":
        """Returns mean and covariance, with divisor n - 1, in float64 and bounded memory.

        Raises ValueError for fewer than two rows.
        """
        count, width = features.shape
        if count < 2:
            raise ValueError(f"{count} features have no covariance; at least 2 are needed")
        mean = np.zeros(width)
        for rows in _chunks(features):
            mean += rows.sum(axis=0)
        mean /= count
        if count <= width:
            return cls(mean, (features.astype(np.float64) - mean) / np.sqrt(count - 1))
        covariance = np.zeros((width, width))
        for rows in _chunks(features):
            centred = rows - mean
            covariance += centred.T @ centred
        return cls.of_moments(mean, covariance / (count - 1))

    @classmethod
    def of_moments(cls, mean: npt.ArrayLike, covariance: npt.ArrayLike) -> "Gaussian":
        """Returns the Gaussian of a mean `(d,)` and a symmetric covariance `(d, d)`."""
        values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
        root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
        return cls(np.asarray(mean, dtype=np.float64), root)


def frechet_distance(x: Gaussian, y: Gaussian) -> Frechet:
    """Returns the Frechet distance of two Gaussians; symmetric; at least 0, except for rounding errors."""
    difference = x.mean - y.mean
    mean_term = float(difference @ difference)
    cross = np.linalg.svd(x.root @ y.root.T, compute_uv=False).sum()
    traces = np.square(x.root).sum() + np.square(y.root).sum()
    return Frechet(mean_term + float(traces - 2.0 * cross), mean_term)


def diagonal_frechet_distance(x: Features, y: Features) -> float:
    """Returns the distance of the Gaussians without their correlations: stable for few images, as of a class.

    Raises ValueError for fewer than two rows.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"{min(len(x), len(y))} features have no variance; at least 2 are needed")
    first, second = x.astype(np.float64), y.astype(np.float64)
    means = first.mean(axis=0) - second.mean(axis=0)
    deviations = first.std(axis=0, ddof=1) - second.std(axis=0, ddof=1)
    return float(means @ means + deviations @ deviations)


def _chunks(features: Features) -> Iterator[Array]:
    for start in range(0, len(features), ROWS_AT_ONCE):
        yield features[start : start + ROWS_AT_ONCE].astype(np.float64)
