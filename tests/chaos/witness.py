"""One who looks on: sees every commit appear in storage, past every fault, and trusts nobody's word."""

import hashlib
import threading
import time
from types import TracebackType

from nisynth.errors import StorageError
from nisynth.storage import NotFound, Store
from tests.chaos.injectors import Injector

LOOK_EVERY_S = 0.05


class Witness:
    """Looks at the store many times a second while the `with` block runs, and lets the injector react.

    seen: the digest of each commit by key, as it was when it was first seen.
    """

    def __init__(self, store: Store, injector: Injector) -> None:
        self.seen: dict[str, str] = {}
        self._store, self._injector = store, injector
        self._faults_s: list[float] = []
        self._commits_s: list[float] = []
        self._looked = False
        self._end = threading.Event()
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if self._trouble is not None and error is None:
            raise self._trouble

    def struck(self, faults: int) -> None:
        """Learns how many faults there were until now; those that are new happened now."""
        self._faults_s += [time.monotonic()] * (faults - len(self._faults_s))

    @property
    def faults(self) -> int:
        return len(self._faults_s)

    def recovery_s(self, end_s: float) -> tuple[float, float]:
        """Returns the longest time from a fault to the next commit (or the run's end), and that from the
        last fault to the run's end."""
        nexts = [min([c for c in self._commits_s if c > f] or [end_s]) - f for f in self._faults_s]
        return max(nexts, default=0.0), end_s - max(self._faults_s, default=end_s)

    def changed(self) -> int:
        """Returns how many commits that were once seen are now gone or other than they were."""
        return sum(self._digest(key) != digest for key, digest in self.seen.items())

    def _watch(self) -> None:
        try:
            while not self._end.wait(LOOK_EVERY_S):
                self._look()
            self._look()
        except BaseException as error:  # raised where the run is waited for
            self._trouble = error

    def _look(self) -> None:
        self.struck(self._injector.count())
        try:
            keys = {info.key for info in self._store.list("commits/")}
            for key in sorted(keys - self.seen.keys()):
                self.seen[key] = self._digest(key)
                if self._looked:
                    self._commits_s.append(time.monotonic())
            self._looked = True
        except StorageError:  # the server is down, and that may be the point
            pass
        self._injector.react(len(self.seen))

    def _digest(self, key: str) -> str:
        try:
            return hashlib.sha256(self._store.get(key)).hexdigest()
        except NotFound:
            return "gone"
