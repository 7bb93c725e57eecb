"""A network and a server that go wrong: no object lost, none written twice, no outcome misreported."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nisynth.errors import StorageError
from nisynth.storage import AlreadyExists, OutcomeUnknown
from nisynth.storage.probe import probe_conditional_create
from nisynth.storage.s3 import S3Store
from nisynth.storage.s3_client import Limits
from tests.faults import Fault, FaultProxy
from tests.servers import WeedServer, start_weed

Quick = Callable[..., S3Store]

# Each heals after a while, and `create` must then have made the object, once.
PASSING = {
    "409 conflict": Fault("status", "PUT", times=3, status=409, code="ConditionalRequestConflict"),
    "409 without effect named": Fault("status", "PUT", times=1, status=409, code="OperationAborted"),
    "412 with no object there": Fault("status", "PUT", times=2, status=412, code="PreconditionFailed"),
    "500 before the write": Fault("status", "PUT", times=3, status=500),
    "500 after the write": Fault("status", "PUT", times=1, status=500, forward=True),
    "503 storm": Fault("status", "PUT", times=4, status=503, code="SlowDown"),
    "503 after the write": Fault("status", "PUT", times=2, status=503, code="SlowDown", forward=True),
    "429": Fault("status", "PUT", times=1, status=429, code="TooManyRequests"),
    "request lost": Fault("dropped", "PUT", times=2),
    "response lost": Fault("lost", "PUT", times=1),
    "every response lost": Fault("lost", "PUT", times=None),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_create_outlives_a_passing_fault(proxy: FaultProxy, quick: Quick, fault: Fault) -> None:
    store = quick()
    proxy.inject(fault)
    store.create("commits/1.json", b"mine")
    assert proxy.count("PUT", fault.kind) == (fault.times or 5)
    assert store.get("commits/1.json") == b"mine"
    proxy.clear()
    with pytest.raises(AlreadyExists):
        store.create("commits/1.json", b"mine")


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_create_never_takes_anothers_object_for_its_own(
    proxy: FaultProxy, quick: Quick, fault: Fault
) -> None:
    store = quick()
    store.create("commits/1.json", b"equal bytes")
    proxy.inject(fault)
    with pytest.raises(AlreadyExists):
        store.create("commits/1.json", b"equal bytes")


def test_a_slow_answer_is_not_waited_for_and_the_write_counts_once(proxy: FaultProxy, quick: Quick) -> None:
    store = quick(read_s=1.0, attempts=12)
    store.put("warm", b"")
    proxy.inject(Fault("hang", "PUT"))
    store.create("commits/1.json", b"mine")
    assert proxy.count("PUT", "hang") == 1
    assert store.get("commits/1.json") == b"mine"


def test_a_conflict_that_lasts_is_an_error_and_never_exists(proxy: FaultProxy, quick: Quick) -> None:
    store = quick()
    proxy.inject(Fault("status", "PUT", times=None, status=409, code="ConditionalRequestConflict"))
    with pytest.raises(StorageError, match="409") as caught:
        store.create("commits/1.json", b"mine")
    assert type(caught.value) is StorageError
    assert list(store.list()) == []


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("dropped", "PUT", times=None)],
        [Fault("status", "PUT", times=None, status=500)],
        [Fault("status", "PUT", times=None, status=412, code="PreconditionFailed")],
        [Fault("lost", "PUT", times=None), Fault("status", "HEAD", times=None, status=503)],
        [Fault("lost", "PUT"), Fault("dropped", None, times=None)],
        [Fault("lost", "PUT"), Fault("status", "PUT", times=None, status=403, code="AccessDenied"),
         Fault("status", "HEAD", times=None, status=403, code="AccessDenied")],
    ],
)  # fmt: skip
def test_what_nobody_can_settle_is_unknown(proxy: FaultProxy, quick: Quick, faults: list[Fault]) -> None:
    proxy.inject(*faults)
    with pytest.raises(OutcomeUnknown, match=r"commits/1\.json"):
        quick().create("commits/1.json", b"mine")


def test_a_refusal_after_a_lost_answer_still_finds_the_object(proxy: FaultProxy, quick: Quick) -> None:
    store = quick()
    proxy.inject(Fault("lost", "PUT"), Fault("status", "PUT", times=None, status=403, code="AccessDenied"))
    store.create("commits/1.json", b"mine")
    assert store.get("commits/1.json") == b"mine"


def test_in_a_storm_every_key_has_one_creator(proxy: FaultProxy, quick: Quick) -> None:
    for kind in ("lost", "dropped"):
        proxy.inject(Fault(kind, "PUT", times=None, probability=0.15))
    for status, code, forward in (
        (409, "ConditionalRequestConflict", False),
        (412, "PreconditionFailed", False),
        (500, "InternalError", True),
        (503, "SlowDown", False),
    ):
        proxy.inject(
            Fault("status", "PUT", times=None, probability=0.1, status=status, code=code, forward=forward)
        )
    proxy.inject(Fault("status", "HEAD", times=None, probability=0.2, status=503, code="SlowDown"))
    stores = [quick(attempts=40) for _ in range(3)]

    def create(writer: int) -> list[int]:
        won = []
        for task in range(8):
            try:
                stores[writer].create(f"commits/{task}", f"writer {writer}".encode())
                won.append(task)
            except AlreadyExists:
                pass
        return won

    with ThreadPoolExecutor(3) as pool:
        wins = list(pool.map(create, range(3)))
    proxy.clear()
    assert sorted(task for won in wins for task in won) == list(range(8))
    for writer, won in enumerate(wins):
        assert all(stores[0].get(f"commits/{task}") == f"writer {writer}".encode() for task in won)


@pytest.mark.parametrize("kind", ["lost", "dropped", "status"])
def test_put_and_delete_are_sent_again(proxy: FaultProxy, quick: Quick, kind: str) -> None:
    store = quick()
    proxy.inject(Fault(kind, "PUT", times=2))
    store.put("key", b"value")
    assert store.get("key") == b"value"
    proxy.inject(Fault(kind, "DELETE", times=2))
    store.delete("key")
    assert list(store.list()) == []
    assert store.retries == 4


@pytest.mark.parametrize("kind", ["truncated", "shortened", "corrupted", "dropped", "status"])
def test_get_gives_the_whole_object_or_none(proxy: FaultProxy, quick: Quick, kind: str) -> None:
    store = quick()
    content = bytes(range(256)) * 400
    store.create("shard", content)
    proxy.inject(Fault(kind, "GET", times=2))
    assert store.get("shard") == content
    assert proxy.count("GET") == 3
    proxy.inject(Fault(kind, "GET", times=None))
    with pytest.raises(StorageError, match="shard"):
        store.get("shard")


@pytest.mark.parametrize("kind", ["truncated", "shortened", "dropped", "status"])
def test_a_listing_is_complete_or_fails(proxy: FaultProxy, quick: Quick, kind: str) -> None:
    store = quick(page_keys=3)
    names = [f"data/{n:02}" for n in range(10)]
    for name in names:
        store.put(name, b"x")
    listing = store.list("data/")
    found = [next(listing).key]
    proxy.inject(Fault(kind, "LIST", times=2))
    found += [info.key for info in listing]
    assert found == names
    # Four pages, and two that went wrong.
    assert proxy.count("LIST") == 6
    listing = store.list("data/")
    next(listing)
    proxy.inject(Fault(kind, "LIST", times=None))
    with pytest.raises(StorageError, match="data/"):
        list(listing)


def test_a_missing_object_is_not_asked_for_twice(proxy: FaultProxy, quick: Quick) -> None:
    with pytest.raises(StorageError):
        quick().get("missing")
    assert proxy.count("GET") == 1


def test_the_probe_finds_out_a_server_that_ignores_conditions(proxy: FaultProxy, quick: Quick) -> None:
    store = quick()
    proxy.inject(Fault("unconditional", "PUT", times=None))
    with pytest.raises(StorageError, match=r"8 of 8 .* execution\.single_writer: true"):
        probe_conditional_create(store)
    assert list(store.list()) == []


def test_the_probe_finds_out_a_server_that_lets_some_race(proxy: FaultProxy, quick: Quick) -> None:
    store = quick()
    proxy.inject(Fault("unconditional", "PUT", key="probe-", times=3))
    with pytest.raises(StorageError, match=r"of 8 .* execution\.single_writer: true"):
        probe_conditional_create(store)


def test_a_restart_of_the_server_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server: WeedServer = start_weed(tmp_path / "weed")
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        store = S3Store(f"{server.url}/run", Limits(attempts=20))
        store.create("commits/before", b"1")
        server.kill()
        started = threading.Event()

        def create() -> None:
            started.set()
            store.create("commits/during", b"2")

        with ThreadPoolExecutor(1) as pool:
            creating = pool.submit(create)
            started.wait()
            server.start()
            creating.result(timeout=180)
        assert [(info.key, store.get(info.key)) for info in store.list()] == [
            ("commits/before", b"1"),
            ("commits/during", b"2"),
        ]
    finally:
        server.kill()
