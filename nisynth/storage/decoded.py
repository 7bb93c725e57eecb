"""Decoded shards in the cache folder: pixels and labels by the sha256 of the shard they came from.

A file is an ordinary `.npy` of the pixels, uint8 `(n, 3, H, W)`, so that `np.load` opens it, followed by
the labels (int64) and the sha256 of both. Reading is a memory map: the second touch of an image costs the
copy of its bytes. A map takes no file descriptor, and keeps its file alive when the cache drops it.
"""

import hashlib
import io
import os
import stat
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from nisynth.storage.cache import Buffer, CacheFolder

DIGEST_BYTES = 32


class DecodedCache:
    """Pixels and labels of shards in `folder`/u8. damaged: how many files were not what they should be."""

    def __init__(self, folder: Path, cap_bytes: int | None = None) -> None:
        self.files = CacheFolder(folder / "u8", cap_bytes)
        self.damaged = 0
        self._checked: dict[str, int] = {}
        self._counting = Lock()

    def get(self, sha256: str, rows: int, px: int) -> tuple[Tensor, Tensor] | None:
        """Returns the mapped pixels `(rows, 3, px, px)` and labels `(rows,)`; None when they are not here.

        A file's content is hashed once in each process. What is damaged, or no file, is removed and counted.
        """
        path = self.files.path(_name(sha256))
        try:
            found = path.lstat()
        except OSError:
            return None
        header = _header(rows, px)
        size = len(header) + rows * (3 * px * px + 8) + DIGEST_BYTES
        mapped = None
        if stat.S_ISREG(found.st_mode) and found.st_size == size:
            mapped = self._map(path, header, size, sha256, found.st_ino)
        if mapped is None:
            if not os.path.lexists(path):  # another process dropped it just now
                return None
            with self._counting:
                self.damaged += 1
            self.files.drop(_name(sha256))
            return None
        self.files.touch(_name(sha256))
        pixels = mapped[len(header) : -DIGEST_BYTES - 8 * rows].view(rows, 3, px, px)
        labels = mapped[-DIGEST_BYTES - 8 * rows : -DIGEST_BYTES].clone().view(torch.int64)
        return pixels, labels

    def put(self, sha256: str, pixels: Tensor, labels: Tensor) -> bool:
        """Stores a decoded shard; false when the disk does not take it."""
        content: list[Buffer] = [pixels.contiguous().numpy().data.cast("B"), labels.numpy().tobytes()]
        digest = hashlib.sha256()
        for part in content:
            digest.update(part)
        header = _header(len(pixels), pixels.shape[2])
        return self.files.write(_name(sha256), [header, *content, digest.digest()])

    def _map(self, path: Path, header: bytes, size: int, sha256: str, inode: int) -> Tensor | None:
        try:
            mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        except RuntimeError:  # removed or cut off since it was looked at, or no map is left
            return None
        data = mapped.numpy().data
        if data[: len(header)] != header:
            return None
        if self._checked.get(sha256) != inode:
            digest = hashlib.sha256(data[len(header) : -DIGEST_BYTES]).digest()
            if data[-DIGEST_BYTES:] != digest:
                return None
            self._checked[sha256] = inode
        return mapped


def _name(sha256: str) -> str:
    return f"{sha256}.npy"


def _header(rows: int, px: int) -> bytes:
    """Returns what a version 1 `.npy` file of the pixels begins with."""
    sink = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (rows, 3, px, px)}
    np.lib.format.write_array_header_1_0(sink, shape)
    return sink.getvalue()
