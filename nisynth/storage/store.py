"""Objects by URL: the few verbs a run needs, with one contract for every backend.

`create` (put-if-absent) is the verb that everything rests on: of any number of concurrent creators of
one key exactly one returns, the others get `AlreadyExists`, and an object is never seen half-written.
tests/storage/test_contract.py holds every backend to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from nisynth.errors import DataError, StorageError


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
        """Removes an object; succeeds if it is not there."""

    def sweep(self) -> int:
        """Removes what killed writers left that never became an object; returns how many such there were."""


def check_size(where: object, size_bytes: int, max_bytes: int | None) -> None:
    """Raises DataError when the object at `where` has more bytes than can belong there."""
    if max_bytes is not None and size_bytes > max_bytes:
        raise DataError(
            f"{where}: has {size_bytes} bytes, no more than {max_bytes} can belong there; it was not read"
        )
