"""Loss curves of many tasks as one: the median, and the band from the 10th to the 90th percentile."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nisynth.report.curves import in_order

MOST_POINTS = 100
Array = npt.NDArray[np.float64]
LossCurve = Sequence[Mapping[str, float]]
"""What a commit holds: one record per logged iteration, `iteration` and any number of terms."""


@dataclass(frozen=True, eq=False)
class Band:
    """Of one loss term over tasks, `(T,)` each, by iteration."""

    iterations: Array
    median: Array
    low: Array
    high: Array


def thin(curve: LossCurve, most: int = MOST_POINTS) -> list[Mapping[str, float]]:
    """Returns at most that many records, evenly spread, first and last among them."""
    if len(curve) <= most:
        return list(curve)
    return [curve[i * (len(curve) - 1) // (most - 1)] for i in range(most)]


def loss_bands(curves: Iterable[LossCurve]) -> dict[str, Band]:
    """Returns the band of every term over the union of the iterations, each curve's last value carried on.

    A curve counts from its first record of a term on. Memory is `MOST_POINTS` numbers a curve and term.
    """
    by_term: dict[str, list[tuple[Array, Array]]] = {}
    for curve in curves:
        records = thin(curve)
        for term in dict.fromkeys(name for record in records for name in record if name != "iteration"):
            points = [(record["iteration"], record[term]) for record in records if term in record]
            found = np.array(points, dtype=np.float64)
            by_term.setdefault(term, []).append((found[:, 0], found[:, 1]))
    return {term: _band(by_term[term]) for term in in_order(by_term)}


def _band(curves: list[tuple[Array, Array]]) -> Band:
    union = np.unique(np.concatenate([iterations for iterations, _ in curves]))
    if len(union) > MOST_POINTS:
        union = union[np.linspace(0, len(union) - 1, MOST_POINTS).round().astype(int)]
    joined = np.full((len(curves), len(union)), np.nan)
    for row, (iterations, values) in enumerate(curves):
        last = np.searchsorted(iterations, union, side="right") - 1
        known = last >= 0
        joined[row, known] = values[last[known]]
    joined = joined[:, ~np.isnan(joined).all(axis=0)]
    low, median, high = np.nanpercentile(joined, [10, 50, 90], axis=0)
    return Band(union[-joined.shape[1] :], median, low, high)
