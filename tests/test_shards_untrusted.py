"""Shards: damaged and forged bytes decode equal or end in one clear line, and never cost much memory."""

import hashlib
import io
import json
import pickle
import random
import struct
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nisynth.batch import ImageBatch, Task
from nisynth.errors import DataError
from nisynth.images import Normalization
from nisynth.shards import OutputConfig, Shard, decode, encode, to_parquet

CLASSES = ("plane", "car", "bird")
NORMALIZATION = Normalization(mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
PARQUET = OutputConfig()
NPZ = OutputConfig(format="npz")
OWN_SHA256 = b"nisynth-shard-1 sha256:"


def encoded(output: OutputConfig) -> bytes:
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % len(CLASSES)
    return encode(ImageBatch(Task(12, 1, labels.numpy(), 6), images, labels), output, NORMALIZATION, CLASSES)


def decoded(data: bytes, format: Any, **options: Any) -> Shard:
    return decode(data, format, normalization=NORMALIZATION, **options)


def content(shard: Shard) -> tuple[Any, ...]:
    images = None if shard.normalized is None else shard.normalized.tolist()
    return shard.images.pixels.tolist(), shard.images.labels.tolist(), images, shard.task


def assert_refused(data: bytes, format: Any, words: str = "", **options: Any) -> None:
    with pytest.raises(DataError) as caught:
        decoded(data, format, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert words in message


@pytest.mark.parametrize("format", ["parquet", "npz"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"<!DOCTYPE html>\n<html>AccessDenied</html>",
        b'{"error": "no"}',
        b"PAR1",
        b"PAR1PAR1",
        b"PK\x03\x04",
    ],
    ids=["empty", "zeros", "html", "json", "magic", "magics", "zip magic"],
)
def test_what_is_no_shard_is_refused(format: str, data: bytes) -> None:
    assert_refused(data, format, f"{format} shard is damaged or not ours")


def test_the_other_format_is_refused() -> None:
    assert_refused(encoded(NPZ), "parquet", "not with PAR1")
    assert_refused(encoded(PARQUET), "npz", "not a zip file")


@pytest.mark.parametrize("output", [PARQUET, NPZ], ids=["parquet", "npz"])
def test_truncation_is_refused(output: OutputConfig) -> None:
    data = encoded(output)
    for twentieth in range(20):
        assert_refused(data[: len(data) * twentieth // 20], output.format)
    assert_refused(data[:-1], output.format)


@pytest.mark.parametrize("output", [PARQUET, NPZ], ids=["parquet", "npz"])
def test_flipped_bytes_decode_equal_or_are_refused(output: OutputConfig) -> None:
    data = encoded(output)
    reference = content(decoded(data, output.format))
    rng = random.Random(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(data)
        # the last tenth holds footer and directory, where a flip could change the meaning of the rest
        low = rng.choice((0, len(data) * 9 // 10))
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(low, len(data))] ^= 1 << rng.randrange(8)
        try:
            assert content(decoded(bytes(damaged), output.format)) == reference
        except DataError:
            refused += 1
    assert refused > 400


@pytest.mark.parametrize(
    ("sound", "forged"),
    [
        (b"%\x02\x18\x05label", b"%\x77\x18\x05label"),  # a repetition that Parquet does not have
        (b"%\x02\x18\x05label", b"$\x02\x18\x05label"),  # one of another width, which a reader skips
        (b"%\x02\x18\x05label", b"%\x00\x18\x05label"),  # required, though levels are counted
        (b"\x3c\x29\x06\x19\x26", b"\x3c\x29\x06\x19\x16"),  # one level where two are counted
    ],
)
def test_a_hashed_footer_at_which_pyarrow_ends_the_process_is_refused(sound: bytes, forged: bytes) -> None:
    data = encoded(PARQUET)
    assert sound in data
    assert_refused(rehashed(data.replace(sound, forged, 1)), "parquet", "cannot be read (ValueError: ")


def rehashed(data: bytes) -> bytes:
    """The file's own hash, written from its definition: sha256 of the file with its 64 digits set to zero."""
    head, _, tail = data.rpartition(OWN_SHA256)
    blank = head + OWN_SHA256 + b"0" * 64 + tail[64:]
    return head + OWN_SHA256 + hashlib.sha256(blank).hexdigest().encode() + tail[64:]


def png(mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size).save(sink, "PNG")
    return sink.getvalue()


def forged(
    pngs: Any = None,
    labels: Any = (0, 1),
    tasks: Any = (3, 3),
    index: Any = (0, 1),
    huggingface: Any = None,
    image_type: pa.DataType | None = None,
    **options: Any,
) -> bytes:
    """A sealed Parquet file, by default a shard that decodes."""
    image_type = image_type or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": data, "path": "x.png"} for data in (pngs or [png(), png()])]
    table = pa.table(
        {"image": pa.array(cells, image_type), "label": labels, "task": tasks, "index_in_task": index}
    )
    names = {"info": {"features": {"label": {"names": CLASSES}}}}
    metadata = {"huggingface": json.dumps(huggingface or names), "nisynth": OWN_SHA256 + b"0" * 64}
    sink = io.BytesIO()
    options = {"compression": "NONE", "use_dictionary": False, **options}
    pq.write_table(table.replace_schema_metadata(metadata), sink, **options)
    return rehashed(sink.getvalue())


def test_a_file_s_own_hash_is_what_it_says() -> None:
    assert rehashed(encoded(PARQUET)) == encoded(PARQUET)
    assert decoded(forged(), "parquet").images.labels.tolist() == [0, 1]


def huge_png(side_px: int) -> bytes:
    """A PNG that claims to be `side_px` wide and high, in 60 bytes."""
    small = png()
    return small[:16] + struct.pack(">II", side_px, side_px) + small[24:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (forged(compression="zstd"), "ZSTD"),
        (forged(use_dictionary=True), "DICTIONARY"),
        (forged(use_byte_stream_split=["label"]), "BYTE_STREAM_SPLIT"),
        (forged(row_group_size=1), "2 groups"),
        (forged(labels=(0, 3)), "labels span 0..3"),
        (forged(labels=(-1, 0)), "labels span -1..0"),
        (forged(labels=pa.array([0, None])), "null"),
        (forged(labels=("0", "1")), "columns are"),
        (forged(labels=(0.0, 1.0)), "columns are"),
        (forged(tasks=(3, 4)), "not of one task"),
        (forged(tasks=(-1, -1)), "not of one task"),
        (forged(index=(1, 2)), "index_in_task"),
        (forged(image_type=pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])), "columns are"),
        (forged(image_type=pa.struct([("bytes", pa.binary())])), "columns are"),
        (forged(huggingface=["no"]), "cannot be read"),
        (forged(huggingface={"info": {"features": {"label": {"names": 3}}}}), "cannot be read"),
        (forged(pngs=[png(), None]), "null"),
        (forged(pngs=[png(), b"GIF89a" + b"0" * 60]), "not a PNG"),
        (forged(pngs=[png(), png()[:-30]]), "image 1 is not an RGB PNG"),
        (forged(pngs=[png(), png("L")]), "image 1 is not an RGB PNG"),
        (forged(pngs=[png(), png("RGBA")]), "image 1 is not an RGB PNG"),
        (forged(pngs=[png("P"), png("P")]), "image 0 is not an RGB PNG"),
        (forged(pngs=[png(), png(size=(8, 9))]), "image 1 is not 8x8 px"),
        (forged(pngs=[huge_png(0), png()]), "0x0 px"),
        (forged(pngs=[huge_png(4097), png()]), "4097x4097 px, the largest accepted is 4096"),
        (forged(pngs=[huge_png(2**32 - 1), png()]), "the largest accepted is 4096"),
    ],
)
def test_forged_parquet_is_refused(data: bytes, words: str) -> None:
    assert_refused(data, "parquet", words)


def test_no_rows_are_refused() -> None:
    table = pq.read_table(io.BytesIO(forged())).slice(0, 0)
    assert_refused(rehashed(to_parquet(table, compression="NONE")), "parquet", "cannot be read")


def test_labels_are_held_to_the_classes_of_the_run() -> None:
    for output in (PARQUET, NPZ):
        decoded(encoded(output), output.format, num_classes=3)
        assert_refused(encoded(output), output.format, "label 2 has no class, the run has 2", num_classes=2)


def test_max_px_is_the_callers() -> None:
    decoded(encoded(PARQUET), "parquet", max_px=8)
    assert_refused(encoded(PARQUET), "parquet", "8x8 px, the largest accepted is 7", max_px=7)
    assert_refused(encoded(NPZ), "npz", "up to 7", max_px=7)


def test_flipped_images_under_a_valid_hash_never_crash() -> None:
    data = encoded(PARQUET)
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    rng = random.Random(1)
    refused = 0
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(4, end)] ^= 1 << rng.randrange(8)
        try:
            assert decoded(rehashed(bytes(damaged)), "parquet").images.pixels.shape == (6, 3, 8, 8)
        except DataError:
            refused += 1
    assert refused > 200


def archive(compression: int = zipfile.ZIP_STORED, **members: bytes | None) -> bytes:
    """A zip of npy members, those of a sound shard unless replaced (bytes) or left out (None)."""
    with zipfile.ZipFile(io.BytesIO(encoded(NPZ))) as sound:
        content: dict[str, bytes | None] = {name[:-4]: sound.read(name) for name in sound.namelist()}
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as made:
        for name, data in {**content, **members}.items():
            if data is not None:
                made.writestr(f"{name}.npy", data)
    return sink.getvalue()


def npy(array: Any) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.asarray(array))
    return sink.getvalue()


def claim(shape: str, descr: str = "<f4") -> bytes:
    """An npy file whose header claims a shape that its few bytes do not hold."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\x00" * 64


IMAGES = np.zeros((6, 3, 8, 8), np.float32)
NAN = IMAGES.copy()
NAN[5, 2, 7, 7] = np.nan


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (archive(zipfile.ZIP_DEFLATED), "compressed"),
        (archive(zipfile.ZIP_DEFLATED, images=npy(np.zeros((6, 3, 2048, 2048), np.float32))), "compressed"),
        (archive(labels=None), "arrays are"),
        (archive(extra=b""), "arrays are"),
        (archive(images=claim("(1000000000, 3, 4096, 4096)")), "claims shape"),
        (archive(images=claim("(" + "9" * 50 + ", 3, 1, 1)")), "claims shape"),
        (archive(images=claim("(" + "9" * 5000 + ", 3, 1, 1)")), "not a <f4 array"),
        (archive(images=claim("(1 2, 3, 1, 1)")), "cannot be read"),
        (archive(images=claim("(0, 3, 8, 8)")), "claims shape"),
        (archive(images=claim("__import__('os').abort()")), "not a <f4 array"),
        (archive(images=npy(IMAGES.astype(np.float64))), "not a <f4 array"),
        (archive(images=npy(IMAGES.astype(">f4"))), "not a <f4 array"),
        (archive(images=npy(np.asfortranarray(IMAGES))), "not a <f4 array"),
        (archive(images=npy(IMAGES[:, :2])), "(6, 2, 8, 8)"),
        (archive(images=npy(IMAGES[:0])), "(0, 3, 8, 8)"),
        (archive(images=npy(IMAGES[0])), "claims shape"),
        (archive(images=npy(IMAGES[:5])), "5 images, 6 labels, 6 indices"),
        (archive(images=npy(NAN)), "not finite"),
        (archive(images=npy(np.where(np.isnan(NAN), -np.inf, NAN).astype(np.float32))), "not finite"),
        (archive(images=npy(IMAGES) + b"more"), "claims shape"),
        (archive(labels=npy(np.array([0, 1, 2, 0, 1, -1]))), "labels span -1..2"),
        (archive(labels=npy(np.zeros(6, np.int32))), "not a <i8 array"),
        (archive(index_in_task=npy(np.arange(6) + 1)), "index_in_task"),
        (archive(task=npy(np.int64(-1))), "not of one task"),
        (archive(task=b"\x93NUMPY"), "not a <i8 array"),
    ],
)
def test_forged_npz_is_refused(data: bytes, words: str) -> None:
    assert_refused(data, "npz", words)


class Trap:
    """Unpickling it would run code of the file's author."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


def test_objects_are_never_unpickled() -> None:
    header = (
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (6,), }".ljust(117)
        + b"\n"
    )
    assert_refused(archive(labels=header + pickle.dumps(Trap())), "npz", "not a <i8 array")


def test_nothing_large_is_allocated_for_a_claim() -> None:
    claims = [
        (archive(images=claim("(1000000000, 3, 4096, 4096)")), "npz", "claims shape"),
        (forged(pngs=[huge_png(20_000), png()]), "parquet", "the largest accepted is 4096"),
        (
            forged([huge_png(4096)] * 256, [0] * 256, [3] * 256, list(range(256))),
            "parquet",
            "256 images of 4096x4096 px exceed",
        ),
    ]
    for data, format, words in claims:
        tracemalloc.start()
        try:
            assert_refused(data, format, words)
            assert tracemalloc.get_traced_memory()[1] < 8_000_000
        finally:
            tracemalloc.stop()
