"""One Ray cluster for the whole session, and one proxy before the S3 server that its workers can reach."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import FaultProxy
from tests.servers import WeedServer

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def s3_proxy(s3_server: WeedServer) -> Iterator[FaultProxy]:
    """A proxy that behaves until a test injects a fault; workers keep its address for the session."""
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def ray_cluster(s3_proxy: FaultProxy) -> Iterator[str]:
    """The address of a local cluster that this process is connected to, by the driver's own door.

    Its workers take the environment of this moment: the tests on their path, S3 through the proxy.
    """
    import ray

    from nisynth.config import ExecutionConfig
    from nisynth.execution.cluster import connected

    environment = {**s3_proxy.environment(), "PYTHONPATH": str(REPO), "AWS_MAX_ATTEMPTS": "2"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        with connected(None, ExecutionConfig(workers=6)):
            for name in environment.keys() - {"PYTHONPATH"}:
                os.environ.pop(name)
            yield ray.get_runtime_context().gcs_address
