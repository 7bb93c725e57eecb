"""Images -> features, once per (set, network, layer): streamed, kept on disk, mapped from there.

A set is named by the hash of its images, a network by that of its weights, so that what the cache finds never
depends on a URL. A folder of features appears complete, by a rename. Memory is one batch; 256,000 images
of a 512-d layer take 0.5 GB of disk.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nisynth.errors import StorageError
from nisynth.evaluation.networks import EmbeddingNetwork
from nisynth.images import LabelledImages
from nisynth.reader import SyntheticDataset
from nisynth.storage.cache import default_folder

BATCH_SIZE = 256
VERSION = 1
"""Raised when the same images and network give other features."""

Labels = npt.NDArray[np.int64]
OnImages = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N labelled uint8 images in a fixed order, read as often as `batches` is called.

    source, split: what a figure says it was measured on. content: the sha256 of the images. classes: by
    label, () where they have no names.
    """

    source: str
    split: str
    content: str
    count: int
    side_px: int
    classes: tuple[str, ...]
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]

    def __len__(self) -> int:
        return self.count

    @classmethod
    def of_run(cls, dataset: SyntheticDataset) -> "ImageSet":
        """Returns the images of a run, read shard by shard."""
        part = "" if dataset.complete else " so far"
        return cls(
            source=dataset.url,
            split=f"run {dataset.fingerprint[:12]}{part}",
            content=dataset.content_sha256,
            count=len(dataset),
            side_px=dataset.input_px,
            classes=dataset.classes,
            batches=lambda: (
                (shard.pixels, shard.labels) for shard in map(dataset.read_shard, range(len(dataset.shards)))
            ),
        )

    @classmethod
    def of_real(cls, real: LabelledImages) -> "ImageSet":
        """Returns a real set, which is in memory already."""
        return cls(
            source=real.source,
            split=real.split,
            content=hashlib.sha256(real.pixels.numpy().tobytes()).hexdigest(),
            count=len(real),
            side_px=real.pixels.shape[-1],
            classes=real.classes,
            batches=lambda: _batches(real.pixels, real.labels),
        )


@dataclass(frozen=True, eq=False)
class Features:
    """layers: by name, `(N, d)` float32, mapped from disk. labels: `(N,)` int64. Both in the set's order."""

    layers: dict[str, npt.NDArray[np.float32]]
    labels: Labels


def embed(
    images: ImageSet,
    network: EmbeddingNetwork,
    *,
    folder: Path | None = None,
    on_images: OnImages | None = None,
) -> Features:
    """Returns a network's features of every image, computed unless `folder` holds them already.

    folder: where features are kept; None takes the cache that readers of runs have. on_images: called with
    (images done, images in all). Raises StorageError when the folder cannot hold them, and the errors of
    reading the images.
    """
    key = hashlib.sha256(
        f"{VERSION}\n{images.content}\n{images.count}\n{network.sha256}\n{network.resize}\n".encode()
    )
    final = (folder or default_folder() / "features") / key.hexdigest()[:32]
    try:
        return _open(final, images, network)
    except (OSError, ValueError):  # not there, or cut short by a full disk: made again
        pass
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        _compute(temporary, images, network, on_images)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        return _open(final, images, network)
    except OSError as error:
        if final.is_dir():  # another process was quicker
            return _open(final, images, network)
        size_gb = 4e-9 * images.count * sum(network.layers.values())
        raise StorageError(
            f"{final.parent}: cannot hold {size_gb:.2g} GB of features ({error.strerror or error});"
            " set XDG_CACHE_HOME to a folder that can"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def pick(images: ImageSet, places: Sequence[int]) -> dict[int, Tensor]:
    """Returns single images `(3, H, W)` uint8 by their place in the set, in one pass over it."""
    wanted = set(places)
    found, first = {}, 0
    for pixels, _ in images.batches():
        found.update(
            {place: pixels[place - first] for place in wanted & set(range(first, first + len(pixels)))}
        )
        first += len(pixels)
        if len(found) == len(wanted):
            break
    return found


def _compute(folder: Path, images: ImageSet, network: EmbeddingNetwork, on_images: OnImages | None) -> None:
    labels = np.empty(images.count, dtype=np.int64)
    done = 0
    with ExitStack() as stack:
        files = {layer: stack.enter_context((folder / f"{layer}.npy").open("wb")) for layer in network.layers}
        for layer, width in network.layers.items():
            header = {"descr": "<f4", "fortran_order": False, "shape": (images.count, width)}
            np.lib.format.write_array_header_1_0(files[layer], header)
        for shard, shard_labels in images.batches():
            for pixels, part in _batches(shard, shard_labels):
                for layer, values in network.features(pixels).items():
                    files[layer].write(values.numpy().astype("<f4").tobytes())
                labels[done : done + len(part)] = part.numpy()
                done += len(part)
                if on_images is not None:
                    on_images(done, images.count)
    np.save(folder / "labels.npy", labels, allow_pickle=False)


def _open(folder: Path, images: ImageSet, network: EmbeddingNetwork) -> Features:
    """Returns stored features. Raises OSError when there are none, ValueError when they are not these."""
    layers = {}
    for layer, width in network.layers.items():
        array = np.load(folder / f"{layer}.npy", mmap_mode="r", allow_pickle=False)
        if array.shape != (images.count, width) or array.dtype != np.float32:
            raise ValueError(f"{folder}: not the features it should hold")
        layers[layer] = array
    labels: Labels = np.load(folder / "labels.npy", allow_pickle=False)
    if labels.shape != (images.count,):
        raise ValueError(f"{folder}: not the labels it should hold")
    return Features(layers, labels)


def _batches(pixels: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(torch.split(pixels, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)
