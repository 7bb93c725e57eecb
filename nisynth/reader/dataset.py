"""A run as a torch dataset: whole in memory, image by image, or as a stream.

Imports without ray, pydantic and datasets; boto3 only where the URL is s3://.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nisynth.commits import Run
from nisynth.commits.records import ManifestRow
from nisynth.commits.seal import read_commits, read_manifest
from nisynth.errors import ConfigError, DataError, IncompleteRun, counted
from nisynth.images import LabelledImages, Normalization
from nisynth.reader.cursor import Cursor, rank_and_world_size
from nisynth.reader.follow import FollowConfig, Follower
from nisynth.reader.order import LANES, Batches, sequence
from nisynth.reader.sampler import ElasticBatchSampler
from nisynth.reader.source import RAM_BYTES, ShardSource
from nisynth.reader.stream import PREFETCH_BYTES, Stream, read_ahead
from nisynth.reader.view import View, check_rows
from nisynth.series.run import open_rounds
from nisynth.storage import open_store
from nisynth.storage.cache import default_folder
from nisynth.storage.decoded import DecodedCache

READERS = 8
Transform = Callable[[Tensor], Any]


def open_dataset(
    url: str,
    *,
    allow_partial: bool = False,
    cache: str | Path | Literal[False] | None = None,
    cache_bytes: int | None = None,
    ram_bytes: int = RAM_BYTES,
    transform: Transform | None = None,
    follow: bool | FollowConfig = False,
    rounds: int | None = None,
) -> "SyntheticDataset":
    """Returns the images of the run or series at `url` as a map-style torch dataset; reads manifests alone.

    allow_partial: also a run that is not complete, with what is committed now. follow: also a run that
    still grows: each epoch of a stream or sampler reads what is committed when it begins, see
    `FollowConfig`. cache: the folder that keeps decoded shards, `$XDG_CACHE_HOME/nisynth` by default; False
    for none. cache_bytes: its cap, by default 50 GB or half of the disk's free space. ram_bytes: of shards
    that no disk keeps. rounds: of a series, its first rounds alone. transform: applied to the uint8
    `(3, H, W)` tensor of an image when it is asked for.
    Raises IncompleteRun, PlanMismatch (no run there), DataError (a damaged manifest), StorageError.
    """
    run = open_rounds(url, rounds)
    follower = None
    if follow:
        follower = Follower(run, follow if isinstance(follow, FollowConfig) else FollowConfig())
        view = follower.view()
    else:
        partial = allow_partial and not run.is_sealed()
        view = View(_committed(run) if partial else read_manifest(run))
        check_rows(run, view.shards, partial=partial)
    folder = None if cache is False or cache_bytes == 0 else Path(cache or default_folder())
    # The whole set of a local run is decoded as fast as it is read from a cache: keep no second copy of it.
    keep_loaded = cache is not None or url.startswith("s3://")
    settings = _Settings(folder, cache_bytes, ram_bytes, keep_loaded, transform)
    return SyntheticDataset(run, view, settings, follower)


@dataclass(frozen=True)
class _Settings:
    """The arguments of `open_dataset` that do not name the run."""

    cache: Path | None
    cache_bytes: int | None
    ram_bytes: int
    keep_loaded: bool
    transform: Transform | None


class SyntheticDataset(Dataset[Any]):
    """N images with labels, in the run's order: `ds[i]` is a uint8 tensor `(3, H, W)` and an int.

    shards: what it consists of, by task. complete: false for a partial view of a run. follows: true while
    the view grows with the run. Single images are read through the cache, unless `load` has the set in
    memory; workers of a DataLoader share either.
    """

    def __init__(self, run: Run, view: View, settings: _Settings, follower: Follower | None = None) -> None:
        plan = run.plan
        self.url = run.store.url
        self.view = view
        self.fingerprint = plan.fingerprint
        self.classes = plan.classes
        self.num_classes = plan.num_classes
        self.normalization: Normalization = plan.normalization
        self.input_px = plan.input_px
        self.transform = settings.transform
        self._plan, self._settings, self._follower = plan, settings, follower
        self._kind = type(run)
        self._joined = {row.task: 0 for row in view.shards}
        self._epochs_begun = 0
        self._loaded: LabelledImages | None = None
        self._sources: dict[int, ShardSource] = {}

    def __len__(self) -> int:
        return len(self.view)

    def __repr__(self) -> str:
        part = "" if self.complete else f", {len(self.shards):,} of {counted(self._plan.num_tasks, 'shard')}"
        return (
            f"SyntheticDataset({self.url!r}: {counted(len(self), 'image')}, {self.input_px}x{self.input_px},"
            f" {self.num_classes} classes{part}{', in memory' if self._loaded is not None else ''})"
        )

    @property
    def shards(self) -> tuple[ManifestRow, ...]:
        return self.view.shards

    @property
    def complete(self) -> bool:
        return len(self.view.shards) == self._plan.num_tasks

    @property
    def content_sha256(self) -> str:
        """The sha256 of the list of shards with theirs: equal for equal images, whatever made them."""
        return self.view.content_sha256

    @cached_property
    def targets(self) -> Tensor:
        """The labels of all images, int64 `(N,)`; no image is read, unless labels were observed."""
        if self._plan.observes_labels:
            return torch.cat([self.source.open(row)[1] for row in self.shards])
        rows = [self._plan.labels(row.task)[: row.rows] for row in self.shards]
        return torch.from_numpy(np.concatenate(rows))

    @overload
    def __getitem__(self, index: int) -> tuple[Any, int]: ...
    @overload
    def __getitem__(self, index: slice) -> Any: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index}: the dataset has images 0..{len(self) - 1}")
        pixels, labels = self._gathered([index % len(self)])
        return (pixels[0] if self.transform is None else self.transform(pixels[0])), int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Returns these images in one copy, as `LabelledImages`; with a transform, a list of (image, label).

        A DataLoader calls this for each batch; `nisynth.collate` makes tensors of either.
        """
        pixels, labels = self._gathered(indices)
        if self.transform is None:
            return LabelledImages(pixels, labels)
        return [(self.transform(image), label) for image, label in zip(pixels, labels.tolist(), strict=True)]

    def load(self, on_shard: Callable[[int, int], None] | None = None) -> LabelledImages:
        """Returns all images with their labels, decoded once and then kept.

        Memory is their tensor and a few shards. on_shard: called with (shards decoded, shards in all).
        Raises DataError, naming the shard and the cure; StorageError.
        """
        if self._loaded is None:
            self._loaded = self._decode_all(on_shard)
        return self._loaded

    def read_shard(self, number: int) -> LabelledImages:
        """Returns the images of `shards[number]`, checked and decoded."""
        found = self.source.read(self.shards[number], keep=self._settings.keep_loaded)
        return LabelledImages(*found, self.classes, self.url)

    def warm(self, on_shard: Callable[[int, int], None] | None = None) -> None:
        """Fetches and decodes every shard into the cache, where every later reading finds it.

        Raises ConfigError where the cache cannot hold the set, or there is none; StorageError where its disk
        did not take a shard; DataError.
        """
        self.source.check_holds(self.decoded_bytes)
        self._each_shard(lambda number: self.source.read(self.shards[number]), on_shard)
        self.source.check_took_all()

    def stream(
        self,
        batch_size: int = 256,
        *,
        seed: int = 0,
        shuffle: bool = True,
        window: int | None = None,
        lanes: int = LANES,
        drop_last: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        threads: int | None = None,
        prefetch_bytes: int = PREFETCH_BYTES,
        device: torch.device | str | None = None,
    ) -> Stream:
        """Returns the set as a stream of batches of this rank; memory does not grow with the set.

        batch_size: of all ranks together. window: how many images are shuffled among each other, by
        default 1 GiB of pixels or the whole set; lanes: how many places of the shuffled set a batch draws
        from. drop_last: leave out a last batch that is not full; False cuts it to a multiple of the
        ranks. rank, world_size: by default torch.distributed's, RANK and WORLD_SIZE, or one process.
        threads, prefetch_bytes: how many fetch and decode, how far ahead. device: batches are pinned for
        a CUDA device. Raises ConfigError.
        """
        cursor = Cursor(self, seed=seed, shuffle=shuffle, window=window, lanes=lanes)
        batches = Batches(len(self), batch_size, *rank_and_world_size(rank, world_size), drop_last)
        return Stream(cursor, batches, threads=threads, prefetch_bytes=prefetch_bytes, device=device)

    def sampler(
        self,
        batch_size: int = 256,
        *,
        seed: int = 0,
        shuffle: bool = True,
        window: int | None = None,
        lanes: int = LANES,
        drop_last: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> ElasticBatchSampler:
        """Returns the same order as a batch sampler: `DataLoader(ds, batch_sampler=..., collate_fn=collate)`.

        Arguments as for `stream`.
        """
        cursor = Cursor(self, seed=seed, shuffle=shuffle, window=window, lanes=lanes)
        batches = Batches(len(self), batch_size, *rank_and_world_size(rank, world_size), drop_last)
        return ElasticBatchSampler(cursor, batches)

    def sequence(self, epoch: int, batch_size: int, seed: int = 0) -> Tensor:
        """Returns the images of an epoch, int64 `(M,)`, batch by batch: what `stream` shows to its ranks.

        Each of W ranks takes the next W-th of every batch. Images that fill no batch are left out.
        """
        order = Cursor(self, seed=seed, shuffle=True, window=None, lanes=LANES).order()
        return torch.from_numpy(sequence(order, epoch, batch_size))

    def read_ahead(self, steps: Sequence[Tensor], *, pinned: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields pixels and labels of the images that each step names, read ahead of the caller.

        pinned: in memory that a CUDA device copies from. Raises DataError, StorageError.
        """
        return read_ahead(self.source, self.view, [step.numpy() for step in steps], pinned=pinned)

    @property
    def decoded_bytes(self) -> int:
        """What all pixels take in memory."""
        return 3 * self.input_px**2 * self.num_images_at_end

    @property
    def num_images_at_end(self) -> int:
        """How many images there are once the set grows no more: `len`, unless the run is followed."""
        return self._plan.num_images if self.follows else len(self)

    @property
    def follows(self) -> bool:
        """True where the view may still change, or has: a reader's state then names its tasks."""
        return self._follower is not None

    @property
    def seen(self) -> dict[int, int]:
        """How many epochs each task's images were read in, this one included; for a run that is followed."""
        return {task: self._epochs_begun - first for task, first in self._joined.items()}

    def epochs(self, until: Literal["sealed"] = "sealed", start: int = 0) -> Iterator[int]:
        """Yields epoch numbers until one was read over the sealed run; for a run that is followed."""
        while True:
            yield start
            start += 1
            if self.complete:
                return

    def refresh(self, epoch: int, *, whole: bool = False) -> None:
        """Takes up what a followed run has committed, as `epoch` begins; whole: waits for its end.

        Raises IncompleteRun when a run that must be whole makes no progress, DataError, StorageError.
        """
        if self._follower is not None:
            self._show(self._follower.view(whole=whole), self._joined, epoch)
        self._epochs_begun = max(self._epochs_begun, epoch + 1)

    def return_to(self, joined: Mapping[int, int], epoch: int) -> None:
        """Goes back to the view of these tasks (with the epoch in which each joined). Raises DataError."""
        if self._follower is None:
            raise DataError(
                f"{self.url}: this state is of a run that was followed; open it with follow=True to resume"
            )
        self._show(self._follower.view_of(sorted(joined)), joined, epoch)
        self._epochs_begun = epoch + 1

    @property
    def joined(self) -> Mapping[int, int]:
        """The epoch in which each task joined the view; for a run that is followed."""
        return self._joined

    @property
    def source(self) -> ShardSource:
        """The decoded shards; every process has its own, since threads and connections do not travel."""
        process = os.getpid()
        if process not in self._sources:
            settings = self._settings
            cache = None if settings.cache is None else DecodedCache(settings.cache, settings.cache_bytes)
            run = self._kind(open_store(self.url), self._plan)
            # Several threads may come first together; one's is taken by all. A fork must find no lock held.
            self._sources.setdefault(process, ShardSource(run, cache, settings.ram_bytes))
        return self._sources[process]

    def __getstate__(self) -> dict[str, Any]:
        if self._follower is not None:
            raise ConfigError(f"{self.url}: a followed run cannot be sent to another process; open it there")
        return {**self.__dict__, "_sources": {}}

    def _show(self, view: View, joined: Mapping[int, int], epoch: int) -> None:
        if view.content_sha256 != self.view.content_sha256:
            self.view, self._loaded = view, None
            self.__dict__.pop("targets", None)
        self._joined = {row.task: joined.get(row.task, epoch) for row in view.shards}

    def _gathered(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = np.asarray(indices, dtype=np.int64)
        if self._loaded is None:
            return self.source.gather(self.view, chosen)
        at = torch.from_numpy(chosen)
        pixels, labels = self._loaded.pixels, self._loaded.labels
        # Five times as fast over rows of 3*H*W bytes as over (3, H, W).
        flat = pixels.view(len(pixels), -1).index_select(0, at)
        return flat.view(-1, *pixels.shape[1:]), labels[at]

    def _decode_all(self, on_shard: Callable[[int, int], None] | None) -> LabelledImages:
        pixels = torch.empty((len(self), 3, self.input_px, self.input_px), dtype=torch.uint8)
        labels = torch.empty(len(self), dtype=torch.int64)

        def fill(number: int) -> None:
            end = int(self.view.ends[number])
            place = slice(end - self.shards[number].rows, end)
            images = self.read_shard(number)
            pixels[place], labels[place] = images.pixels, images.labels

        self._each_shard(fill, on_shard)
        return LabelledImages(pixels, labels, self.classes, self.url)

    def _each_shard(self, work: Callable[[int], object], on_shard: Callable[[int, int], None] | None) -> None:
        with ThreadPoolExecutor(READERS) as pool:
            try:
                for done, _ in enumerate(pool.map(work, range(len(self.shards))), 1):
                    if on_shard is not None:
                        on_shard(done, len(self.shards))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _committed(run: Run) -> list[ManifestRow]:
    rows = read_commits(run, sorted(run.committed()))
    if not rows:
        raise IncompleteRun(f"{run.store.url}: no task is committed yet; run it first")
    return rows
