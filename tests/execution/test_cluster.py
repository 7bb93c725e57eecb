import socket
import threading

import pytest

from nisynth.commits import Run
from nisynth.errors import ConfigError, StorageError
from nisynth.execution import ExecutionConfig
from nisynth.execution.cluster import Listing, connected
from nisynth.storage.memory import MemoryStore
from tests.servers import free_port
from tests.tiny import commit_all, tiny_plan


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


def fresh(listing: Listing) -> list[set[int] | StorageError]:
    """What a listing brings, however long its thread takes."""
    found: list[set[int] | StorageError] = []
    while not found:
        found = list(listing.fresh())
    return found


def test_a_listing_brings_what_others_committed(tmp_path) -> None:
    run = Run.join(MemoryStore("memory://listing"), tiny_plan(tmp_path))
    listing = Listing(run, every_s=0.0)
    assert listing.now() == (set(), set())
    commit_all(run, tasks=[2])
    assert fresh(listing) == [{2}]
    commit_all(run, tasks=[3])
    while fresh(listing) != [{2, 3}]:
        pass


def test_a_listing_that_fails_says_why_and_one_that_hangs_holds_nobody_up(tmp_path, monkeypatch) -> None:
    run = Run.join(MemoryStore("memory://hanging"), tiny_plan(tmp_path))
    listing = Listing(run, every_s=0.0)
    error, hang = StorageError("memory://hanging: no answer"), threading.Event()
    monkeypatch.setattr(run, "committed", lambda: (_ for _ in ()).throw(error))
    assert fresh(listing) == [error]
    monkeypatch.setattr(run, "committed", lambda: {1} if hang.wait() else set())
    while list(listing.fresh()):
        pass
    assert list(listing.fresh()) == []
    hang.set()
    while fresh(listing) != [{1}]:
        pass
