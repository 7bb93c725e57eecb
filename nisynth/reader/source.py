"""Pixels and labels of a run's shards, from the nearest place that has them: memory, disk, store.

A shard is fetched whole, compared with the sha256 of its commit, decoded, held against the plan, and only
then believed; from then on it is a memory map in the cache, shared by all processes of the machine. A
shard that the disk does not take stays in memory, up to a limit.
"""

import hashlib
import logging
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock, Semaphore

import numpy as np
import torch
from torch import Tensor

from nisynth.commits import Run
from nisynth.commits.fetch import fetch_shard
from nisynth.commits.records import ManifestRow
from nisynth.errors import ConfigError, DataError, StorageError
from nisynth.randomness import Int64
from nisynth.reader.view import View
from nisynth.storage.decoded import DecodedCache

RAM_BYTES = 2 << 30
MAX_OPEN = 8192
log = logging.getLogger("nisynth.reader")


@dataclass
class Stats:
    """What reading has cost this process so far.

    images: given to the caller. fetched_bytes: from the store. cache_hits, damaged: shards found in the
    cache, whole or not. decode_s: of all threads together. wait_s: how long the caller waited for batches.
    """

    images: int = 0
    fetched_bytes: int = 0
    cache_hits: int = 0
    damaged: int = 0
    decode_s: float = 0.0
    wait_s: float = 0.0


class ShardSource:
    """The decoded shards of one run; threads may share it."""

    def __init__(self, run: Run, cache: DecodedCache | None, ram_bytes: int = RAM_BYTES) -> None:
        self.run = run
        self.stats = Stats()
        self._cache, self._ram_bytes = cache, ram_bytes
        self._open: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._in_ram: dict[str, int] = {}
        self._max_open = MAX_OPEN
        if cache is not None:
            # A mapped file keeps its disk space when the cache drops it: no more of these than the cap.
            shard_bytes = run.plan.batch_size * 3 * run.plan.input_px**2
            self._max_open = max(1, min(MAX_OPEN, cache.files.cap_bytes // shard_bytes))
        self._lock = Lock()
        # Many threads wait for the store; decoders beyond the processors only take Python's lock in turns.
        self._decoding = Semaphore(os.cpu_count() or 1)
        self._disk_failed = False

    def open(self, row: ManifestRow) -> tuple[Tensor, Tensor]:
        """Returns pixels `(n, 3, H, W)` and labels `(n,)` of a shard, not to be written to.

        Raises DataError, naming the shard and the cure; StorageError.
        """
        with self._lock:
            found = self._open.get(row.sha256)
            if found is not None:
                self._open.move_to_end(row.sha256)
                return found
        found, in_ram = self._load(row)
        self._hold(row.sha256, found, found[0].nbytes if in_ram else 0)
        return found

    def check_holds(self, decoded_bytes: int) -> None:
        """Raises ConfigError where the cache is smaller than so many bytes of pixels, or there is none."""
        cap_bytes = 0 if self._cache is None else self._cache.files.cap_bytes
        if decoded_bytes > cap_bytes:
            raise ConfigError(
                f"cache: the set takes {decoded_bytes / 1e9:,.3f} GB decoded, the cache holds"
                f" {cap_bytes / 1e9:,.3f} GB (by default half of the free disk, at most 50 GB); name a folder"
                " on a larger disk, or read without warming"
            )

    def check_took_all(self) -> None:
        """Raises StorageError where a shard was read that the cache did not take."""
        if self._disk_failed:
            assert self._cache is not None
            raise StorageError(
                f"cache {self._cache.files.folder}: did not take every shard (full or read-only); free space"
                " there, or name another folder"
            )

    def read(self, row: ManifestRow, *, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Returns a copy of a shard's pixels and labels; keep: put it into the cache. Raises as `open`."""
        found = self._cached(row) if self._cache is not None else None
        if found is None:
            found = self._load(row)[0] if keep else self._decode(row)
        return found[0].clone(), found[1]

    def gather(self, view: View, images: Int64, *, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """Returns pixels `(n, 3, H, W)` and labels `(n,)` of the images of these numbers, in this order."""
        px = self.run.plan.input_px
        pixels = torch.empty((len(images), 3, px, px), dtype=torch.uint8, pin_memory=pinned)
        labels = torch.empty(len(images), dtype=torch.int64)
        # Rows of 3*px*px bytes are copied twice as fast as (3, px, px) blocks.
        to_pixels, to_labels = pixels.view(len(images), -1).numpy(), labels.numpy()
        shards, rows = view.places(images)
        by_shard = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[by_shard])) + 1
        bounds = [0, *cuts.tolist(), len(images)]
        for start, end in pairwise(bounds):
            if start == end:
                continue
            members = by_shard[start:end]
            found, of_shard = self.open(view.shards[shards[members[0]]])
            chosen = rows[members]
            to_pixels[members] = found.numpy().reshape(len(found), -1)[chosen]
            to_labels[members] = of_shard.numpy()[chosen]
        return pixels, labels

    def _load(self, row: ManifestRow) -> tuple[tuple[Tensor, Tensor], bool]:
        """Returns the decoded shard, and whether it lies in this process's memory."""
        if self._cache is None:
            return self._decode(row), True
        found = self._cached(row)
        if found is None:
            name = self._name(row)
            with self._cache.files.making(name):
                found = self._cached(row)  # another process may have made it meanwhile
                if found is None:
                    decoded = self._decode(row)
                    if not self._cache.put(name, *decoded):
                        self._say_disk_failed()
                        return decoded, True
                    mapped = self._cache.get(name, row.rows, self.run.plan.input_px)
                    return mapped or decoded, mapped is None
        return found, False

    def _cached(self, row: ManifestRow) -> tuple[Tensor, Tensor] | None:
        assert self._cache is not None
        found = self._cache.get(self._name(row), row.rows, self.run.plan.input_px)
        self.count(cache_hits=int(found is not None))
        return found

    def _name(self, row: ManifestRow) -> str:
        """Returns the sha256 of what decides the pixels: of an NPZ shard, how its floats become them, too."""
        plan = self.run.plan
        if plan.format == "parquet":
            return row.sha256
        return hashlib.sha256(f"{row.sha256} {plan.normalization} {plan.pixels}".encode()).hexdigest()

    def _decode(self, row: ManifestRow) -> tuple[Tensor, Tensor]:
        data = self._fetch(row)
        with self._decoding:
            began = time.perf_counter()
            shard = self.run.decode(row, data)
        self.count(fetched_bytes=len(data), decode_s=time.perf_counter() - began)
        return shard.images.pixels, shard.images.labels

    def _fetch(self, row: ManifestRow) -> bytes:
        try:
            return fetch_shard(self.run.store, row)
        except DataError:
            commit = self.run.read(row.task)
            if commit is not None and commit.attempt == row.attempt:
                raise
            raise DataError(
                f"{self.run.store.url}: task {row.task} was redone since the run was opened; open it again"
            ) from None

    def _hold(self, sha256: str, found: tuple[Tensor, Tensor], ram_bytes: int) -> None:
        with self._lock:
            self._open[sha256] = found
            if ram_bytes:
                self._in_ram[sha256] = ram_bytes
            used = sum(self._in_ram.values())
            while used > self._ram_bytes and len(self._in_ram) > 1:
                oldest = next(name for name in self._open if name in self._in_ram)
                used -= self._in_ram.pop(oldest)
                del self._open[oldest]
            while len(self._open) > self._max_open:
                self._in_ram.pop(self._open.popitem(last=False)[0], None)

    def count(self, **amounts: float) -> None:
        """Adds to fields of `stats`; loader threads and streams of several threads count at once."""
        with self._lock:
            # Read under the lock too, or the thread that read it first may write it last.
            if self._cache is not None:
                self.stats.damaged = self._cache.damaged
            for name, amount in amounts.items():
                setattr(self.stats, name, getattr(self.stats, name) + amount)

    def _say_disk_failed(self) -> None:
        assert self._cache is not None
        with self._lock:
            first, self._disk_failed = not self._disk_failed, True
        if first:
            log.warning(
                "cache %s: cannot store more shards (full, read-only or too small); they are kept in memory,"
                " up to %.1f GB: free space there, or name another folder with cache=",
                self._cache.files.folder,
                self._ram_bytes / 1e9,
            )
