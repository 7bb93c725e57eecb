"""A store for one writer, where nothing is conditional.

Some S3 servers answer 501 to `If-None-Match`, and some disks (exFAT, SMB, FUSE) have no hard links. One
writer alone needs neither: it looks whether the name is taken, and writes. Between the look and the write
nobody else may write, which is what `execution.single_writer: true` promises.
"""

from collections.abc import Iterator

from nisynth.storage.store import AlreadyExists, NotFound, ObjectInfo, Store, Unconditional


class SingleWriter:
    """The store it is given, with a `create` that also works without conditional writes.

    The store's own `create` is tried first, once, and kept where it works: then a second writer, who
    should not be there, is still found out.
    """

    def __init__(self, store: Store) -> None:
        self.url = store.url
        self._store = store
        self._conditional = True

    @property
    def retries(self) -> int:
        return self._store.retries

    def create(self, key: str, data: bytes) -> None:
        if self._conditional:
            try:
                return self._store.create(key, data)
            except Unconditional:
                self._conditional = False
        try:
            self._store.size_bytes(key)
        except NotFound:
            return self._store.put(key, data)
        raise AlreadyExists(f"{self.url}/{key}: the object exists already")

    def put(self, key: str, data: bytes) -> None:
        self._store.put(key, data)

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        return self._store.get(key, max_bytes)

    def size_bytes(self, key: str) -> int:
        return self._store.size_bytes(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def sweep(self) -> int:
        return self._store.sweep()
