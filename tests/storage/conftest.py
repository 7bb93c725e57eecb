"""Stores behind the proxy that goes wrong on demand."""

from collections.abc import Callable
from typing import Any

import pytest

from nisynth.storage.s3 import S3Store
from nisynth.storage.s3_client import Limits


@pytest.fixture
def quick(s3_url: str) -> Callable[..., S3Store]:
    """Makes stores that wait little, so that what never heals is given up within a second."""

    def make(**limits: Any) -> S3Store:
        chosen = {"connect_s": 5.0, "read_s": 20.0, "attempts": 5, "first_pause_s": 0.01} | limits
        return S3Store(s3_url, Limits(**chosen))

    return make
