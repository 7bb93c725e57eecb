"""Many loss curves as one band, and several runs in one picture."""

import io

import numpy as np
import pytest
from PIL import Image

from nisynth.errors import ConfigError
from nisynth.report.compare import loss_by_run
from nisynth.report.losses import MOST_POINTS, loss_bands


def curve(iterations: range, value: float) -> list[dict[str, float]]:
    return [{"iteration": i, "ce": value + i, "r_bn": 10.0 * value} for i in iterations]


def test_the_band_spans_the_tasks() -> None:
    found = loss_bands([curve(range(3), value) for value in (0.0, 1.0, 2.0)])
    assert list(found) == ["ce", "r_bn"]
    assert found["ce"].iterations.tolist() == [0, 1, 2]
    assert found["ce"].median.tolist() == [1.0, 2.0, 3.0]
    assert found["r_bn"].low == pytest.approx([2.0] * 3)
    assert found["r_bn"].high == pytest.approx([18.0] * 3)


def test_curves_logged_at_other_iterations_carry_their_last_value() -> None:
    coarse, fine = curve(range(0, 5, 4), 0.0), curve(range(1, 5), 0.0)
    found = loss_bands([coarse, fine])["ce"]
    assert found.iterations.tolist() == [0, 1, 2, 3, 4]
    assert found.median.tolist() == [0.0, 0.5, 1.0, 1.5, 4.0]  # fine alone is not there at 0


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    found = loss_bands([curve(range(5000), 0.0)])["ce"]
    assert len(found.iterations) == MOST_POINTS
    assert (found.iterations[0], found.iterations[-1], found.median[-1]) == (0, 4999, 4999.0)


def test_a_term_that_only_some_curves_have() -> None:
    found = loss_bands([curve(range(2), 0.0), [{"iteration": 0, "kl": 3.0}]])
    assert found["kl"].median.tolist() == [3.0]


def test_runs_side_by_side() -> None:
    runs = {"one": [curve(range(20), 1.0)], "other": [curve(range(0, 20, 3), value) for value in (2.0, 5.0)]}
    with Image.open(io.BytesIO(loss_by_run(runs))) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for color in ((0, 114, 178), (213, 94, 0)):  # a line of each run
        assert (pixels == color).all(axis=1).sum() > 100
    with pytest.raises(ConfigError, match="no run logged ce or r_bn"):
        loss_by_run({"one": [[{"iteration": 0, "other": 1.0}]]})
