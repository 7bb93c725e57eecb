"""A store inside this process, for tests and dry runs: `memory://name` is shared by its name."""

import threading
from collections.abc import Iterator

from nisynth.storage.keys import check_key, check_prefix
from nisynth.storage.store import AlreadyExists, NotFound, ObjectInfo, check_size

_lock = threading.Lock()
_objects: dict[str, bytes] = {}


class MemoryStore:
    """Objects in a dictionary of this process; `memory://name/folder` is a folder of `memory://name`."""

    retries = 0

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def create(self, key: str, data: bytes) -> None:
        place = self._place(key)
        with _lock:
            if place in _objects:
                raise AlreadyExists(f"{place}: the object exists already")
            _objects[place] = bytes(data)

    def put(self, key: str, data: bytes) -> None:
        place = self._place(key)
        with _lock:
            _objects[place] = bytes(data)

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        place = self._place(key)
        with _lock:
            if place not in _objects:
                raise NotFound(f"{place}: no such object")
            data = _objects[place]
        check_size(place, len(data), max_bytes)
        return data

    def size_bytes(self, key: str) -> int:
        return len(self.get(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        begin = f"{self.url}/{check_prefix(prefix)}"
        with _lock:
            sizes = {place: len(data) for place, data in _objects.items() if place.startswith(begin)}
        skip = len(self.url) + 1
        return (ObjectInfo(place[skip:], sizes[place]) for place in sorted(sizes))

    def delete(self, key: str) -> None:
        place = self._place(key)
        with _lock:
            _objects.pop(place, None)

    def sweep(self) -> int:
        return 0

    def _place(self, key: str) -> str:
        return f"{self.url}/{check_key(key)}"
