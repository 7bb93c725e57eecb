"""A fixed list of shards: what one epoch reads, and how its images are numbered."""

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from nisynth.commits import Run
from nisynth.commits.records import ManifestRow
from nisynth.errors import DataError
from nisynth.randomness import Int64

MAX_PACKED_BYTES = 1 << 24


class View:
    """Shards sorted by task; image 0 is the first of the first shard, and so on."""

    def __init__(self, shards: Sequence[ManifestRow]) -> None:
        self.shards = tuple(shards)
        self.rows = tuple(row.rows for row in self.shards)
        self.ends: Int64 = np.cumsum(np.array(self.rows, dtype=np.int64))

    def __len__(self) -> int:
        return int(self.ends[-1])

    @cached_property
    def content_sha256(self) -> str:
        """The sha256 of the list of shards with theirs: equal for equal images, whatever made them."""
        lines = "".join(f"{row.task} {row.sha256}\n" for row in self.shards)
        return hashlib.sha256(lines.encode()).hexdigest()

    def places(self, images: Int64) -> tuple[Int64, Int64]:
        """Returns, for each image number, the number of its shard and its row there."""
        shards = np.searchsorted(self.ends, images, side="right").astype(np.int64)
        starts = self.ends - np.array(self.rows, dtype=np.int64)
        return shards, images - starts[shards]


def check_rows(run: Run, rows: Sequence[ManifestRow], *, partial: bool) -> None:
    """Raises DataError when a list of shards is not one that this run's plan could have."""
    tasks = [row.task for row in rows]
    sound = all(run.misfit(row) is None for row in rows)
    if not sound or tasks != sorted(set(tasks)) or not (partial or len(tasks) == run.plan.num_tasks):
        raise DataError(
            f"{run.store.url}: the list of shards does not fit plan.json;"
            f" `nisynth verify {run.store.url}` says where"
        )


def pack(joined: Mapping[int, int]) -> str:
    """Returns tasks, each with the epoch in which it joined the view, as a short string.

    Differences of the sorted tasks, then the epochs, compressed, in base64.
    """
    tasks = sorted(joined)
    steps = np.diff(np.array([0, *tasks], dtype="<u4"))
    epochs = np.array([joined[task] for task in tasks], dtype="<u4")
    return base64.b64encode(zlib.compress(steps.tobytes() + epochs.tobytes(), 9)).decode()


def unpack(text: str) -> dict[int, int]:
    """Returns what `pack` was given. Raises DataError."""
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(text, validate=True), MAX_PACKED_BYTES)
        steps, epochs = np.frombuffer(data, "<u4").reshape(2, -1)
        if not (inflater.eof and len(steps)):
            raise ValueError("too long or empty")
    except (ValueError, TypeError, zlib.error):
        raise DataError("reader state: its `view` is damaged; start over") from None
    return dict(zip(np.cumsum(steps).tolist(), epochs.tolist(), strict=True))
