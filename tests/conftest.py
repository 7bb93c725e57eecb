"""Fixtures that every room's tests share."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bit-equality is promised for equal thread counts, and one thread is what a worker uses."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real teachers and test sets that lies beside the checkout."""
    if not (SHARED / "teachers").is_dir():
        pytest.skip("../shared (teachers and test sets) is not beside this checkout")
    return SHARED
