"""Objects by URL: the few verbs a run needs, with one contract for every backend.

`create` (put-if-absent) is the verb that everything rests on: of any number of concurrent creators of
one key exactly one returns, the others get `AlreadyExists`, and an object is never seen half-written.
tests/storage/test_contract.py holds every backend to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from nisynth.errors import ConfigError, DataError, StorageError


class NotFound(StorageError):
    """No object has this key."""


class AlreadyExists(StorageError):
    """`create` found the key taken (HTTP 412)."""


class OutcomeUnknown(StorageError):
    """A write got no clear answer: it may or may not have happened. Look before acting on it."""


class Unconditional(StorageError):
    """The store has no `create`: it knows no conditional writes, or its disk no hard links."""


@dataclass(frozen=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    size_bytes: int


class Store(Protocol):
    """A folder of objects; keys.py says which strings are keys. Threads may share one."""

    url: str

    @property
    def retries(self) -> int:
        """How many requests were sent again so far, because the ones before failed or got no answer."""

    def create(self, key: str, data: bytes) -> None:
        """Writes an object that must not exist yet; durable when it returns.

        Raises AlreadyExists, for an object of equal bytes too; OutcomeUnknown when no answer settles it;
        StorageError when the object surely was not written.
        """

    def put(self, key: str, data: bytes) -> None:
        """Writes an object whatever was there before; readers see the old or the new one, whole."""

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """Returns the object's bytes, whole. Raises NotFound, StorageError.

        max_bytes: what can belong there. Raises DataError for an object of more, before it is read.
        """

    def size_bytes(self, key: str) -> int:
        """Returns the object's size. Raises NotFound, StorageError."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yields the objects whose key begins with `prefix`; a page that cannot be had raises.

        Within one folder they come in key order; which folder comes first is the server's choice. What
        the place holds under a name that is no key is left out.
        """

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""

    def sweep(self) -> int:
        """Removes what killed writers left that never became an object; returns how many such there were."""


def check_size(where: object, size_bytes: int, max_bytes: int | None) -> None:
    """Raises DataError when the object at `where` has more bytes than can belong there."""
    if max_bytes is not None and size_bytes > max_bytes:
        raise DataError(
            f"{where}: has {size_bytes} bytes, no more than {max_bytes} can belong there; it was not read"
        )


def open_store(url: str, *, single_writer: bool = False) -> Store:
    """Returns the store at `url`: a local folder (a path or `file://`), `s3://bucket/prefix`, `memory://name`.

    single_writer: `create` works where nothing is conditional, too, for the one writer of a run. Nothing
    is read or created yet. Raises ConfigError for an unknown scheme.
    """
    if single_writer:
        from nisynth.storage.single_writer import SingleWriter

        return SingleWriter(open_store(url))
    url, scheme = _split_scheme(url)
    if scheme in ("", "file"):
        from nisynth.storage.local import LocalStore

        return LocalStore(url)
    if scheme == "s3":
        from nisynth.storage.s3 import S3Store

        return S3Store(url)
    if scheme == "memory":
        from nisynth.storage.memory import MemoryStore

        return MemoryStore(url)
    raise ConfigError(
        f"store URL {url!r}: unknown scheme {scheme!r}; use a folder, file:///folder or s3://bucket/prefix"
    )


def read_url(url: str) -> bytes:
    """Returns the bytes of one object or file named by a path or URL. Raises NotFound, StorageError.

    The name may be any that the file system or bucket allows, not only one that a store gives its keys.
    """
    url, scheme = _split_scheme(url)
    if scheme in ("", "file"):
        from nisynth.storage.local import path_of, read_path

        return read_path(path_of(url))
    if scheme == "s3":
        from nisynth.storage.s3 import read_object

        return read_object(url)
    folder, _, name = url.rpartition("/")
    return open_store(folder).get(name)


def _split_scheme(url: str) -> tuple[str, str]:
    """Returns the URL with its scheme in small letters, and the scheme; "" for a path.

    Raises ConfigError for `s3:/bucket/prefix`: as a path it would quietly become a local folder.
    """
    scheme, separator, rest = url.partition("://")
    if separator:
        return f"{scheme.lower()}://{rest}", scheme.lower()
    begin, colon, rest = url.partition(":")
    if colon and begin.lower() in ("s3", "file", "memory", "http", "https", "gs"):
        raise ConfigError(
            f"store URL {url!r}: two slashes follow the scheme, as in {begin}://{rest.strip('/')}"
        )
    return url, ""
