"""Objects by URL: `open_store` picks the backend, each of which keeps the contract of `Store` (store.py)."""

from nisynth.errors import ConfigError
from nisynth.storage.store import (
    AlreadyExists,
    NotFound,
    ObjectInfo,
    OutcomeUnknown,
    Store,
    Unconditional,
    check_size,
)

__all__ = [
    "AlreadyExists",
    "NotFound",
    "ObjectInfo",
    "OutcomeUnknown",
    "Store",
    "Unconditional",
    "check_size",
    "open_store",
    "read_url",
]


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
