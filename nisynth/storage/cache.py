"""Objects already fetched, on this machine's disk: a cache by content, with a cap in bytes.

A name is the sha256 of what the file holds, so a hit never depends on a URL, and a file that is not what
its name says is dropped. Files appear whole, by rename, and any number of processes may share a folder.
The least recently used go first. The cache is a convenience: a disk that is full or read-only makes
fetching slower, never wrong, and is no error.
"""

import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path

DEFAULT_CAP_BYTES = 10_000_000_000


def default_folder() -> Path:
    """Returns `$XDG_CACHE_HOME/nisynth`, or `~/.cache/nisynth`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "nisynth"


class DiskCache:
    """Bytes by their sha256 in a folder that holds at most `cap_bytes` of them."""

    def __init__(self, folder: Path, cap_bytes: int = DEFAULT_CAP_BYTES) -> None:
        self.folder = folder / "sha256"
        self.cap_bytes = cap_bytes
        self._unseen_bytes = cap_bytes  # written since the last look; the first write takes one

    def get(self, sha256: str) -> bytes | None:
        """Returns the bytes of that hash, checked; None when they are not here."""
        path = self._path(sha256)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            with suppress(OSError):
                path.unlink()
            return None
        return data

    def put(self, sha256: str, data: bytes) -> None:
        """Keeps the bytes, and removes the least recently used files when the cap is passed."""
        if len(data) > self.cap_bytes:
            return
        path = self._path(sha256)
        temporary = path.with_name(f"{uuid.uuid4()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            return
        self._unseen_bytes += len(data)
        if self._unseen_bytes > self.cap_bytes // 20:
            self._unseen_bytes = 0
            self._evict()

    def _evict(self) -> None:
        """Brings the folder to 90 % of the cap when it is nearer than what is written between two looks."""
        files = []
        for path in self.folder.glob("*/*"):
            with suppress(OSError):  # another process was quicker
                found = path.stat()
                files.append((found.st_mtime_ns, found.st_size, path))
        left = sum(size for _, size, _ in files)
        if left <= 0.95 * self.cap_bytes:
            return
        for _, size, path in sorted(files):
            if left <= 0.9 * self.cap_bytes:
                return
            with suppress(OSError):
                path.unlink()
            left -= size

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256
