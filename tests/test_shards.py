"""Shards: round trips are exact, the bytes are a pure function of the batch, the ecosystem opens them."""

import hashlib
import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nisynth.batch import ImageBatch, Task
from nisynth.errors import ConfigError
from nisynth.images import Normalization
from nisynth.shards import OutputConfig, Shard, decode, encode, to_parquet

CLASSES = ("plane", "car", "bird")
NORMALIZATION = Normalization(mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
PARQUET = OutputConfig()
NPZ = OutputConfig(format="npz")


def make_batch(size: int = 6, rows: int | None = None, side_px: int = 8, task: int = 12) -> ImageBatch:
    generator = torch.Generator().manual_seed(task)
    labels = torch.arange(size) % len(CLASSES)
    images = torch.randn(size, 3, side_px, side_px, generator=generator)
    return ImageBatch(Task(task, 1, labels.numpy(), size if rows is None else rows), images, labels)


def encoded(output: OutputConfig, batch: ImageBatch | None = None) -> bytes:
    return encode(batch or make_batch(), output, NORMALIZATION, CLASSES)


def decoded(data: bytes, format: Any, **options: Any) -> Shard:
    return decode(data, format, normalization=NORMALIZATION, **options)


@pytest.mark.parametrize("pixels", ["clamp", "minmax"])
def test_parquet_round_trip_is_exact(pixels: Any) -> None:
    batch = make_batch()
    shard = decoded(encode(batch, OutputConfig(pixels=pixels), NORMALIZATION, CLASSES), "parquet")
    assert shard.images.pixels.dtype == torch.uint8
    assert shard.images.pixels.is_contiguous()
    assert torch.equal(shard.images.pixels, NORMALIZATION.to_pixels(batch.images, pixels))
    assert torch.equal(shard.images.labels, batch.labels)
    assert shard.images.labels.dtype == torch.int64
    assert shard.normalized is None
    assert shard.task == 12


@pytest.mark.parametrize("pixels", ["clamp", "minmax"])
def test_npz_keeps_the_exact_floats(pixels: Any) -> None:
    batch = make_batch()
    shard = decoded(encoded(NPZ, batch), "npz", pixels=pixels)
    assert shard.normalized is not None
    assert torch.equal(shard.normalized, batch.images)
    assert torch.equal(shard.images.pixels, NORMALIZATION.to_pixels(batch.images, pixels))
    assert torch.equal(shard.images.labels, batch.labels)
    assert shard.task == 12


@pytest.mark.parametrize("output", [PARQUET, NPZ], ids=["parquet", "npz"])
def test_images_need_not_be_square_and_rows_are_cut(output: OutputConfig) -> None:
    images = torch.randn(5, 3, 4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 1, 0, 2, 1])
    data = encoded(output, ImageBatch(Task(0, 1, labels.numpy(), 2), images, labels))
    shard = decoded(data, output.format)
    assert torch.equal(shard.images.pixels, NORMALIZATION.to_pixels(images[:2]))
    assert shard.images.labels.tolist() == [2, 1]


@pytest.mark.parametrize("output", [PARQUET, NPZ], ids=["parquet", "npz"])
def test_a_shard_holds_only_the_rows_the_task_keeps(output: OutputConfig) -> None:
    whole, last = make_batch(), make_batch(rows=1)
    shard = decoded(encoded(output, last), output.format)
    assert shard.images.pixels.shape == (1, 3, 8, 8)
    assert torch.equal(shard.images.pixels, decoded(encoded(output, whole), output.format).images.pixels[:1])


@pytest.mark.parametrize("output", [PARQUET, NPZ], ids=["parquet", "npz"])
def test_the_same_batch_gives_the_same_bytes(output: OutputConfig) -> None:
    assert encoded(output) == encoded(output)
    assert encoded(output) != encoded(output, make_batch(task=13))


def test_stored_png_holds_the_same_images_in_other_bytes() -> None:
    stored = OutputConfig(png="stored")
    assert encoded(stored) == encoded(stored) != encoded(PARQUET)
    assert torch.equal(
        decoded(encoded(stored), "parquet").images.pixels, decoded(encoded(PARQUET), "parquet").images.pixels
    )
    with pytest.raises(ConfigError, match=r"output\.png: 'stored' has no effect on npz"):
        OutputConfig(format="npz", png="stored")


def test_npz_bytes_are_pinned() -> None:
    labels = torch.tensor([1, 0])
    batch = ImageBatch(Task(7, 1, labels.numpy(), 2), torch.arange(24.0).reshape(2, 3, 2, 2), labels)
    assert hashlib.sha256(encoded(NPZ, batch)).hexdigest() == (
        "ae439defbd0b354c5dd1ea0410fdc177308ab5fe8591e9887f89c1c8d8a9fc59"
    )


def test_npz_shards_of_earlier_versions_have_no_mean_std_and_classes() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(encoded(NPZ))) as new, zipfile.ZipFile(sink, "w") as old:
        for name in ("images.npy", "labels.npy", "task.npy", "index_in_task.npy"):
            old.writestr(name, new.read(name))
    assert torch.equal(
        decoded(sink.getvalue(), "npz").images.pixels, decoded(encoded(NPZ), "npz").images.pixels
    )


@pytest.mark.parametrize("output", [PARQUET, NPZ], ids=["parquet", "npz"])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_class_name_is_a_bug_of_the_method(output: OutputConfig, label: int) -> None:
    labels = torch.tensor([0, label])
    batch = ImageBatch(Task(0, 1, labels.numpy(), 2), torch.zeros(2, 3, 4, 4), labels)
    with pytest.raises(ValueError, match="3 classes"):
        encoded(output, batch)


def test_npz_needs_a_normalization() -> None:
    with pytest.raises(ValueError, match="normalization"):
        decode(encoded(NPZ), "npz")


def test_the_parquet_schema_is_the_one_that_datasets_decodes() -> None:
    file = pq.ParquetFile(io.BytesIO(encoded(PARQUET)))
    schema = file.schema_arrow
    assert schema.names == ["image", "label", "task", "index_in_task"]
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert [schema.field(name).type for name in schema.names[1:]] == [pa.int64()] * 3
    assert json.loads(schema.metadata[b"huggingface"]) == {
        "info": {
            "features": {
                "image": {"_type": "Image"},
                "label": {"names": ["plane", "car", "bird"], "_type": "ClassLabel"},
                "task": {"dtype": "int64", "_type": "Value"},
                "index_in_task": {"dtype": "int64", "_type": "Value"},
            }
        }
    }
    assert file.read()["image"].to_pylist()[3]["path"] == "00000012-0003.png"


def test_datasets_decodes_images_and_label_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    paths = []
    for task in (0, 1):
        paths.append(tmp_path / f"{task}.parquet")
        paths[-1].write_bytes(encoded(PARQUET, make_batch(task=task)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another library's deprecations are not this test's subject
        found = datasets.load_dataset(
            "parquet",
            data_files=[str(path) for path in paths],
            split="train",
            cache_dir=str(tmp_path / "cache"),
        )
    assert found.features["label"].names == list(CLASSES)
    assert found["task"][:] == [0] * 6 + [1] * 6
    expected = NORMALIZATION.to_pixels(make_batch(task=1).images)[2].permute(1, 2, 0)
    assert np.array_equal(np.asarray(found[8]["image"]), expected.numpy())
    assert found[8]["label"] == 2


def test_pandas_and_numpy_read_the_same(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(io.BytesIO(encoded(PARQUET)))
    expected = NORMALIZATION.to_pixels(make_batch().images).permute(0, 2, 3, 1).numpy()
    images = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in frame["image"]]
    assert np.array_equal(np.stack(images), expected)
    assert frame["label"].tolist() == [0, 1, 2, 0, 1, 2]
    with np.load(io.BytesIO(encoded(NPZ)), allow_pickle=False) as arrays:
        names = ["classes", "images", "index_in_task", "labels", "mean", "std", "task"]
        assert sorted(arrays) == names
        assert arrays["classes"].tolist() == list(CLASSES)
        assert np.array_equal(arrays["images"], make_batch().images.numpy())
        assert int(arrays["task"]) == 12


def test_to_parquet_keeps_metadata() -> None:
    table = pa.table({"task": [1, 2]}).replace_schema_metadata({"k": "v"})
    data = to_parquet(table)
    assert pq.read_table(io.BytesIO(data)).equals(table, check_metadata=True)
    assert to_parquet(table) == data
