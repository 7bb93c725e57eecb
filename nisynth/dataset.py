"""Committed shards -> a torch dataset: the only door through which a consumer sees a run.

A shard is the unit of everything here: fetched whole, compared with the sha256 of its commit, decoded,
held against the plan (labels, size), and only then believed. `load` does so for the whole set, once and in
parallel, into one uint8 tensor that a training loop keeps on its device; `read_shard` does it for one,
which is what a later reader of sets larger than memory will go through, in whatever order it likes.

Imports without ray, pydantic and datasets; boto3 only where the URL is s3://.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nisynth.batch import Normalization
from nisynth.commits import Run
from nisynth.commits.fetch import fetch_shard
from nisynth.commits.records import misfit
from nisynth.commits.seal import ManifestRow, read_commits, read_manifest
from nisynth.errors import DataError, IncompleteRun
from nisynth.plan import Plan
from nisynth.storage import open_store
from nisynth.storage.cache import DEFAULT_CAP_BYTES, DiskCache, default_folder

READERS = 8


def open_dataset(
    url: str,
    *,
    allow_partial: bool = False,
    cache: str | Path | None = None,
    cache_bytes: int = DEFAULT_CAP_BYTES,
) -> "SyntheticDataset":
    """Returns the images of the run at `url` as a map-style torch dataset; reads its manifest alone.

    allow_partial: also a run that is not complete, with what is committed now. cache: the folder that
    keeps fetched shards, up to `cache_bytes`; by default runs in object storage have one in
    `$XDG_CACHE_HOME/nisynth`, local runs none. Raises IncompleteRun, PlanMismatch (no run there),
    DataError (a damaged manifest), StorageError.
    """
    run = Run.open(open_store(url))
    partial = allow_partial and not run.is_sealed()
    shards = _committed(run) if partial else read_manifest(run)
    _check_manifest(run, shards, partial)
    folder = Path(cache) if cache is not None else default_folder() if url.startswith("s3://") else None
    kept = DiskCache(folder, cache_bytes) if folder is not None and cache_bytes > 0 else None
    return SyntheticDataset(run.store.url, run.plan, shards, kept)


class SyntheticDataset(Dataset[tuple[Tensor, int]]):
    """N images with labels, in the run's order: `ds[i]` is a uint8 tensor `(3, H, W)` and an int.

    shards: what it consists of, by task. complete: false for a partial view of a run. The first image
    asked for loads the set; workers of a DataLoader share it when it is loaded before they start.
    """

    def __init__(self, url: str, plan: Plan, shards: list[ManifestRow], cache: DiskCache | None) -> None:
        self.url = url
        self.shards = tuple(shards)
        self.fingerprint = plan.fingerprint
        self.classes = plan.classes
        self.num_classes = plan.num_classes
        self.normalization: Normalization = plan.normalization
        self.input_px = plan.input_px
        self.complete = len(shards) == plan.num_tasks
        self._plan, self._cache = plan, cache
        self._ends = list(accumulate(row.rows for row in shards))
        self._loaded: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index}: the dataset has images 0..{len(self) - 1}")
        pixels, labels = self.load()
        return pixels[index], int(labels[index])

    @cached_property
    def content_sha256(self) -> str:
        """The sha256 of the list of shards with theirs: equal for equal images, whatever made them."""
        lines = "".join(f"{row.task} {row.sha256}\n" for row in self.shards)
        return hashlib.sha256(lines.encode()).hexdigest()

    def load(self, on_shard: Callable[[int, int], None] | None = None) -> tuple[Tensor, Tensor]:
        """Returns all images, uint8 `(N, 3, H, W)`, and labels, int64 `(N,)`, decoded once and then kept.

        Memory is that tensor and a few shards. on_shard: called with (shards decoded, shards in all).
        Raises DataError, naming the shard and the cure; StorageError.
        """
        if self._loaded is None:
            self._loaded = self._decode_all(on_shard)
        return self._loaded

    def read_shard(self, number: int) -> tuple[Tensor, Tensor]:
        """Returns images `(n, 3, H, W)` and labels `(n,)` of `shards[number]`, fetched, checked, decoded."""
        row = self.shards[number]
        shard = self._run.decode(row, self._fetch(row))
        return shard.pixels, shard.labels

    def __getstate__(self) -> dict[str, Any]:
        # A store may hold connections; a process that receives the dataset opens its own.
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    @cached_property
    def _run(self) -> Run:
        return Run(open_store(self.url), self._plan)

    def _decode_all(self, on_shard: Callable[[int, int], None] | None) -> tuple[Tensor, Tensor]:
        pixels = torch.empty((len(self), 3, self.input_px, self.input_px), dtype=torch.uint8)
        labels = torch.empty(len(self), dtype=torch.int64)

        def fill(number: int) -> None:
            end = self._ends[number]
            place = slice(end - self.shards[number].rows, end)
            pixels[place], labels[place] = self.read_shard(number)

        with ThreadPoolExecutor(READERS) as pool:
            try:
                for done, _ in enumerate(pool.map(fill, range(len(self.shards))), 1):
                    if on_shard is not None:
                        on_shard(done, len(self.shards))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return pixels, labels

    def _fetch(self, row: ManifestRow) -> bytes:
        kept = self._cache.get(row.sha256) if self._cache is not None else None
        if kept is not None:
            return kept
        data = fetch_shard(self._run.store, row)
        if self._cache is not None:
            self._cache.put(row.sha256, data)
        return data


def _committed(run: Run) -> list[ManifestRow]:
    rows = read_commits(run, sorted(run.committed()))
    if not rows:
        raise IncompleteRun(f"{run.store.url}: no task is committed yet; run it first")
    return rows


def _check_manifest(run: Run, rows: list[ManifestRow], partial: bool) -> None:
    """Raises DataError when the list of shards is not one that this run's plan could have."""
    plan = run.plan
    tasks = [row.task for row in rows]
    sound = all(misfit(row, plan) is None for row in rows)
    if not sound or tasks != sorted(set(tasks)) or not (partial or len(tasks) == plan.num_tasks):
        raise DataError(
            f"{run.store.url}: the list of shards does not fit plan.json;"
            f" `nisynth verify {run.store.url}` says where"
        )
