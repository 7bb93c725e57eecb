"""One batch <-> the bytes of one file: Parquet (8-bit images, any tool opens it) or NPZ (exact floats).

Encoding is a pure function of the batch: no time, no randomness, the same bytes for the same libraries.
Decoding trusts nothing, since a bucket is not ours alone: sizes are checked against the length of the file
before anything is allocated, nothing is unpickled, and whatever is wrong becomes one `DataError`.

Parquet is stored uncompressed and PLAIN: PNG does not compress further, and a reader can then refuse every
encoding in which a small file unfolds into a large table. A footer has no checksum of its own and pyarrow
aborts the process on some damaged ones, so the metadata carries the file's own sha256, computed with its
digits set to zero, and no byte reaches pyarrow before it is checked. Whoever can write to the bucket can give
a bad footer the right hash on purpose: `nisynth.parquet` refuses it. NPZ is a zip of stored arrays, each with
a CRC.
"""

import hashlib
import io
import json
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nisynth.batch import ImageBatch
from nisynth.errors import ConfigError, DataError, one_line
from nisynth.images import LabelledImages, Normalization, Pixels
from nisynth.parquet import check_footer
from nisynth.png import Png, decode_pngs, encode_pngs

if TYPE_CHECKING:  # as in `batch`
    from torch import Tensor

Format = Literal["parquet", "npz"]
Int64 = npt.NDArray[np.int64]

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COLUMNS = {"image": _IMAGE, "label": pa.int64(), "task": pa.int64(), "index_in_task": pa.int64()}
_MEMBERS = {"images": ("<f4", 4), "labels": ("<i8", 1), "task": ("<i8", 0), "index_in_task": ("<i8", 1)}
_EXPLANATIONS = ("mean", "std", "classes")
"""Members of an NPZ shard for those who open it with numpy alone; here the plan is believed instead."""
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00[\x00-\xff]{2}"
    rb"\{'descr': '(<[fi][48])', 'fortran_order': False, 'shape': \(([0-9, ]{0,60})\), \} *\n"
)
_OWN_SHA256 = b"nisynth-shard-1 sha256:"
_BLANK = b"0" * 64
_PARQUET_ERRORS = (pa.ArrowException, ValueError, OSError, KeyError, TypeError, RuntimeError, OverflowError)
_ZIP_ERRORS = (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, RuntimeError, struct.error)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What a shard holds.

    format: `parquet` is PNG images and labels with class names, `npz` the exact normalized
    float32 tensor with mean, std and class names: pixels, 0..1, are images * std + mean.
    pixels: how floats become 8 bits, see `Normalization.to_pixels`. png: `stored` leaves the PNG images of
    a Parquet shard uncompressed, which reads 6 to 8 times faster and takes 1.2 to 1.5 times the bytes; it
    pays from 96 px up, where compressing costs seconds a task.
    """

    format: Format = "parquet"
    pixels: Pixels = "clamp"
    png: Png = field(default="compressed", metadata={"added_later": True})

    def __post_init__(self) -> None:
        if self.format == "npz" and self.png != "compressed":
            raise ConfigError(f"output.png: {self.png!r} has no effect on npz; leave it out or use parquet")


@dataclass(frozen=True, eq=False)
class Shard:
    """A decoded shard. images: what it holds, in the task's order. task: the task's index in the run.

    normalized: `(N, 3, H, W)` float32, the exact images of an NPZ shard; None for Parquet.
    """

    images: LabelledImages
    task: int
    normalized: "Tensor | None" = None


def encode(
    batch: ImageBatch, output: OutputConfig, normalization: Normalization, classes: Sequence[str]
) -> bytes:
    """Returns the shard of the batch's committed part; the same batch gives the same bytes.

    Raises ValueError when a label has no class name (a bug of the method, not of the user).
    """
    images, labels = batch.committed_part
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise ValueError(f"task {batch.task.index}: labels do not fit {len(classes)} classes")
    if output.format == "npz":
        return _encode_npz(images, labels, batch.task.index, normalization, classes)
    pixels = normalization.to_pixels(images, output.pixels)
    return _encode_parquet(pixels, labels, batch.task.index, classes, output.png)


def decode(
    data: bytes,
    format: Format,
    *,
    normalization: Normalization | None = None,
    pixels: Pixels = "clamp",
    num_classes: int | None = None,
    max_px: int = 4096,
    hash_checked: bool = False,
) -> Shard:
    """Returns the shard that `encode` wrote.

    normalization (required for NPZ) and pixels: how an NPZ shard's floats become 8 bits.
    num_classes: labels must lie below it; a Parquet shard is always held to its own class names.
    max_px: the largest height or width accepted. hash_checked: the caller has compared the sha256 of these
    bytes with a commit's, so that a Parquet shard's own sha256 need not be computed.
    Raises DataError for bytes that are no such shard.
    """
    if format == "npz":
        if normalization is None:
            raise ValueError("decoding an NPZ shard needs a normalization")
        shard = _decode_npz(data, normalization, pixels, max_px)
    else:
        shard = _decode_parquet(data, max_px, hash_checked)
    if num_classes is not None and int(shard.images.labels.max()) >= num_classes:
        raise DataError(
            f"{format} shard of task {shard.task}: label {int(shard.images.labels.max())} has no class, "
            f"the run has {num_classes} (0..{num_classes - 1})"
        )
    return shard


def features(classes: Sequence[str]) -> dict[str, Any]:
    """Returns the Hugging Face `datasets` features of a Parquet shard, as its metadata spells them."""
    value = {"dtype": "int64", "_type": "Value"}
    label = {"names": list(classes), "_type": "ClassLabel"}
    return {"image": {"_type": "Image"}, "label": label, "task": value, "index_in_task": value}


def to_parquet(table: pa.Table, *, compression: Literal["zstd", "NONE"] = "zstd") -> bytes:
    """Returns the table as one Parquet file, schema metadata included; same table, same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression=compression, use_dictionary=False, write_statistics=False)
    return sink.getvalue()


def _encode_parquet(pixels: "Tensor", labels: "Tensor", task: int, classes: Sequence[str], png: Png) -> bytes:
    rows = len(labels)
    pngs = encode_pngs(pixels.permute(0, 2, 3, 1).contiguous().numpy(), png)
    paths = [f"{task:08d}-{row:04d}.png" for row in range(rows)]
    numbers = [labels.numpy(), np.full(rows, task, dtype=np.int64), np.arange(rows, dtype=np.int64)]
    metadata = {
        "huggingface": json.dumps({"info": {"features": features(classes)}}),
        "nisynth": _OWN_SHA256 + _BLANK,
    }
    image = pa.StructArray.from_arrays([pa.array(pngs, pa.binary()), pa.array(paths)], fields=list(_IMAGE))
    columns = [image, *(pa.array(column) for column in numbers)]
    table = pa.Table.from_arrays(columns, schema=pa.schema(list(_COLUMNS.items()), metadata=metadata))
    return _with_own_sha256(to_parquet(table, compression="NONE"))


def _with_own_sha256(data: bytes) -> bytes:
    """Returns the file with its own sha256 set. Raises ValueError when there is no place for one."""
    start = data.rindex(_OWN_SHA256) + len(_OWN_SHA256)
    blank = data[:start] + _BLANK + data[start + len(_BLANK) :]
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[start + len(_BLANK) :]


def _decode_parquet(data: bytes, max_px: int, hash_checked: bool) -> Shard:
    import torch

    if data[:4] != b"PAR1":
        raise _damaged("parquet", f"it begins with {data[:12]!r}, not with PAR1")
    if not hash_checked and (_OWN_SHA256 not in data or _with_own_sha256(data) != data):
        raise _damaged("parquet", "its bytes do not match the sha256 in its footer (truncated or altered)")
    try:
        pngs, numbers, metadata = _read_parquet(data)
        num_classes = len(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"])
    except (*_PARQUET_ERRORS, RecursionError) as error:
        raise _damaged("parquet", f"cannot be read ({one_line(error)})") from error
    task = _check_rows("parquet", numbers["task"], numbers["index_in_task"], numbers["label"], num_classes)
    try:
        pixels = torch.from_numpy(decode_pngs(pngs, max_px))
    except ValueError as error:
        raise _damaged("parquet", str(error)) from error
    return Shard(LabelledImages(pixels, torch.from_numpy(numbers["label"])), task)


def _read_parquet(data: bytes) -> tuple[list[bytes], dict[str, Int64], Mapping[bytes, bytes]]:
    check_footer(data)
    # no pre-buffering: it would allocate what the footer claims before the length of the file is looked at
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    _check_columns(file, len(data))
    pngs: list[bytes] = []
    parts: list[dict[str, Int64]] = []
    # few rows at a time, so that a page whose encoding contradicts the footer is caught while it unfolds
    for rows in file.iter_batches(batch_size=64, use_threads=False):
        image_bytes = rows["image"].field("bytes")
        if any(column.null_count for column in (*rows.columns, image_bytes)):
            raise ValueError("a value is null")
        pngs += image_bytes.to_pylist()
        parts.append({name: rows[name].to_numpy() for name in _COLUMNS if name != "image"})
        if sum(map(len, pngs)) > len(data):
            raise ValueError("its images are larger than the file")
    if not pngs:
        raise ValueError("it has no rows")
    numbers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return pngs, numbers, file.schema_arrow.metadata


def _check_columns(file: pq.ParquetFile, length_bytes: int) -> None:
    if {field.name: field.type for field in file.schema_arrow} != _COLUMNS:
        raise ValueError(f"columns are {file.schema_arrow.names}, not {list(_COLUMNS)} of a shard's types")
    if file.metadata.num_row_groups != 1 or file.metadata.num_rows * 8 > length_bytes:
        raise ValueError(f"{file.metadata.num_rows} rows in {file.metadata.num_row_groups} groups")
    group = file.metadata.row_group(0)
    for position in range(group.num_columns):
        chunk = group.column(position)
        if chunk.compression != "UNCOMPRESSED" or not {"PLAIN", "RLE"}.issuperset(chunk.encodings):
            raise ValueError(f"column {chunk.path_in_schema} is {chunk.compression} {chunk.encodings}")


def _encode_npz(
    images: "Tensor", labels: "Tensor", task: int, normalization: Normalization, classes: Sequence[str]
) -> bytes:
    arrays = {
        "images": images.numpy(),
        "labels": labels.numpy(),
        "task": np.array(task, dtype=np.int64),
        "index_in_task": np.arange(len(labels), dtype=np.int64),
        "mean": np.array(normalization.mean, dtype=np.float64),
        "std": np.array(normalization.std, dtype=np.float64),
        "classes": np.array(classes),
    }
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return sink.getvalue()


def _decode_npz(data: bytes, normalization: Normalization, how: Pixels, max_px: int) -> Shard:
    import torch

    try:
        arrays = _read_npz(data)
    except _ZIP_ERRORS as error:
        raise _damaged("npz", f"cannot be read ({one_line(error)})") from error
    floats, labels, index = arrays["images"], arrays["labels"], arrays["index_in_task"]
    rows, channels, height_px, width_px = floats.shape
    if channels != 3 or not (0 < height_px <= max_px and 0 < width_px <= max_px) or rows == 0:
        raise _damaged("npz", f"images have shape {floats.shape}, not (N, 3, up to {max_px}, up to {max_px})")
    if not len(labels) == len(index) == rows:
        raise _damaged("npz", f"{rows} images, {len(labels)} labels, {len(index)} indices")
    if not np.isfinite(floats).all():
        raise _damaged("npz", "images hold values that are not finite")
    task = _check_rows("npz", arrays["task"].reshape(1), index, labels, None)
    normalized = torch.from_numpy(floats)
    images = LabelledImages(normalization.to_pixels(normalized, how), torch.from_numpy(labels))
    return Shard(images, task, normalized)


def _read_npz(data: bytes) -> dict[str, npt.NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        found = sorted(member.filename for member in members)
        # Shards of earlier versions have no explanations.
        if found not in (_npy(*_MEMBERS), _npy(*_MEMBERS, *_EXPLANATIONS)):
            raise ValueError(f"arrays are {[member.filename[:40] for member in members[:8]]}")
        if any(
            member.compress_type != zipfile.ZIP_STORED
            or not member.file_size == member.compress_size <= len(data)
            for member in members
        ):
            raise ValueError("an array is compressed, a shard's are stored")
        contents = {name: archive.read(name) for name in found}  # each compared with its CRC
        return {name: _read_npy(name, contents[f"{name}.npy"]) for name in _MEMBERS}


def _npy(*names: str) -> list[str]:
    return sorted(f"{name}.npy" for name in names)


def _read_npy(name: str, member: bytes) -> npt.NDArray[Any]:
    """Returns a fresh array; numpy's own reader would evaluate the header and allocate what it claims."""
    dtype, num_dimensions = _MEMBERS[name]
    header = _NPY_HEADER.match(member)
    if header is None or header[1].decode() != dtype:
        raise ValueError(f"{name} is not a {dtype} array in npy format 1.0")
    shape = tuple(int(size) for size in header[2].split(b",") if size.strip())
    body = memoryview(member)[header.end() :]
    size_bytes = np.dtype(dtype).itemsize
    for size in shape:
        size_bytes *= size
    if len(shape) != num_dimensions or size_bytes != len(body):
        raise ValueError(f"{name} claims shape {shape}, {size_bytes} bytes, and has {len(body)}")
    return np.frombuffer(body, dtype).reshape(shape).copy()


def _check_rows(format: Format, tasks: Int64, index: Int64, labels: Int64, num_classes: int | None) -> int:
    task = int(tasks[0])
    if task < 0 or bool((tasks != task).any()):
        raise _damaged(format, f"its rows are not of one task ({task}, ...)")
    if not np.array_equal(index, np.arange(len(index))):
        raise _damaged(format, f"index_in_task is not 0..{len(index) - 1}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        raise _damaged(format, f"labels span {low}..{high}, outside its classes")
    return task


def _damaged(format: Format, what: str) -> DataError:
    return DataError(f"{format} shard is damaged or not ours: {what}")
