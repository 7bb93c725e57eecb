"""Which strings are keys: the names that every backend can hold and none can be led astray by.

A key is a relative path of plain names. What a bucket or folder holds under any other name is not ours:
it is never listed, and asking for it is refused before anything is opened.
"""

import re

from nisynth.errors import StorageError

MAX_KEY_BYTES = 1024
_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_PREFIX = re.compile(r"([A-Za-z0-9._-]+/)*[A-Za-z0-9._-]*")


def is_key(key: str) -> bool:
    """Tells whether every backend can hold an object of this name."""
    return _KEY.fullmatch(key) is not None and len(key) <= MAX_KEY_BYTES and _stays_inside(key)


def check_key(key: str) -> str:
    """Returns the key. Raises StorageError for one that could lead outside its store."""
    if not is_key(key):
        raise StorageError(
            f"key {_shown(key)}: not a name in a store; keys are plain names joined by '/', "
            f"of letters, digits and '._-', without '..', not in .tmp, at most {MAX_KEY_BYTES} bytes"
        )
    return key


def check_prefix(prefix: str) -> str:
    """Returns the beginning of a key, empty for all. Raises StorageError as `check_key` does."""
    if _PREFIX.fullmatch(prefix) is None or len(prefix) > MAX_KEY_BYTES or not _stays_inside(prefix):
        raise StorageError(f"prefix {_shown(prefix)}: no key of a store begins like this")
    return prefix


def _stays_inside(key: str) -> bool:
    names = key.split("/")
    # .tmp is where the local backend keeps what has no name yet; no backend may offer what another cannot.
    return ".." not in key and "." not in names and names[0] != ".tmp"


def _shown(key: str) -> str:
    return repr(key) if len(key) <= 200 else f"{key[:200]!r}..."
