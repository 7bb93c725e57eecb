"""What every backend promises, held against each of them; S3 against a real server."""

import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nisynth.errors import ConfigError, DataError, StorageError
from nisynth.storage import AlreadyExists, NotFound, ObjectInfo, Store, open_store, read_url
from nisynth.storage.probe import probe_conditional_create

BACKENDS = ["memory", "local", "s3"]
HOSTILE_KEYS = [
    "",
    "/etc/passwd",
    "../outside",
    "data/../../outside",
    "data/..",
    "./x",
    "data//x",
    "data/",
    ".tmp/x",
    "a b",
    "a\\b",
    "a\n",
    "a\x00b",
    "ä",
    "x" * 1025,
]


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4()}"
    if request.param == "local":
        return str(tmp_path / "new" / "run")
    s3_url: str = request.getfixturevalue("s3_url")
    return s3_url


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_an_object_is_read_back_whole(store: Store) -> None:
    content = bytes(range(256)) * 40
    store.create("data/one.bin", content)
    assert store.get("data/one.bin") == content
    assert store.size_bytes("data/one.bin") == len(content)


def test_an_empty_object_exists(store: Store) -> None:
    store.create("empty", b"")
    assert store.get("empty") == b""
    assert store.size_bytes("empty") == 0
    assert list(store.list()) == [ObjectInfo("empty", 0)]


def test_a_large_object_is_read_back_whole(store: Store) -> None:
    content = bytes(range(251)) * (17 * 2**20 // 251)
    store.create("large", content)
    assert store.get("large") == content
    assert store.size_bytes("large") == len(content)


def test_an_object_of_more_bytes_than_can_belong_there_is_not_read(store: Store) -> None:
    store.create("plan.json", b"x" * 1000)
    assert store.get("plan.json", 1000) == b"x" * 1000
    with pytest.raises(DataError, match=r"plan\.json: has 1000 bytes, no more than 999 can belong there"):
        store.get("plan.json", 999)
    assert store.get("plan.json") == b"x" * 1000


def test_create_refuses_a_taken_key_and_keeps_the_first_object(store: Store) -> None:
    store.create("commits/1.json", b"first")
    with pytest.raises(AlreadyExists, match=r"commits/1\.json"):
        store.create("commits/1.json", b"second")
    # Equal bytes do not make it the same writer's.
    with pytest.raises(AlreadyExists, match=r"commits/1\.json"):
        store.create("commits/1.json", b"first")
    assert store.get("commits/1.json") == b"first"


def test_create_takes_a_key_again_after_a_delete(store: Store) -> None:
    store.create("commits/1.json", b"first")
    store.delete("commits/1.json")
    store.create("commits/1.json", b"second")
    assert store.get("commits/1.json") == b"second"


def test_put_replaces_and_create_sees_what_put_wrote(store: Store) -> None:
    store.put("key", b"a longer old value")
    store.put("key", b"new")
    assert store.get("key") == b"new"
    with pytest.raises(AlreadyExists):
        store.create("key", b"created")
    assert list(store.list()) == [ObjectInfo("key", 3)]


def test_what_is_missing_is_not_found(store: Store) -> None:
    assert list(store.list()) == []
    for ask in (store.get, store.size_bytes):
        with pytest.raises(NotFound, match="missing"):
            ask("data/missing")
    store.delete("data/missing")
    store.create("data/here", b"x")
    with pytest.raises(NotFound):
        store.get("data")
    assert list(store.list("data/here/")) == []
    assert list(store.list("commits/")) == []


def test_a_sweep_takes_no_object_away(store: Store) -> None:
    assert store.sweep() == 0
    store.create("data/1", b"x")
    assert store.sweep() == 0
    assert store.get("data/1") == b"x"


def test_a_folder_is_listed_in_key_order(store: Store) -> None:
    names = ["10", "9", "Z", "_", "a", "a-b", "a.b", "aa", "b"]
    for name in reversed(names):
        store.put(f"data/{name}", name.encode())
    found = list(store.list("data/"))
    assert found == [ObjectInfo(f"data/{name}", len(name)) for name in sorted(names)]
    assert keys(store, "data/a") == ["data/a", "data/a-b", "data/a.b", "data/aa"]


def test_every_folder_is_listed(store: Store) -> None:
    wanted = {"plan.json", "data/1", "data/deep/er/2", "commits/1"}
    for key in wanted:
        store.put(key, b"")
    assert set(keys(store)) == wanted
    assert set(keys(store, "d")) == {"data/1", "data/deep/er/2"}
    store.delete("data/1")
    assert set(keys(store)) == wanted - {"data/1"}


def test_run1_is_not_run10(url: str) -> None:
    run1, run10 = open_store(f"{url}/run1"), open_store(f"{url}/run10/")
    run10.create("plan.json", b"ten")
    assert list(run1.list()) == []
    run1.create("plan.json", b"one")
    assert (run1.get("plan.json"), run10.get("plan.json")) == (b"one", b"ten")
    assert keys(run1) == keys(run10) == ["plan.json"]
    assert set(keys(open_store(url), "run1/")) == {"run1/plan.json"}


def test_two_stores_of_one_url_are_one(url: str) -> None:
    open_store(url).create("key", b"value")
    again = open_store(open_store(url).url)
    assert again.get("key") == b"value"
    assert read_url(f"{again.url}/key") == b"value"
    with pytest.raises(NotFound):
        read_url(f"{again.url}/other")


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_a_hostile_key_is_refused_by_every_verb(key: str) -> None:
    # No server is needed: the key is refused before anything is opened.
    for url in ("memory://hostile", "/nowhere/at/all", "s3://bucket/run"):
        store = open_store(url)
        for use in (
            lambda s=store: s.create(key, b""),
            lambda s=store: s.put(key, b""),
            lambda s=store: s.get(key),
            lambda s=store: s.size_bytes(key),
            lambda s=store: s.delete(key),
        ):
            with pytest.raises(StorageError, match="not a name in a store") as caught:
                use()
            assert "\n" not in str(caught.value)


def test_a_hostile_prefix_is_refused(store: Store) -> None:
    for prefix in ("../", "/", "a//", "a b", ".tmp/"):
        with pytest.raises(StorageError, match="no key of a store begins"):
            store.list(prefix)


def test_one_of_many_threads_creates(url: str) -> None:
    stores = [open_store(url) for _ in range(4)]
    start = threading.Barrier(8)

    def create(writer: int) -> str | None:
        start.wait()
        try:
            stores[writer % 4].create("commits/race", str(writer).encode())
        except AlreadyExists:
            return None
        return str(writer)

    with ThreadPoolExecutor(8) as pool:
        won = [w for w in pool.map(create, range(8)) if w is not None]
    assert [stores[0].get("commits/race").decode()] == won


CREATE_ALL = """
import sys
from nisynth.storage import AlreadyExists, open_store
store, writer = open_store(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
for n in range(20):
    try:
        store.create(f"commits/{n:02}", writer.encode())
        print(n)
    except AlreadyExists:
        pass
"""


@pytest.mark.parametrize("url", ["local", "s3"], indirect=True)
def test_one_of_many_processes_creates(url: str) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE_ALL, url, str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    outputs = []
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        outputs.append(writer.communicate(timeout=120)[0].split())
        assert writer.returncode == 0
    store = open_store(url)
    assert sorted(int(n) for output in outputs for n in output) == list(range(20))
    for writer, output in enumerate(outputs):
        assert all(store.get(f"commits/{int(n):02}") == str(writer).encode() for n in output)


def test_a_reader_never_sees_half_an_object(store: Store) -> None:
    values = [bytes([n]) * 200_000 for n in range(6)]
    store.put("key", values[0])
    done = threading.Event()

    def write() -> None:
        try:
            for value in values * 3:
                store.put("key", value)
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not done.is_set():
            assert store.get("key") in values
        writing.result()


def test_the_probe_passes_and_leaves_nothing(store: Store) -> None:
    probe_conditional_create(store)
    assert list(store.list()) == []


@pytest.mark.parametrize(
    "url", ["", "file://host/folder", "ftp://host/x", "s3://", "s3://UPPER/x", "s3://b//x"]
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        open_store(url)


@pytest.mark.parametrize("url", ["s3:/bucket/run", "S3:/bucket/run", "file:/runs/a", "memory:run", "gs:/b/x"])
def test_a_scheme_with_too_few_slashes_is_no_folder(url: str) -> None:
    with pytest.raises(ConfigError, match=r"two slashes follow the scheme, as in \w+://\w+"):
        open_store(url)


def test_nobody_s_home_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such user's home"):
        open_store("~no-such-user-here/run")


def test_a_scheme_may_be_written_in_capitals(tmp_path: Path) -> None:
    assert open_store("S3://bucket/run").url == "s3://bucket/run"
    assert open_store(f"FILE://{tmp_path}").url == open_store(str(tmp_path)).url


def test_a_file_url_names_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    open_store(folder.as_uri()).create("key", b"value")
    assert (folder / "key").read_bytes() == b"value"
    assert read_url(f"{folder.as_uri()}/key") == b"value"


def test_read_url_takes_names_that_no_store_would_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my weights (1).pt").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    assert read_url("my weights (1).pt") == b"weights"
    assert read_url(str(tmp_path / "my weights (1).pt")) == b"weights"
