"""Behaviour that a change of structure must not alter, held to what golden.json recorded before it.

Equal bits are promised on equal machines only: elsewhere pixels are not compared, and losses nearly.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden import record

GOLDEN: dict[str, Any] = json.loads(record.GOLDEN.read_text())
SAME_MACHINE = record.machine() == GOLDEN["machine"]


def assert_same(found: dict[str, Any], golden: dict[str, Any]) -> None:
    """Compares one synthesized batch: its losses, and bit for bit its pixels where that is promised."""
    if SAME_MACHINE:
        assert found == golden
        return
    for point, expected in zip(found["curve"], golden["curve"], strict=True):
        assert point == pytest.approx(expected, rel=0.02)


def test_fingerprints_of_shipped_configs() -> None:
    found = record.fingerprints()
    assert found == {name: GOLDEN["fingerprints"][name] for name in found}


def test_fingerprints_of_configs_whose_weights_are_elsewhere(shared: Path) -> None:
    found = record.real_fingerprints(shared)
    assert found == {name: GOLDEN["fingerprints"][name] for name in found}


@pytest.mark.parametrize("option", record.OPTIONS)
def test_plain_loop(option: str) -> None:
    assert_same(record.plain_loop(record.OPTIONS[option]), GOLDEN["plain"][option])


@pytest.mark.parametrize("option", record.OPTIONS)
def test_engine(option: str) -> None:
    golden = GOLDEN["fast"][option]
    found = record.engine(record.OPTIONS[option])
    for point, expected in zip(found["curve"], golden["curve"], strict=True):
        assert point == pytest.approx(expected, rel=1e-4 if SAME_MACHINE else 0.02)


def test_the_teacher_that_ships() -> None:
    assert_same_loops(record.shipped_teacher(), GOLDEN["resnet20"])


@pytest.mark.parametrize("arch", record.REAL_TEACHERS)
def test_real_teachers(arch: str, shared: Path) -> None:
    assert_same_loops(record.real_teacher(arch, shared), GOLDEN[arch])


def assert_same_loops(found: dict[str, Any], golden: dict[str, Any]) -> None:
    assert_same(found["plain"], golden["plain"])
    for point, expected in zip(found["fast"]["curve"], golden["fast"]["curve"], strict=True):
        assert point == pytest.approx(expected, rel=1e-4 if SAME_MACHINE else 0.02)


def test_a_run_of_two_tasks(tmp_path: Path) -> None:
    found, golden = record.run_of_two_tasks(tmp_path), GOLDEN["run"]
    if not SAME_MACHINE:
        for part in (found, golden):
            for entry in (*part["commits"], *part["manifest"]):
                for varying in ("curve", "figures", "sha256", "bytes", "teacher_accuracy"):
                    entry.pop(varying, None)
    assert found == golden
