"""A folder of files on this machine's disk, named by what they hold, that many processes share under a cap.

Files appear whole, by rename. Whoever makes one holds its lock meanwhile, which the system takes off when
the process dies; there is no daemon, no shared memory and nothing to clean after a crash. `used` counts
the bytes under a lock of its own, so that the cap holds over all processes; the least recently used files
go first. The cache is a convenience: a disk that is full or read-only makes reading slower, never wrong.
"""

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

DEFAULT_CAP_BYTES = 50_000_000_000
TOUCH_EVERY_S = 60.0
STALE_S = 86_400.0
Buffer = bytes | memoryview


def default_folder() -> Path:
    """Returns `$XDG_CACHE_HOME/nisynth`, or `~/.cache/nisynth`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "nisynth"


class CacheFolder:
    """Files by name in a folder that holds at most `cap_bytes` of them.

    cap_bytes: None for 50 GB, or half of what the disk has free if that is less.
    """

    def __init__(self, folder: Path, cap_bytes: int | None = None) -> None:
        self.folder = folder
        self.cap_bytes = _default_cap(folder) if cap_bytes is None else cap_bytes
        self._writing = Lock()

    def path(self, name: str) -> Path:
        """Returns where the file of that name is, or would be."""
        return self.folder / name[:2] / name

    @contextmanager
    def making(self, name: str) -> Iterator[None]:
        """Runs its block while no other process or thread is in one for the same name.

        Where the disk has no locks, or cannot be written, the block runs all the same.
        """
        try:
            descriptor = self._lock(self.path(f"{name}.lock"))
        except OSError:
            yield
            return
        try:
            yield
            with suppress(OSError):
                self.path(f"{name}.lock").unlink()
        finally:
            os.close(descriptor)

    def _lock(self, path: Path) -> int:
        """Returns the descriptor of a lock file that is locked and still has its name. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # The holder before us removed the file: whoever comes now locks another one.
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except FileNotFoundError:
                pass
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def touch(self, name: str) -> None:
        """Notes that the file was used now."""
        with suppress(OSError):
            path = self.path(name)
            if time.time() - path.stat().st_mtime > TOUCH_EVERY_S:
                os.utime(path)

    def write(self, name: str, parts: Iterable[Buffer]) -> bool:
        """Stores a file; false when it does not fit or the disk does not take it."""
        parts = list(parts)
        size = sum(len(part) for part in parts)
        if size > self.cap_bytes:
            return False
        path = self.path(name)
        temporary = path.with_name(f"{uuid.uuid4()}.tmp")
        with self._writing:
            try:
                self._reserve(size, temporary)
                with open(temporary, "r+b") as file:
                    for part in parts:
                        file.write(part)
                with self._counting():
                    os.replace(temporary, path)
            except OSError:
                with suppress(OSError):
                    temporary.unlink()
                return False
        return True

    def drop(self, name: str) -> None:
        """Removes a file that is not what it should be, if it can be."""
        with suppress(OSError):
            self.path(name).unlink()

    @contextmanager
    def _counting(self) -> Iterator[int]:
        """Gives the descriptor of `used`, locked: no process makes or renames a file meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "used", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _reserve(self, size: int, temporary: Path) -> None:
        """Makes an empty file of that size, and counts it, after what must go for it has gone."""
        with self._counting() as descriptor:
            text = os.pread(descriptor, 32, 0)
            # Not a number: something else wrote it, so count the files.
            used = int(text) if text.isdigit() else self.cap_bytes
            if used + size > self.cap_bytes:
                used = self._evict(size)
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                file.truncate(size)  # whoever counts the files sees what it will be
            count = b"%d" % (used + size)
            os.pwrite(descriptor, count, 0)
            os.ftruncate(descriptor, len(count))

    def _evict(self, size: int) -> int:
        """Removes the least recently used files until 90 % of the cap are left; returns the bytes left."""
        files, left, now = [], 0, time.time()
        for path in self.folder.glob("*/*"):
            with suppress(OSError):  # another process was quicker
                found = path.lstat()
                if path.suffix in (".tmp", ".lock"):
                    if now - found.st_mtime > STALE_S:
                        path.unlink()
                        continue
                else:
                    files.append((found.st_mtime_ns, found.st_size, path))
                left += found.st_size
        files.sort()
        for _, file_size, path in files:
            if left + size <= 0.9 * self.cap_bytes:
                break
            with suppress(OSError):
                path.unlink()
                left -= file_size
        return left


class DiskCache:
    """Whole objects by the sha256 of their bytes, in `folder`/sha256."""

    def __init__(self, folder: Path, cap_bytes: int | None = None) -> None:
        self.files = CacheFolder(folder / "sha256", cap_bytes)

    def get(self, sha256: str) -> bytes | None:
        """Returns the bytes of that hash, checked; None when they are not here."""
        try:
            data = self.files.path(sha256).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            self.files.drop(sha256)
            return None
        self.files.touch(sha256)
        return data

    def put(self, sha256: str, data: bytes) -> None:
        """Keeps the bytes, if the disk takes them."""
        self.files.write(sha256, [data])


def _default_cap(folder: Path) -> int:
    existing = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    with suppress(OSError):
        disk = os.statvfs(existing)
        return min(DEFAULT_CAP_BYTES, disk.f_bavail * disk.f_frsize // 2)
    return DEFAULT_CAP_BYTES
