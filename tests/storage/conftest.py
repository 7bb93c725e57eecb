"""An S3 store behind a proxy that can go wrong."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nisynth.storage.s3 import S3Store
from nisynth.storage.s3_client import Limits
from tests.faults import FaultProxy
from tests.servers import WeedServer


@pytest.fixture
def proxy(s3_server: WeedServer, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the S3 server; the environment of this process leads to it."""
    with FaultProxy(s3_server.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def quick(s3_url: str) -> Callable[..., S3Store]:
    """Makes stores that wait little, so that what never heals is given up within a second."""

    def make(**limits: Any) -> S3Store:
        chosen = {"connect_s": 5.0, "read_s": 20.0, "attempts": 5, "first_pause_s": 0.01} | limits
        return S3Store(s3_url, Limits(**chosen))

    return make
