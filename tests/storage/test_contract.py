"""What every backend promises, held against each of them; S3 against a real server."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from nisynth.errors import ConfigError, StorageError
from nisynth.storage import ObjectInfo, open_store, read_url
from nisynth.storage.memory import MemoryStore
from nisynth.testing import HOSTILE_KEYS, OpenAt, StoreContract

BACKENDS = ["memory", "local", "s3"]


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4()}"
    if request.param == "local":
        return str(tmp_path / "new" / "run")
    s3_url: str = request.getfixturevalue("s3_url")
    return s3_url


class TestBackends(StoreContract):
    @pytest.fixture
    def open_at(self, url: str) -> OpenAt:
        return lambda folder: open_store(f"{url}/{folder}")


class Overwriting(MemoryStore):
    """Creates what is there already."""

    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)


class Unsorted(MemoryStore):
    """Lists backwards."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter([*super().list(prefix)][::-1])


class Forgiving(MemoryStore):
    """Deletes what is no key, without a word."""

    def delete(self, key: str) -> None:
        if key not in HOSTILE_KEYS:
            super().delete(key)


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (Overwriting, "test_create_refuses_a_taken_key_and_keeps_the_first_object"),
        (Unsorted, "test_a_folder_is_listed_in_key_order"),
        (Forgiving, "test_a_string_that_is_no_key_is_refused_by_every_method"),
    ],
)
def test_a_store_that_breaks_the_contract_fails_it(kind: type[MemoryStore], broken: str) -> None:
    judge = getattr(StoreContract(), broken)
    judge(MemoryStore(f"memory://{uuid.uuid4()}"))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        judge(kind(f"memory://{uuid.uuid4()}"))


def test_a_hostile_key_is_refused_before_a_server_is_asked() -> None:
    for url in ("memory://hostile", "/nowhere/at/all", "s3://bucket/run"):
        for key in HOSTILE_KEYS:
            with pytest.raises(StorageError, match="not a name in a store"):
                open_store(url).get(key)


def test_a_slash_at_the_end_of_a_url_means_nothing(url: str) -> None:
    store = open_store(f"{url}/")
    store.create("key", b"value")
    assert open_store(url).get("key") == read_url(f"{store.url}/key") == b"value"
    with pytest.raises(StorageError, match="other"):
        read_url(f"{store.url}/other")


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
    with pytest.raises(ConfigError, match="the user in it does not exist"):
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
