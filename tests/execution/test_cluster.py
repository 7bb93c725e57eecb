import socket

import pytest

from nisynth.errors import ConfigError
from nisynth.execution import ExecutionConfig
from nisynth.execution.cluster import connected
from tests.servers import free_port


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "head", "head:", ":1"])
def test_what_is_no_clusters_address_is_refused(address: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"no cluster's address; give the head's host:port"),
        connected(address, ExecutionConfig()),
    ):
        pass


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        pytest.raises(ConfigError, match=rf"address '{address}': nothing answers there \(.*refused"),
        connected(address, ExecutionConfig()),
    ):
        pass


def test_ray_address_is_the_address_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=str(port)), connected(None, ExecutionConfig()):
        pass
