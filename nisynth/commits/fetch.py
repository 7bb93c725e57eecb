"""Objects of a store that is not trusted: size checked before an object is read, hash after it."""

import hashlib
from collections.abc import Mapping

from nisynth.commits.records import ShardRecord
from nisynth.errors import DataError
from nisynth.storage import NotFound, Store

FETCHES = 2
MAX_DOCUMENT_BYTES = 1 << 24
"""The limit for a plan, commit or quarantine record: the longest curves and lists of classes take a tenth."""


def bad_shard(store: Store, row: ShardRecord, wrong: str) -> DataError:
    """Returns the error that says what is wrong with the shard that a commit describes, and the cure."""
    cure = f"`nisynth redo {store.url} --task {row.task}`, then run again"
    return DataError(f"{store.url}/{row.shard}: {wrong}; {cure}")


def check_shard_size(store: Store, row: ShardRecord, listed: Mapping[str, int] | None = None) -> None:
    """Raises DataError when the shard that a commit describes is missing or of another size; StorageError.

    listed: sizes by key, from a listing, which spares a request each. A listing may lag, so it is only
    believed where it agrees with the commit.
    """
    if listed is not None and listed.get(row.shard) == row.bytes:
        return
    try:
        size = store.size_bytes(row.shard)
    except NotFound:
        raise bad_shard(store, row, "is missing") from None
    if size != row.bytes:
        raise bad_shard(store, row, f"is damaged: it has {size} bytes, its commit says {row.bytes}")


def wrong_size(store: Store, row: ShardRecord, listed: Mapping[str, int]) -> str | None:
    """Returns what `check_shard_size` raises DataError with, None where the size is right."""
    try:
        check_shard_size(store, row, listed)
    except DataError as error:
        return str(error)
    return None


def fetch_shard(store: Store, row: ShardRecord) -> bytes:
    """Returns the shard that a commit describes, after its size and sha256 were compared with it.

    Where the hash differs it is fetched once more: the object may be sound and the transfer was not.
    Raises DataError, naming the shard and the cure; StorageError.
    """
    try:
        for _ in range(FETCHES):
            data = store.get(row.shard, row.bytes)
            if hashlib.sha256(data).hexdigest() == row.sha256:
                return data
    except NotFound:
        raise bad_shard(store, row, "is missing") from None
    except DataError:  # larger than its commit says, so it was not read
        check_shard_size(store, row)
        raise
    check_shard_size(store, row)
    raise bad_shard(store, row, f"is damaged: its sha256 differs from its commit's, in {FETCHES} fetches")


def fetch_document(store: Store, key: str) -> bytes | None:
    """Returns a plan, commit, quarantine record or seal as it is stored, None when there is none.

    Raises DataError for one over the limit of size; StorageError.
    """
    try:
        return store.get(key, MAX_DOCUMENT_BYTES)
    except NotFound:
        return None


def holds(store: Store, key: str, data: bytes) -> bool:
    """Tells whether an object has these bytes; it is read only if its size is right. Raises NotFound."""
    return store.size_bytes(key) == len(data) and store.get(key, len(data)) == data
