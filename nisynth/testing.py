"""The contract of a store as tests, for a store of your own; the backends that ship are held to the same.

```python
import pytest
from nisynth.testing import StoreContract


class TestMyStore(StoreContract):
    @pytest.fixture
    def open_at(self, tmp_path):
        return lambda folder: MyStore(f"mine://{tmp_path}/{folder}")
```

`pytest.register_assert_rewrite("nisynth.testing")` in a conftest.py makes failures show both sides. It
needs pytest: `pip install 'nisynth[testing]'`.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nisynth.errors import DataError, StorageError
from nisynth.storage import AlreadyExists, NotFound, ObjectInfo, Store
from nisynth.storage.probe import probe_conditional_create

OpenAt = Callable[[str], Store]
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
"""Strings that are no keys: every method of a store refuses them before it does anything."""


class StoreContract:
    """What every store promises; override the fixture `open_at` in a subclass whose name begins with Test.

    Takes about 20 MB of the place, and leaves there what it wrote.
    """

    @pytest.fixture
    def open_at(self) -> OpenAt:
        """Returns what opens the store of a folder, such as `runs/run1`, in a place new to each test.

        The same folder twice gives two stores of the same objects.
        """
        raise NotImplementedError("override the fixture open_at: it opens your store at a folder")

    @pytest.fixture
    def store(self, open_at: OpenAt) -> Store:
        """Returns an empty store."""
        return open_at("run")

    def test_an_object_is_read_back_whole(self, store: Store) -> None:
        content = bytes(range(256)) * 40
        store.create("data/one.bin", content)
        assert store.get("data/one.bin") == content
        assert store.size_bytes("data/one.bin") == len(content)

    def test_an_empty_object_exists(self, store: Store) -> None:
        store.create("empty", b"")
        assert store.get("empty") == b""
        assert store.size_bytes("empty") == 0
        assert list(store.list()) == [ObjectInfo("empty", 0)]

    def test_a_large_object_is_read_back_whole(self, store: Store) -> None:
        content = bytes(range(251)) * (17 * 2**20 // 251)
        store.create("large", content)
        assert store.get("large") == content
        assert store.size_bytes("large") == len(content)

    def test_an_object_of_more_bytes_than_can_belong_there_is_not_read(self, store: Store) -> None:
        store.create("plan.json", b"x" * 1000)
        assert store.get("plan.json", 1000) == b"x" * 1000
        with pytest.raises(DataError, match=r"plan\.json"):
            store.get("plan.json", 999)
        assert store.get("plan.json") == b"x" * 1000

    def test_create_refuses_a_taken_key_and_keeps_the_first_object(self, store: Store) -> None:
        store.create("commits/1.json", b"first")
        with pytest.raises(AlreadyExists, match=r"commits/1\.json"):
            store.create("commits/1.json", b"second")
        # Equal bytes do not make it the same writer's.
        with pytest.raises(AlreadyExists, match=r"commits/1\.json"):
            store.create("commits/1.json", b"first")
        assert store.get("commits/1.json") == b"first"

    def test_create_takes_a_key_again_after_a_delete(self, store: Store) -> None:
        store.create("commits/1.json", b"first")
        store.delete("commits/1.json")
        store.create("commits/1.json", b"second")
        assert store.get("commits/1.json") == b"second"

    def test_put_replaces_and_create_sees_what_put_wrote(self, store: Store) -> None:
        store.put("key", b"a longer old value")
        store.put("key", b"new")
        assert store.get("key") == b"new"
        with pytest.raises(AlreadyExists):
            store.create("key", b"created")
        assert list(store.list()) == [ObjectInfo("key", 3)]

    def test_what_is_missing_is_not_found(self, store: Store) -> None:
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

    def test_a_sweep_takes_no_object_away(self, store: Store) -> None:
        assert store.sweep() == 0
        store.create("data/1", b"x")
        assert store.sweep() == 0
        assert store.get("data/1") == b"x"

    def test_a_folder_is_listed_in_key_order(self, store: Store) -> None:
        names = ["10", "9", "Z", "_", "a", "a-b", "a.b", "aa", "b"]
        for name in reversed(names):
            store.put(f"data/{name}", name.encode())
        found = list(store.list("data/"))
        assert found == [ObjectInfo(f"data/{name}", len(name)) for name in sorted(names)]
        assert _keys(store, "data/a") == ["data/a", "data/a-b", "data/a.b", "data/aa"]

    def test_every_folder_is_listed(self, store: Store) -> None:
        wanted = {"plan.json", "data/1", "data/deep/er/2", "commits/1"}
        for key in wanted:
            store.put(key, b"")
        assert set(_keys(store)) == wanted
        assert set(_keys(store, "d")) == {"data/1", "data/deep/er/2"}
        store.delete("data/1")
        assert set(_keys(store)) == wanted - {"data/1"}

    def test_run1_is_not_run10(self, open_at: OpenAt) -> None:
        run1, run10 = open_at("runs/run1"), open_at("runs/run10")
        run10.create("plan.json", b"ten")
        assert list(run1.list()) == []
        run1.create("plan.json", b"one")
        assert (run1.get("plan.json"), run10.get("plan.json")) == (b"one", b"ten")
        assert _keys(run1) == _keys(run10) == ["plan.json"]
        assert set(_keys(open_at("runs"), "run1/")) == {"run1/plan.json"}

    def test_two_stores_of_one_place_are_one(self, open_at: OpenAt) -> None:
        open_at("run").create("key", b"value")
        assert open_at("run").get("key") == b"value"
        assert open_at("run").url == open_at("run").url

    def test_a_string_that_is_no_key_is_refused_by_every_method(self, store: Store) -> None:
        for key in HOSTILE_KEYS:
            for use in (store.get, store.size_bytes, store.delete):
                _refused(use, key)
            for write in (store.create, store.put):
                _refused(write, key, b"")

    def test_a_prefix_of_no_key_is_refused(self, store: Store) -> None:
        for prefix in ("../", "/", "a//", "a b", ".tmp/"):
            _refused(lambda prefix=prefix: list(store.list(prefix)))

    def test_one_of_many_threads_creates(self, open_at: OpenAt) -> None:
        stores = [open_at("run") for _ in range(4)]
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

    def test_a_reader_never_sees_half_an_object(self, store: Store) -> None:
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

    def test_the_probe_passes_and_leaves_nothing(self, store: Store) -> None:
        probe_conditional_create(store)
        assert list(store.list()) == []


def _keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def _refused(use: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(StorageError) as caught:
        use(*arguments)
    assert not isinstance(caught.value, NotFound), arguments
    assert "\n" not in str(caught.value), arguments
