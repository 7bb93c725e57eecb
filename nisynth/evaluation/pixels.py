"""Statistics of a set's pixels, in one pass: brightness, smoothness, saturation, exact duplicates."""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from nisynth.evaluation.embedding import ImageSet


@dataclass(frozen=True)
class PixelStatistics:
    """Of N images; `(3,)` per channel, of values 0..255.

    saturated: share of values that are 0 or 255, 0..1. total_variation: mean absolute difference of
    neighbouring values, across and down. duplicates: images that equal an earlier one, pixel by pixel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    saturated: tuple[float, ...]
    total_variation: float
    duplicates: int


def measure_pixels(images: ImageSet) -> PixelStatistics:
    """Returns the statistics of every image of a set; memory is one batch and 16 bytes an image."""
    sums, squares, ends = np.zeros(3), np.zeros(3), np.zeros(3)
    variation, count = 0.0, 0
    seen: Counter[bytes] = Counter()
    for pixels, _ in images.batches():
        values = pixels.numpy()
        wide = values.astype(np.float64)
        sums += wide.sum(axis=(0, 2, 3))
        squares += np.square(wide).sum(axis=(0, 2, 3))
        ends += ((values == 0) | (values == 255)).sum(axis=(0, 2, 3))
        across, down = np.abs(np.diff(wide, axis=3)).mean(), np.abs(np.diff(wide, axis=2)).mean()
        variation += len(values) * float(across + down) / 2.0
        count += len(values)
        seen.update(hashlib.sha256(image.tobytes()).digest()[:16] for image in values)
    per_channel = count * images.side_px**2
    mean = sums / per_channel
    return PixelStatistics(
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(np.maximum(squares / per_channel - mean**2, 0.0)).tolist()),
        saturated=tuple((ends / per_channel).tolist()),
        total_variation=variation / count,
        duplicates=sum(times - 1 for times in seen.values()),
    )
