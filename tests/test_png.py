"""PNG files of a batch: every decoder gives the pixels back, and damage never gives other pixels."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nisynth import png
from nisynth.png import Png, Uint8, decode_pngs, encode_pngs

KINDS: tuple[Png, ...] = ("compressed", "stored")


@pytest.fixture(params=["kornia-rs", "Pillow"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both decoders in turn."""
    if request.param == "Pillow":
        monkeypatch.setattr(png, "decode_fast", None)
    elif vars(png)["decode_fast"] is None:
        pytest.skip("kornia-rs (the extra `fast`) is not installed")
    return str(request.param)


def noise(count: int, height_px: int, width_px: int) -> Uint8:
    rng = np.random.Generator(np.random.PCG64(height_px))
    return rng.integers(0, 256, (count, height_px, width_px, 3), dtype=np.uint8)


def outcome(data: bytes, max_px: int) -> Uint8 | str:
    """Returns the pixels of one file, or the message that refuses it."""
    try:
        return decode_pngs([data], max_px)
    except ValueError as error:
        return str(error)


def planes(pixels: Uint8) -> Uint8:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (32, 32), (150, 145), (146, 150), (224, 224)])
def test_the_pixels_come_back(kind: Png, size: tuple[int, int], decoder: str) -> None:
    pixels = noise(3, *size)
    found = decode_pngs(encode_pngs(pixels, kind), max_px=224)
    assert found.flags.c_contiguous
    assert np.array_equal(found, planes(pixels))


@pytest.mark.parametrize("kind", KINDS)
def test_any_reader_opens_them(kind: Png) -> None:
    pixels = noise(2, 150, 149)
    for data, expected in zip(encode_pngs(pixels, kind), pixels, strict=True):
        image = Image.open(io.BytesIO(data))
        image.verify()  # Adler-32 and CRC, too
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
        assert len(zlib.decompress(b"".join(chunks(data, b"IDAT")))) == 150 * (1 + 3 * 149)


def chunks(data: bytes, kind: bytes) -> list[bytes]:
    """Returns the data of a PNG's chunks of one kind, after their CRCs were checked."""
    found, place = [], 8
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        body = data[place + 4 : place + 8 + size]
        assert struct.unpack_from(">I", data, place + 8 + size)[0] == zlib.crc32(body)
        if body[:4] == kind:
            found.append(body[4:])
        place += 12 + size
    return found


def test_the_layout_of_stored_files_is_fixed() -> None:
    small, large = encode_pngs(noise(1, 32, 32), "stored")[0], encode_pngs(noise(1, 224, 224), "stored")[0]
    assert (len(small), len(large)) == (3172, 150_830)
    assert small[:48] == bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000020000000200802000000fc18eda300000c2b49444154780101200cdff3"
    )
    (stream,) = chunks(large, b"IDAT")
    blocks, place = [], 2
    while place < len(stream) - 4:
        last, size, check = struct.unpack_from("<BHH", stream, place)
        assert size ^ check == 0xFFFF
        blocks.append((last, size))
        place += 5 + size
    assert blocks == [(0, 65_535), (0, 65_535), (1, 19_682)]
    assert stream[:2] == b"\x78\x01"


def test_a_mixed_batch_is_decoded_image_by_image(decoder: str) -> None:
    pixels = noise(4, 9, 9)
    stored, compressed = encode_pngs(pixels, "stored"), encode_pngs(pixels)
    assert np.array_equal(decode_pngs([*stored[:2], *compressed[2:]], 9), planes(pixels))


def test_stored_files_with_filtered_rows_are_decoded_by_the_library(decoder: str) -> None:
    """The same length and headers, but row 1 says "add the row above"."""
    pixels = noise(1, 4, 4)
    rows = bytearray(b"".join(b"\x00" + row.tobytes() for row in pixels[0]))
    rows[13] = 2
    body = b"IDAT\x78\x01" + struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows
    body += struct.pack(">I", zlib.adler32(bytes(rows)))
    data = encode_pngs(pixels, "stored")[0]
    start = data.index(b"IDAT") - 4
    changed = data[: start + 4] + body + struct.pack(">I", zlib.crc32(body)) + data[-12:]
    assert len(changed) == len(data)
    expected = pixels.copy()
    expected[0, 1] += expected[0, 0]
    assert np.array_equal(decode_pngs([changed], 4), planes(expected))


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    cut=st.one_of(st.none(), st.integers(0, 500)),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=3),
)
def test_damaged_files_decode_or_are_refused(
    kind: Png, cut: int | None, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(encode_pngs(noise(1, 8, 8), kind)[0])
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    found = outcome(bytes(data[:cut]), max_px=64)
    if isinstance(found, str):
        assert "\n" not in found
    else:
        assert found.dtype == np.uint8
        assert found.shape[:2] == (1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_checksum_gives_the_same_pixels_or_a_refusal(kind: Png, decoder: str) -> None:
    """Decoders differ in what they check; none may give other pixels."""
    pixels = noise(1, 8, 8)
    data = bytearray(encode_pngs(pixels, kind)[0])
    data[-13] ^= 1  # the last byte of IDAT's CRC
    found = outcome(bytes(data), max_px=8)
    if isinstance(found, str):
        assert "image 0 is not an RGB PNG" in found
    else:
        assert np.array_equal(found, planes(pixels))


def test_a_transparent_colour_and_a_gamma_change_no_pixel(decoder: str) -> None:
    pixels = noise(1, 8, 8)
    data = encode_pngs(pixels)[0]
    for kind, value in ((b"tRNS", bytes(6)), (b"gAMA", struct.pack(">I", 100_000))):
        body = kind + value
        extra = struct.pack(">I", len(value)) + body + struct.pack(">I", zlib.crc32(body))
        assert np.array_equal(decode_pngs([data[:33] + extra + data[33:]], 8), planes(pixels))


def test_real_images_are_equal_in_both_decoders(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq.read_table(next((shared / "data").glob("cifar10*test*.parquet")), columns=["image"])
    encoded = table["image"].combine_chunks().field("bytes").to_pylist()[:1500]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded])
    pngs = encode_pngs(pixels)
    fast = decode_pngs(pngs, 32)
    monkeypatch.setattr(png, "decode_fast", None)
    assert np.array_equal(fast, decode_pngs(pngs, 32))
    assert np.array_equal(fast, decode_pngs(encode_pngs(pixels, "stored"), 32))
    assert np.array_equal(fast, planes(pixels))
