"""The settings that make bits equal hold inside the block only."""

from typing import Any

import pytest
import torch

from nisynth.device import deterministic


def settings() -> Any:
    backends: Any = torch.backends  # as mypy sees neither of these modules' members
    memory: Any = torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.benchmark,
        memory.fill_uninitialized_memory,
    )


def test_settings_hold_inside_and_are_restored_after_an_error() -> None:
    before = settings()
    inside = []

    def fail() -> None:
        with deterministic():
            inside.append(settings())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [(True, True, "ieee", "ieee", False, False)]
    assert settings() == before
