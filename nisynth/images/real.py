"""Real image sets, decoded once into memory, to measure synthetic images and networks on.

Read from Parquet in the Hugging Face schema (a file, an object or a folder), a folder of images with one
folder per class (torchvision's ImageFolder layout, read without torchvision), or, with the prefix `hf:`,
through the `datasets` library. Only the fit `wgan_gp` trains on real images; the rest measures on them.
"""

import importlib
import io
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from nisynth.errors import ConfigError, DataError, one_line
from nisynth.images import LabelledImages
from nisynth.storage import NotFound, read_url

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
CHUNK = 256

Encoded = bytes | Path
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
_PART = re.compile(r"[-_.]?\d+(-of-\d+)?$")


def load_real_set(path: str, split: str = "test") -> LabelledImages:
    """Returns the real set at a path, object URL or `hf:NAME`, every image decoded to RGB.

    path: a Parquet file, local or at a URL; a folder of Parquet files, one split or a set of parts; a
    folder with one folder of images per class; a folder written by `Dataset.save_to_disk`; or `hf:NAME`,
    a dataset's name. split: which split, where the source holds several.
    Raises ConfigError when there is no such set here, DataError when it is damaged, of another schema,
    without labels, or when its images differ in size.
    """
    if path.startswith("hf:"):
        return _read_datasets(path, split)
    if "://" in path and not path.startswith("file://"):
        return _read_parquet(path, [path], split)
    place = Path(path.removeprefix("file://")).expanduser()
    if place.is_file():
        return _read_parquet(path, [str(place)], place.stem)
    if not place.is_dir():
        raise ConfigError(
            f"data {path!r}: there is no such file or folder (looked for {place.absolute()}); give a Parquet"
            " file, a folder with one folder per class, or hf:NAME for the `datasets` library"
        )
    if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
        return _read_datasets(path, split)
    if parquets := sorted(place.rglob("*.parquet")):
        parts, name = _one_split(path, parquets, split)
        return _read_parquet(path, [str(part) for part in parts], name)
    return _read_folders(path, place)


def _one_split(path: str, parquets: list[Path], split: str) -> tuple[list[Path], str]:
    """Returns the files of one split, told apart by their names without part numbers."""
    groups: dict[str, list[Path]] = {}
    for file in parquets:
        groups.setdefault(_PART.sub("", file.stem), []).append(file)
    if len(groups) == 1:
        return parquets, next(iter(groups)) or split
    if split in groups:
        return groups[split], split
    names = ", ".join(list(groups)[:5])
    raise ConfigError(
        f"data {path}: the folder holds several sets ({names}), none named {split!r}; name one file"
    )


def _read_parquet(path: str, files: list[str], split: str) -> LabelledImages:
    images: list[Encoded] = []
    labels: list[npt.NDArray[np.int64]] = []
    classes: tuple[str, ...] | None = None
    for file in files:
        table = _table(file)
        found = _class_names(file, table)
        if classes is not None and found != classes:
            raise DataError(f"data {path}: {Path(file).name} names other classes than the files before it")
        classes = found
        part_images, part_labels = _columns(file, table)
        images += part_images
        labels.append(part_labels)
    return _decoded(path, split, images, np.concatenate(labels), classes or ())


def _table(file: str) -> pa.Table:
    try:
        data = read_url(file)
    except NotFound:
        raise ConfigError(f"data {file}: there is no such object; check the URL") from None
    if not data.startswith(b"PAR1"):
        raise ConfigError(f"data {file}: not a Parquet file; name one, or a folder with a folder a class")
    try:
        return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except _ARROW_ERRORS as error:
        raise DataError(f"data {file}: a damaged Parquet file ({one_line(error)})") from None


def _columns(file: str, table: pa.Table) -> tuple[list[Encoded], npt.NDArray[np.int64]]:
    image = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    label = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if image is None or label is None or not _is_image(table.schema.field(image).type):
        raise DataError(
            f"data {file}: columns are {_schema(table)}; needed are a struct<bytes, path> named image or img,"
            " and an integer named label or fine_label"
        )
    column = table[label]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(
            f"data {file}: {label} is {column.type} with {column.null_count} nulls, not plain integers"
        )
    encoded = pc.struct_field(table[image], "bytes")
    if encoded.null_count:
        raise DataError(
            f"data {file}: {encoded.null_count} images are paths to other files; write it with embedded bytes"
        )
    return encoded.to_pylist(), column.cast(pa.int64()).to_numpy()


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    field = kind.field("bytes").type
    return bool(pa.types.is_binary(field) or pa.types.is_large_binary(field))


def _schema(table: pa.Table) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in list(table.schema)[:6]) or "none"


def _class_names(file: str, table: pa.Table) -> tuple[str, ...]:
    """Returns the ClassLabel names that Hugging Face metadata gives the label column; () without any."""
    stated = (table.schema.metadata or {}).get(b"huggingface")
    if stated is None:
        return ()
    try:
        features = json.loads(stated)["info"]["features"]
        label: dict[str, Any] = next((features[name] for name in LABEL_COLUMNS if name in features), {})
        return tuple(str(name) for name in label.get("names") or ())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"data {file}: its `huggingface` metadata is damaged; write the file again") from None


def _read_folders(path: str, place: Path) -> LabelledImages:
    folders = sorted(folder for folder in place.iterdir() if folder.is_dir())
    files = [
        [f for f in sorted(folder.rglob("*")) if f.suffix.lower() in IMAGE_SUFFIXES] for folder in folders
    ]
    if not folders or not any(files):
        raise DataError(
            f"data {path}: holds neither *.parquet nor one folder of images per class; give one of these"
        )
    if empty := next((folder for folder, found in zip(folders, files, strict=True) if not found), None):
        raise DataError(f"data {path}: folder {empty.name!r} holds no images; every class needs some")
    labels = np.repeat(np.arange(len(folders)), [len(found) for found in files]).astype(np.int64)
    encoded: list[Encoded] = [file for found in files for file in found]
    return _decoded(path, place.name, encoded, labels, tuple(folder.name for folder in folders))


def _read_datasets(path: str, split: str) -> LabelledImages:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise ConfigError(f"data {path}: needs the `datasets` library; pip install datasets") from None
    name = path.removeprefix("hf:")
    try:
        if name == path:
            opened = datasets.load_from_disk(path)
            found = opened[split] if isinstance(opened, datasets.DatasetDict) else opened
        else:
            found = datasets.load_dataset(name, split=split)
        found = found.with_format("arrow")
        table = found[:]
    except Exception as error:  # the library raises what its many back ends do
        raise ConfigError(
            f"data {path}: `datasets` cannot load split {split!r} ({one_line(error)}); offline,"
            " give a Parquet file"
        ) from None
    images, labels = _columns(path, table)
    label = next(name for name in LABEL_COLUMNS if name in found.features)
    classes = tuple(getattr(found.features[label], "names", ()))
    return _decoded(path, split, images, labels, classes)


def _decoded(
    path: str, split: str, encoded: Sequence[Encoded], labels: npt.NDArray[np.int64], classes: tuple[str, ...]
) -> LabelledImages:
    if not len(labels):
        raise DataError(f"data {path}: holds no images")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes and high >= len(classes)):
        raise DataError(f"data {path}: labels span {low}..{high}, its classes are 0..{len(classes) - 1}")
    first = _decode(path, 0, encoded[0])
    pixels = np.empty((len(encoded), *first.shape), dtype=np.uint8)

    def fill(start: int) -> None:
        for row in range(start, min(start + CHUNK, len(encoded))):
            image = _decode(path, row, encoded[row])
            if image.shape != first.shape:
                raise DataError(
                    f"data {path}: image {row} is {image.shape[1]}x{image.shape[0]} px, the first is"
                    f" {first.shape[1]}x{first.shape[0]}; resize them to one size"
                )
            pixels[row] = image

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(0, len(encoded), CHUNK)))
    return LabelledImages(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(labels.copy()),
        classes,
        path,
        split,
    )


def _decode(path: str, row: int, encoded: Encoded) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # image decoders raise anything on damaged bytes
        raise DataError(f"data {path}: image {row} cannot be decoded ({one_line(error)})") from None
