"""A trial of the one promise that commits rest on, made at the start of a run.

Some S3 servers accept `If-None-Match` and ignore it, and some check it and race. Both let two workers
commit one task, so a store is tried before it is trusted.
"""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from nisynth.errors import StorageError
from nisynth.storage.store import AlreadyExists, Store

_WRITERS = 8
_ROUNDS = 2


def probe_conditional_create(store: Store) -> None:
    """Returns if, of 8 concurrent creators of one new object, exactly one succeeds, twice in a row.

    The objects are called `probe-*` and are deleted. Raises StorageError when the store lets several
    creators win, or cannot be used at all.
    """
    for _ in range(_ROUNDS):
        key = f"probe-{uuid.uuid4().hex}"
        try:
            winners = _race(store, key)
        except StorageError:
            with suppress(StorageError):
                store.delete(key)
            raise
        store.delete(key)
        if winners != 1:
            raise StorageError(
                f"{store.url}: {winners} of {_WRITERS} concurrent conditional writes of one object succeeded "
                "where one must; use another store, or set execution.single_writer: true"
            )


def _race(store: Store, key: str) -> int:
    """Returns how many of the concurrent creators believe that they made the object."""
    start = threading.Barrier(_WRITERS)

    def create(writer: int) -> bool:
        start.wait()
        try:
            store.create(key, f"writer {writer}".encode())
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(_WRITERS) as pool:
        return sum(pool.map(create, range(_WRITERS)))
