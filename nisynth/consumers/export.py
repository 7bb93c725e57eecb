"""A run's images in the formats that other tools read: one part for each shard, the same bytes every time.

imagefolder  LABEL-CLASS/TASK-ROW.png, for torchvision's ImageFolder and everything that copies it
webdataset   TASK.tar of TASK-ROW.png and TASK-ROW.cls
hf           data/train-N-of-M.parquet with an Image and a ClassLabel, for `datasets.load_dataset(DIR)`
npz          TASK.npz of uint8 images (N, H, W, 3), int64 labels and class names, for numpy alone

The folder's journal names the set and, after each part is written, the sha256 of its files. Exporting again
hashes those files, writes what is missing or differs, and so resumes, verifies and mends by one rule.
"""

import fcntl
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nisynth.errors import ConfigError, StorageError
from nisynth.png import encode_pngs
from nisynth.reader import SyntheticDataset
from nisynth.shards import features, to_parquet
from nisynth.storage.local import path_of

JOURNAL = ".nisynth-export"
WRITERS = 4
Files = Iterator[tuple[str, bytes]]


@dataclass(frozen=True, eq=False)
class Part:
    """One shard as a part of an export, number `number` of `num_parts`.

    pixels: `(N, H, W, 3)` uint8. labels: `(N,)` int64. classes: names in label order.
    """

    number: int
    num_parts: int
    task: int
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def name(self, row: int) -> str:
        return f"{self.task:08d}-{row:04d}"


@dataclass(frozen=True)
class Exported:
    """What an export did. images, parts: in the folder now. written: parts that this call wrote."""

    url: str
    folder: str
    format: str
    images: int
    parts: int
    written: int
    complete: bool


def export(
    images: SyntheticDataset, folder: str, format: str, *, on_part: Callable[[int, int], None] | None = None
) -> Exported:
    """Writes all images to a local folder, in one of FORMATS, and returns what was done.

    Parts that are there already and right are kept. on_part: called with (parts right, parts in all).
    Raises ConfigError (no such format; the folder holds something else), DataError (a bad shard),
    StorageError (the store, or the folder's disk).
    """
    if format not in FORMATS:
        raise ConfigError(f"format: unknown format {format!r}; valid: {', '.join(FORMATS)}")
    if "://" in folder and not folder.startswith("file://"):
        raise ConfigError(f"DIR {folder!r}: export writes to this machine; name a local folder")
    root, written = path_of(folder), 0
    identity = {"format": format, "version": 1, "content_sha256": images.content_sha256}
    with (
        _disk_errors(root),
        _journal(root, identity) as (journal, hashes),
        ThreadPoolExecutor(WRITERS) as pool,
    ):
        if format == "imagefolder":
            for label in range(images.num_classes):  # one without images, too: readers number the folders
                (root / _class_folder(label, images.classes)).mkdir(exist_ok=True)

        def make(number: int) -> dict[str, str] | None:
            found = hashes.get(images.shards[number].task)
            return None if found and _holds(root, found) else _write(root, _read(images, number), format)

        try:
            for number, files in enumerate(pool.map(make, range(len(images.shards)))):
                if files is not None:
                    written += 1
                    _append(journal, {"task": images.shards[number].task, "files": files})
                if on_part is not None:
                    on_part(number + 1, len(images.shards))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Exported(images.url, str(root), format, len(images), len(images.shards), written, images.complete)


def _imagefolder(part: Part) -> Files:
    for row, png in enumerate(encode_pngs(part.pixels)):
        yield f"{_class_folder(int(part.labels[row]), part.classes)}/{part.name(row)}.png", png


def _webdataset(part: Part) -> Files:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, png in enumerate(encode_pngs(part.pixels)):
            _add(tar, f"{part.name(row)}.png", png)
            _add(tar, f"{part.name(row)}.cls", str(int(part.labels[row])).encode())
    yield f"{part.task:08d}.tar", sink.getvalue()


def _hf(part: Part) -> Files:
    columns = features(part.classes)
    metadata = {
        "huggingface": json.dumps({"info": {"features": {n: columns[n] for n in ("image", "label")}}})
    }
    names = [f"{part.name(row)}.png" for row in range(len(part.labels))]
    pngs = pa.array(encode_pngs(part.pixels), pa.binary())
    image = pa.StructArray.from_arrays([pngs, pa.array(names)], names=["bytes", "path"])
    schema = pa.schema([("image", image.type), ("label", pa.int64())], metadata=metadata)
    table = pa.Table.from_arrays([image, pa.array(part.labels)], schema=schema)
    yield (
        f"data/train-{part.number:05d}-of-{part.num_parts:05d}.parquet",
        to_parquet(table, compression="NONE"),
    )


def _npz(part: Part) -> Files:
    sink = io.BytesIO()
    np.savez(sink, images=part.pixels, labels=part.labels, classes=np.array(part.classes))
    yield f"{part.task:08d}.npz", sink.getvalue()


FORMATS: dict[str, Callable[[Part], Files]] = {
    "imagefolder": _imagefolder,
    "webdataset": _webdataset,
    "hf": _hf,
    "npz": _npz,
}


def _read(images: SyntheticDataset, number: int) -> Part:
    found = images.read_shard(number)
    pixels = np.ascontiguousarray(found.pixels.permute(0, 2, 3, 1).numpy())
    task, count = images.shards[number].task, len(images.shards)
    return Part(number, count, task, pixels, found.labels.numpy(), tuple(images.classes))


def _write(root: Path, part: Part, format: str) -> dict[str, str]:
    """Writes a part's files and returns their sha256 by name."""
    hashes = {}
    for name, data in FORMATS[format](part):
        (root / name).parent.mkdir(exist_ok=True)
        temporary = root / f"{name}.tmp"  # a reader of the folder sees whole files alone
        temporary.write_bytes(data)
        temporary.replace(root / name)
        hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


def _holds(root: Path, files: dict[str, str]) -> bool:
    try:
        return all(
            hashlib.sha256((root / name).read_bytes()).hexdigest() == sha256 for name, sha256 in files.items()
        )
    except FileNotFoundError:
        return False


@contextmanager
def _journal(root: Path, identity: dict[str, Any]) -> Iterator[tuple[IO[bytes], dict[int, dict[str, str]]]]:
    """Opens the folder's journal for this process alone, and gives what it says is written."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / JOURNAL).exists() and any(root.iterdir()):
        raise ConfigError(f"DIR {root}: not empty, and no export; name another folder")
    with (root / JOURNAL).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"DIR {root}: another export is writing there; wait for its end") from None
        file.seek(0)
        lines = file.read().split(b"\n")
        if lines[-1]:  # cut off by the end of a process: its part is written again
            file.truncate(sum(len(line) + 1 for line in lines[:-1]))
        try:
            entries = [json.loads(line) for line in lines[:-1]]
            hashes = {int(entry["task"]): dict(entry["files"]) for entry in entries[1:]}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"DIR {root}: its {JOURNAL} is damaged; name another folder") from None
        if not entries:
            _append(file, identity)
        elif entries[0] != identity:
            raise ConfigError(f"DIR {root}: holds an export of another set or format; name another folder")
        yield file, hashes


def _append(journal: IO[bytes], entry: dict[str, Any]) -> None:
    journal.write(json.dumps(entry).encode() + b"\n")
    journal.flush()


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or root
        raise StorageError(f"{where}: {error.strerror or error}; mend that and export again") from error


def _class_folder(label: int, classes: tuple[str, ...]) -> str:
    """Returns a name that sorts by label, whatever the class is called."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", classes[label]).strip("_")
    width = max(4, len(str(len(classes) - 1)))
    return f"{label:0{width}d}" + (f"-{plain[:60]}" if plain else "")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time, owner and mode are constants
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
