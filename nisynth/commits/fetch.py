"""Objects of a store that is not trusted: sizes are looked at before a download, hashes after it."""

import hashlib
from typing import TYPE_CHECKING

from nisynth.commits.records import Commit
from nisynth.errors import DataError
from nisynth.storage import NotFound, Store

if TYPE_CHECKING:
    from nisynth.commits.seal import ManifestRow

FETCHES = 2
MAX_DOCUMENT_BYTES = 1 << 24
"""No plan, commit or quarantine record is larger: the longest curves and lists of classes take a tenth."""


def fetch_shard(store: Store, row: "Commit | ManifestRow") -> bytes:
    """Returns the shard that a commit describes, after its size and sha256 were compared with it.

    A second fetch tells what is damaged: the way here, or the object. Raises DataError, naming the
    shard and the cure; StorageError.
    """
    where = f"{store.url}/{row.shard}"
    cure = f"`nisynth redo {store.url} --task {row.task}`, then run again"
    try:
        size = store.size_bytes(row.shard)
        if size != row.bytes:
            raise DataError(f"{where}: is damaged: it has {size} bytes, its commit says {row.bytes}; {cure}")
        for _ in range(FETCHES):
            data = store.get(row.shard)
            if hashlib.sha256(data).hexdigest() == row.sha256:
                return data
    except NotFound:
        raise DataError(f"{where}: is missing; {cure}") from None
    raise DataError(f"{where}: is damaged: its sha256 is not its commit's, in {FETCHES} fetches; {cure}")


def fetch_document(store: Store, key: str) -> bytes | None:
    """Returns a plan, commit or quarantine record as it is stored, None when there is none.

    Raises DataError for one that is too large to be ours; StorageError.
    """
    try:
        size = store.size_bytes(key)
        if size > MAX_DOCUMENT_BYTES:
            raise DataError(
                f"{store.url}/{key}: has {size} bytes, no document of a run has more than"
                f" {MAX_DOCUMENT_BYTES}; it was not read"
            )
        return store.get(key)
    except NotFound:
        return None
