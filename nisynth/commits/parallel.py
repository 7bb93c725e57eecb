"""Many requests at once: each takes milliseconds, and thousands one after the other take minutes."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

READERS = 16
_AHEAD = 4


def in_parallel(work: Callable[[T], R], items: Iterable[T], workers: int = READERS) -> Generator[R]:
    """Yields `work(item)` in the order of the items, `workers` at once.

    Only a bounded number of items is begun ahead of the one that is due, so that results don't fill the
    memory. When `work` raises, items that have not begun are dropped.
    """
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[R]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > _AHEAD * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
