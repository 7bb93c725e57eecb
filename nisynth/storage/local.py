"""A store in a local or network folder, with the same contract as an object store.

An object is written to `.tmp/<uuid>` inside the store, flushed to the disk, and only then given its name,
so a reader never sees half of it and a crash leaves nothing but a nameless temporary. `create` names it
with a hard link, which the file system refuses when the name is taken: the one atomic put-if-absent that
works on NFS too. Renaming onto the final name would silently replace another writer's object, and
O_EXCL on the final name would show readers a file that is still being written; both were rejected.

A writer holds a lock on its temporary, which the system takes off when it dies, however it dies. So `sweep`
removes what it can lock, and reads no clock. A live writer can lose its temporary only between making and
locking it, or where another machine's locks are not seen (NFS mounted `nolock`): then its `create` or `put`
fails before anything has a name, and is tried again like any that failed.
"""

import errno
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from nisynth.errors import ConfigError, StorageError
from nisynth.storage.keys import check_key, check_prefix, is_key
from nisynth.storage.store import (
    AlreadyExists,
    NotFound,
    ObjectInfo,
    OutcomeUnknown,
    Unconditional,
    check_size,
)

_TEMPORARY = ".tmp"
_TEMPORARY_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MY_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
_CURES = {
    errno.ENOSPC: "the disk is full; free space there or use another store",
    errno.EDQUOT: "the disk quota is used up; free space there or use another store",
    errno.EROFS: "the file system is read-only; mount it writable or use another store",
    errno.EACCES: "permission denied; grant this user access or use another store",
    errno.EPERM: "permission denied; grant this user access or use another store",
    errno.EEXIST: "a file stands where a folder should be; name another folder",
    errno.ENOENT: "the folder went away while it was being written; nothing may remove it during a run",
    errno.ENOTDIR: "a file stands where a folder should be; name another folder",
    errno.EISDIR: "a folder stands where the object should be; move it away",
    errno.ENAMETOOLONG: "the path is too long for the file system; use a shorter store path",
    errno.EMFILE: "too many open files; raise the limit with `ulimit -n`",
    errno.ESTALE: "the network file system lost the folder; mount it again",
    errno.EIO: "the disk or network file system reports an input/output error; check it",
}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """Objects as files in one folder, which the first write makes. Links to folders are not listed."""

    retries = 0

    def __init__(self, url: str) -> None:
        self._root = path_of(url)
        self.url = str(self._root)
        self._flushed: set[Path] = set()

    def create(self, key: str, data: bytes) -> None:
        final = self._path(key)
        with self._written(final, data) as temporary:
            try:
                os.link(temporary, final)
            except OSError as error:
                # A network file system can repeat a link whose first answer was lost: look, don't believe.
                if not _same_file(temporary, final):
                    raise _link_error(error, final) from error
            try:
                _flush_folder(final.parent)
            except OSError as error:
                raise OutcomeUnknown(f"{final}: written, but not surely on the disk: {error}") from error

    def put(self, key: str, data: bytes) -> None:
        final = self._path(key)
        with self._written(final, data) as temporary, _writing(final):
            os.replace(temporary, final)
            _flush_folder(final.parent)

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        return read_path(self._path(key), max_bytes)

    def size_bytes(self, key: str) -> int:
        path = self._path(key)
        with _reading(path):
            if not path.is_file():
                raise FileNotFoundError(path)
            return path.stat().st_size

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder, slash, _ = check_prefix(prefix).rpartition("/")
        with _reading(self._root):
            if self._root.exists() and not self._root.is_dir():
                raise StorageError(f"{self._root}: {_CURES[errno.EEXIST]}")
        return self._walk(folder + slash, prefix)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with suppress(NotFound), _reading(path):
            path.unlink()
            _flush_folder(path.parent)

    def sweep(self) -> int:
        folder = self._root / _TEMPORARY
        with suppress(NotFound), _reading(folder), os.scandir(folder) as entries:
            left = [
                Path(e)
                for e in entries
                if _TEMPORARY_NAME.fullmatch(e.name) and e.is_file(follow_symlinks=False)
            ]
            return sum(map(_remove_unlocked, left))
        return 0

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        """Yields the files below `folder` (empty or ending in "/") in the order of their whole keys."""
        path = self._root / folder
        # A folder that is not there, or goes away meanwhile, holds nothing.
        found: dict[str, os.DirEntry[str]] = {}
        with suppress(NotFound), _reading(path), os.scandir(path) as entries:
            # A folder sorts as "name/", since that is how its keys continue.
            found = {e.name + "/" * e.is_dir(follow_symlinks=False): e for e in entries}
        for name in sorted(found):
            key = folder + name
            if name.endswith("/"):
                if is_key(key[:-1]) and (key.startswith(prefix) or prefix.startswith(key)):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix) and is_key(key):
                with suppress(NotFound):
                    yield ObjectInfo(key, self.size_bytes(key))

    @contextmanager
    def _written(self, final: Path, data: bytes) -> Iterator[Path]:
        """Gives a temporary file that holds the data, on the disk, and is locked; it is gone afterwards."""
        temporary = self._root / _TEMPORARY / str(uuid.uuid4())
        try:
            with _writing(final):
                self._make_folder(temporary.parent)
                self._make_folder(final.parent)
                with open(temporary, "xb") as file:
                    with suppress(OSError):  # without locks there is no sweep either
                        fcntl.flock(file, _MY_LOCK)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _make_folder(self, folder: Path) -> None:
        """Makes a folder and sees to it that its name, and that of every new parent, is on the disk."""
        chain = [folder, *folder.parents]
        unsure = [p for p in chain if p.is_relative_to(self._root) or not p.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            there = next((parent for parent in folder.parents if parent.is_dir()), folder.parent)
            raise StorageError(
                f"{self._root}: no folder can be made in {there}; name another folder"
            ) from error
        for path in unsure:
            # Flushed even if another process made it: that one may have died before it did so.
            if path not in self._flushed:
                with suppress(PermissionError):
                    _flush_folder(path.parent)
                self._flushed.add(path)


def path_of(url: str) -> Path:
    """Returns the absolute path that a path or `file:///` URL names. Raises ConfigError."""
    scheme, separator, rest = url.partition("://")
    if separator and not rest.startswith("/"):
        raise ConfigError(f"URL {url!r}: name the whole path after three slashes, as in file:///folder")
    path = unquote(rest) if separator else scheme
    if not path or "\0" in path:
        raise ConfigError(f"store {url!r}: not a path; name a folder")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"store {url!r}: the user in it does not exist; give the full path") from None


def read_path(path: Path, max_bytes: int | None = None) -> bytes:
    """Returns the bytes of a file, whatever its name. Raises as `Store.get` does."""
    with _reading(path), open(path, "rb") as file:
        check_size(path, os.fstat(file.fileno()).st_size, max_bytes)
        return file.read()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns the operating system's errors into one line; what is no file under this name is NotFound."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        raise _storage_error(error, path) from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _storage_error(error, path) from error


def _storage_error(error: OSError, path: Path) -> StorageError:
    """Returns one line that names the path, the cause and the cure."""
    cause = _CURES.get(error.errno or 0, f"{error.strerror or error}; check the disk or use another store")
    return StorageError(f"{path}: {cause}")


def _link_error(error: OSError, path: Path) -> StorageError:
    if error.errno == errno.EEXIST:
        return AlreadyExists(f"{path}: the object exists already")
    if error.errno in _NO_LINKS:
        return Unconditional(
            f"{path}: the file system allows no hard links, which several writers need; use another store,"
            " or set execution.single_writer: true"
        )
    return _storage_error(error, path)


def _remove_unlocked(temporary: Path) -> bool:
    """Removes a temporary that nobody writes; what cannot be locked or removed stays."""
    with suppress(OSError), open(temporary, "rb+") as file:
        fcntl.flock(file, _MY_LOCK)
        temporary.unlink()
        return True
    return False


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.stat(), other.stat())
    except OSError:
        return False


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems have no fsync of folders; their names are durable by themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
