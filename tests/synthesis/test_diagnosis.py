"""A batch that the teacher does not recognise: the term that never fell, and what to change."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from nisynth.synthesis import NaturalInversionConfig
from nisynth.synthesis.diagnosis import balance, balance_line, what_to_change
from nisynth.synthesis.judgement import Judgement
from nisynth.synthesis.naturalinversion.config import PRESETS
from tests.golden.record import tiny_teacher


def advice(ce: tuple[float, float], r_bn_in_y: float, **method: object) -> str:
    curve = [{"iteration": 1.0, "ce": ce[0]}, {"iteration": 150.0, "ce": ce[1]}]
    config = NaturalInversionConfig(**method)  # type: ignore[arg-type]
    return what_to_change(curve, Judgement(0.2, r_bn_in_y), 10, config)


def test_where_r_bn_outweighs_the_labels_it_says_so() -> None:
    found = advice((3.0, 1.9), 0.4, bn_scale="published")
    assert "cross-entropy did not fall far enough: 3.00 -> 1.90 (guessing: 2.30)" in found
    assert "R_BN is 0.4 Y" in found
    assert "set method.bn_scale to teacher" in found
    assert "lower method.bn_weight from 10 to 3.3" in advice((3.0, 1.9), 0.4, bn_scale="teacher")


def test_where_nothing_fell_it_asks_for_more_iterations() -> None:
    found = advice((3.0, 2.9), 6.0, iterations=20)
    assert "raise method.iterations (20)" in found
    assert "teacher.mean/std" in found


def test_where_the_loss_was_content_the_decoding_is_to_blame() -> None:
    assert "output.pixels" in advice((3.0, 0.1), 0.5)


def test_where_most_images_are_recognised_the_gate_is_too_strict() -> None:
    for accuracy, ce in ((0.97, 0.05), (0.6, 1.2)):
        curve = [{"iteration": 1.0, "ce": 5.9}, {"iteration": 40.0, "ce": ce}]
        found = what_to_change(curve, Judgement(accuracy, 0.4), 10, NaturalInversionConfig(iterations=40))
        assert f"lower execution.quality_gate below {accuracy}" in found
        assert "raise method.iterations (40)" in found
        assert "the loss saw other images" not in found
        assert "teacher.mean" not in found


def test_a_method_without_a_loss_has_only_the_teacher_to_blame() -> None:
    assert "teacher.mean/std" in what_to_change([], Judgement(0.1, 5.0), 10, NaturalInversionConfig())


def test_a_plan_says_how_the_losses_stand_to_each_other() -> None:
    published = balance(tiny_teacher(), NaturalInversionConfig(bn_scale="published"), 32)
    scaled = balance(tiny_teacher(), NaturalInversionConfig(), 32)
    assert published["Y"] == scaled["Y"]
    assert published["R_BN of noise"] == scaled["R_BN of noise"]
    assert published["gradient"] != scaled["gradient"]
    assert scaled["weights"] == "ce 1, r_bn 10, tv 0.006, l2 1.5e-05, bn_scale teacher (preset cifar10)"
    without = balance(tiny_teacher(), NaturalInversionConfig(bn_weight=0.0), 32)
    assert without["gradient"] == "0% R_BN, 100% cross-entropy, on noise"


@pytest.mark.parametrize(
    ("weights", "preset"),
    [
        (PRESETS["short"], "teacher (preset short)"),
        ({"bn_weight": 3.0}, "teacher (preset cifar100)"),
        ({"bn_weight": 4.0}, "teacher"),
    ],
)
def test_a_plan_names_the_preset_whose_weights_it_has(weights: Mapping[str, Any], preset: str) -> None:
    method = NaturalInversionConfig(**{**weights, "iterations": 77})  # type: ignore[arg-type]
    assert balance(tiny_teacher(), method, 32)["weights"].endswith(f"bn_scale {preset}")


def test_a_network_that_raises_costs_a_run_no_more_than_the_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_teacher()
    said = balance_line(teacher, NaturalInversionConfig(), 32)
    assert said.startswith("Y ")
    assert "; gradient " in said

    def broken(x: torch.Tensor) -> None:
        raise RuntimeError("no memory\nat line 3")

    monkeypatch.setattr(teacher.network, "forward", broken)
    found = balance_line(teacher, NaturalInversionConfig(), 32)
    assert found == "how the losses balance cannot be told: RuntimeError: no memory"
