"""Literal values of the libraries' tests and of hand calculation, and where a library alone fails."""

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nisynth.errors import ConfigError
from nisynth.evaluation.scores import (
    calibrate,
    clip_discrepancy,
    data_copying,
    f_beta,
    histogram_curve,
    inception_score,
    kernel_distance,
    mann_whitney,
    precision_recall_curve,
)


class TestInceptionScore:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("torch_fidelity")

    def test_every_class_equally_often_and_surely(self) -> None:
        logits = 1000.0 * np.eye(10)[np.arange(100) % 10]
        assert inception_score(logits, splits=1).mean == pytest.approx(10.0)

    def test_uniform_logits(self) -> None:
        assert inception_score(np.zeros((100, 10))).mean == pytest.approx(1.0)

    def test_two_sorts_of_images(self) -> None:
        pair = np.log([[0.8, 0.2], [0.2, 0.8]])
        found = inception_score(np.tile(pair, (50, 1)), splits=1)
        assert found.mean == pytest.approx(1.2125732532083184)

    def test_one_class_alone_is_one_not_nan(self) -> None:
        found = inception_score(np.tile([5000.0, 0.0, 0.0], (100, 1)))
        assert (found.mean, found.std) == (pytest.approx(1.0), pytest.approx(0.0))

    def test_large_logits_keep_their_differences(self) -> None:
        rng = np.random.default_rng(0)
        logits = rng.standard_normal((200, 5))
        assert inception_score(logits + 500.0).mean == pytest.approx(inception_score(logits).mean)

    def test_too_few_images(self) -> None:
        with pytest.raises(ValueError, match="99 images; 10 splits of the Inception score need 100"):
            inception_score(np.zeros((99, 10)))


class TestKid:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("torch_fidelity")

    def test_literals(self) -> None:
        found = kernel_distance(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]]), subsets=1, subset_size=2)
        assert (found.mean, found.subset_size) == (pytest.approx(-121.0 * 1000), 2)
        x = np.random.RandomState(0).randn(50, 4)
        assert kernel_distance(x, x + 1).mean == pytest.approx(11739.113171796783)
        assert kernel_distance(x, x).mean == pytest.approx(-373.06231512098487)

    def test_subsets_are_no_larger_than_the_smaller_set(self) -> None:
        rng = np.random.default_rng(0)
        found = kernel_distance(rng.standard_normal((30, 4)), rng.standard_normal((20, 4)))
        assert found.subset_size == 20


class TestCmmd:
    def test_by_hand(self) -> None:
        """Between lengths of no account: exp(-0.01) within one set, 1 within the other; 0 and -1 across."""
        generated, real = np.array([[2.0, 0.0], [0.0, 5.0]]), np.array([[-1.0, 0.0], [-3.0, 0.0]])
        assert clip_discrepancy(generated, real) == pytest.approx(1000.0 * (1.0 - np.exp(-0.02)))
        assert clip_discrepancy(real, real) == pytest.approx(0.0)

    def test_rows_beyond_a_chunk_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((50, 4)), rng.standard_normal((30, 4)) + 1.0
        whole = clip_discrepancy(x, y)
        monkeypatch.setattr("nisynth.evaluation.scores.CMMD_ROWS_AT_ONCE", 7)
        assert clip_discrepancy(x, y) == pytest.approx(whole)

    def test_one_image(self) -> None:
        with pytest.raises(ValueError, match="1 images; CMMD needs at least 2"):
            clip_discrepancy(np.ones((1, 4)), np.ones((5, 4)))


class TestDataCopying:
    def test_the_rank_test_by_hand(self) -> None:
        assert mann_whitney(np.array([1.0, 2, 3]), np.array([4.0, 5])) == pytest.approx(-np.sqrt(3.0))
        assert mann_whitney(np.array([1.0, 2]), np.array([1.0, 2])) == 0.0

    def test_copies_lie_below_0_others_at_it_and_strangers_above(self) -> None:
        pytest.importorskip("sklearn")
        rng = np.random.default_rng(0)
        real, held_out, more = (rng.standard_normal((1000, 4)) for _ in range(3))
        copies, strangers = real + 0.01 * more, more + 2.0
        found = [data_copying(generated, real, held_out) for generated in (copies, more, strangers)]
        assert found[0] < -3.0
        assert abs(found[1]) < 1.0
        assert found[2] > 3.0

    def test_too_few_images_for_a_test(self) -> None:
        pytest.importorskip("sklearn")
        rng = np.random.default_rng(0)
        assert data_copying(*(rng.standard_normal((30, 2)) for _ in range(3))) is None


class TestPrecisionRecallCurve:
    def test_sets_that_share_nothing(self) -> None:
        precision, recall = histogram_curve([0, 1], [1, 0], angles=11)
        assert not precision.any()
        assert not recall.any()

    def test_equal_sets(self) -> None:
        precision, recall = histogram_curve([0.3, 0.7], [0.3, 0.7], angles=11)
        assert (precision[5], recall[5]) == (pytest.approx(1.0), pytest.approx(1.0))

    def test_half_of_what_is_generated_is_right(self) -> None:
        precision, recall = histogram_curve([0.5, 0.5], [1, 0], angles=11)
        assert (precision[5], recall[5]) == (pytest.approx(0.5), pytest.approx(0.5))
        assert precision[-1] == pytest.approx(0.5)
        assert recall[1] == pytest.approx(1.0)

    @pytest.mark.parametrize(("beta", "expected"), [(1, (2 / 3, 0.5, 2 / 3)), (2, (5 / 9, 0.5, 5 / 6))])
    def test_f_beta(self, beta: float, expected: tuple[float, ...]) -> None:
        found = f_beta(np.array([1, 0.5, 0.5]), np.array([0.5, 0.5, 1]), beta)
        assert found == pytest.approx(expected)

    def test_a_set_without_half_of_the_modes_lacks_recall_not_precision(self) -> None:
        pytest.importorskip("sklearn")
        rng = np.random.default_rng(0)
        real = np.concatenate([rng.standard_normal((300, 2)) + centre for centre in ((0, 0), (40, 0))])
        found = precision_recall_curve(real[:300], real, runs=2)
        assert found.f1_8 > 0.95
        assert found.f8 == pytest.approx(0.5, abs=0.06)


def test_calibration_of_a_network_that_is_too_sure() -> None:
    logits = np.log(np.array([[0.9, 0.1]] * 10))
    found = calibrate(logits, np.array([0] * 7 + [1] * 3))
    assert (found.accuracy, found.confidence, found.ece) == (0.7, pytest.approx(0.9), pytest.approx(0.2))


def test_calibration_holds_some_rows_at_once() -> None:
    logits = np.random.default_rng(0).standard_normal((40_000, 100), dtype=np.float32)
    labels = logits.argmax(axis=1)
    tracemalloc.start()
    try:
        found = calibrate(logits, labels)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.accuracy == 1.0
    assert found.confidence + found.ece == pytest.approx(1.0)
    assert peak_bytes < logits.nbytes


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("torch_fidelity", lambda: inception_score(np.zeros((100, 2)))),
        ("sklearn", lambda: precision_recall_curve(np.zeros((30, 2)), np.zeros((30, 2)))),
    ],
)
def test_without_the_extra_there_is_one_clear_line(
    library: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ConfigError, match=rf"{library} is not installed; pip install 'nisynth\[evaluation\]'"
    ):
        call()
