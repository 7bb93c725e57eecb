"""Real test sets: every way in gives the same images, and each mistake one clear line."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nisynth.errors import ConfigError, DataError, NisynthError
from nisynth.images import check_class_names
from nisynth.images.real import load_real_set
from nisynth.storage import open_store
from nisynth.teachers import load_teacher

NAMES = ["cat", "dog", "frog"]
LABELS = [2, 0, 1, 1, 0, 2, 2]
PIXELS = np.random.default_rng(0).integers(0, 256, (len(LABELS), 6, 5, 3), dtype=np.uint8)


def png(image: np.ndarray[Any, Any]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def table(
    images: Sequence[bytes | None] | None = None,
    labels: Sequence[Any] = LABELS,
    names: list[str] | None = NAMES,
    columns: tuple[str, str] = ("image", "label"),
) -> pa.Table:
    encoded = [png(image) for image in PIXELS] if images is None else images
    image = pa.array([{"bytes": data, "path": None} for data in encoded],
                     pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    label = {"names": names, "_type": "ClassLabel"}
    features = {"info": {"features": {columns[0]: {"_type": "Image"}, columns[1]: label}}}
    made = pa.table({columns[0]: image, columns[1]: labels})
    return made if names is None else made.replace_schema_metadata({"huggingface": json.dumps(features)})


def write(path: Path, made: pa.Table) -> str:
    pq.write_table(made, path)
    return str(path)


def folders(root: Path) -> str:
    for row, label in enumerate(LABELS):
        folder = root / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row}.png").write_bytes(png(PIXELS[row]))
    (root / "notes.txt").write_text("not an image")
    return str(root)


def assert_is_the_set(path: str, split: str) -> None:
    real = load_real_set(path)
    assert real.pixels.dtype == torch.uint8
    assert real.labels.dtype == torch.int64
    assert torch.equal(real.pixels, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert real.labels.tolist() == LABELS
    assert (real.source, real.split, len(real)) == (path, split, len(LABELS))


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label")])
def test_a_parquet_file(tmp_path: Path, columns: tuple[str, str]) -> None:
    path = write(tmp_path / "animals.parquet", table(columns=columns))
    assert_is_the_set(path, "animals")
    assert load_real_set(path).classes == tuple(NAMES)
    assert_is_the_set(f"file://{path}", "animals")


def test_a_parquet_file_without_names_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "animals.parquet", table(names=None))
    assert_is_the_set(path, "animals")
    assert load_real_set(path).classes == ()


def test_an_object_in_a_store() -> None:
    sink = io.BytesIO()
    pq.write_table(table(), sink)
    open_store("memory://test_realset").put("animals.parquet", sink.getvalue())
    assert_is_the_set("memory://test_realset/animals.parquet", "test")


def test_a_folder_of_parts_is_one_set_and_a_folder_of_splits_gives_the_test_split(tmp_path: Path) -> None:
    both = table()
    write(tmp_path / "test-00000-of-00002.parquet", both.slice(0, 3))
    write(tmp_path / "test-00001-of-00002.parquet", both.slice(3))
    assert_is_the_set(str(tmp_path), "test")
    write(tmp_path / "train-00000-of-00001.parquet", both)
    assert_is_the_set(str(tmp_path), "test")
    with pytest.raises(ConfigError, match=r"holds several sets \(test, train\), none named 'validation'"):
        load_real_set(str(tmp_path), "validation")


def test_image_folders_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    torchvision_datasets = pytest.importorskip("torchvision.datasets")
    path = folders(tmp_path / "animals")
    real = load_real_set(path)
    theirs = torchvision_datasets.ImageFolder(path)
    assert list(real.classes) == theirs.classes
    assert real.labels.tolist() == theirs.targets
    expected = np.stack([np.asarray(image) for image, _ in theirs])
    assert torch.equal(real.pixels, torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert real.split == "animals"


def test_what_the_datasets_library_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    path = write(tmp_path / "animals.parquet", table())
    made = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache"))
    made.save_to_disk(str(tmp_path / "one"))
    assert_is_the_set(str(tmp_path / "one"), "test")
    datasets.DatasetDict(train=made.select([0]), test=made).save_to_disk(str(tmp_path / "two"))
    assert_is_the_set(str(tmp_path / "two"), "test")
    assert load_real_set(str(tmp_path / "two")).classes == tuple(NAMES)
    with pytest.raises(ConfigError, match=r"cannot load split 'validation'"):
        load_real_set(str(tmp_path / "two"), "validation")


def test_a_name_goes_through_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "animals").mkdir()
    write(tmp_path / "animals" / "test-00000-of-00001.parquet", table())
    assert_is_the_set(f"hf:{tmp_path / 'animals'}", "test")
    with pytest.raises(
        ConfigError, match=r"data hf:no/such: `datasets` cannot load split 'test' .* offline,"
    ):
        load_real_set("hf:no/such")


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    sink = io.BytesIO()
    Image.fromarray(PIXELS[0][:, :, 0]).save(sink, "PNG")
    real = load_real_set(write(tmp_path / "grey.parquet", table([sink.getvalue()], [0])))
    assert torch.equal(real.pixels[0], torch.from_numpy(PIXELS[0][:, :, 0]).expand(3, -1, -1))


def test_the_cifar_sets_decode(shared: Path, tmp_path: Path) -> None:
    first = pq.read_table(shared / "data" / "cifar10-test.parquet").slice(0, 300)
    real = load_real_set(write(tmp_path / "cifar10-test.parquet", first))
    assert real.pixels.shape == (300, 3, 32, 32)
    assert real.classes == load_teacher(arch="resnet20").classes
    real.check_fits(load_teacher(arch="resnet20"))
    assert load_teacher(arch="resnet20").accuracy(real.pixels, real.labels) > 0.85


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data 'nowhere.parquet': there is no such file or folder"):
        load_real_set("nowhere.parquet")
    with pytest.raises(ConfigError, match=r"there is no such object; check the URL"):
        load_real_set("memory://test_realset/nothing.parquet")
    with pytest.raises(DataError, match=r"holds neither \*.parquet nor one folder of images per class"):
        load_real_set(str(tmp_path))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (pa.table({"x": [1.0]}), r"columns are x: double; needed are a struct<bytes, path> named image"),
        (pa.table({"image": [b"png"], "label": [0]}), r"columns are image: binary, label: int64; needed"),
        (table(labels=["cat"] * len(LABELS)), r"label is string with 0 nulls, not plain integers"),
        (table(labels=[None, *LABELS[1:]]), r"label is int64 with 1 nulls"),
        (table(labels=[-1] * len(LABELS)), r"labels span -1..-1, its classes are 0..2"),
        (table(labels=[3] * len(LABELS)), r"labels span 3..3, its classes are 0..2"),
        (table([None] * len(LABELS)), r"7 images are paths to other files"),
        (table([*(png(i) for i in PIXELS[:6]), b"not an image"]), r"image 6 cannot be decoded"),
        (table([*(png(i) for i in PIXELS[:6]), png(PIXELS[6][:4])]), r"image 6 is 5x4 px, the first is 5x6"),
        (table().slice(0, 0), r"holds no images"),
        (table().replace_schema_metadata({"huggingface": "{"}), r"`huggingface` metadata is damaged"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_file_of_another_kind_or_damaged(tmp_path: Path, made: pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_real_set(write(tmp_path / "set.parquet", made))
    assert "\n" not in str(caught.value)


def test_not_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").write_bytes(b"<html>404</html>")
    with pytest.raises(ConfigError, match=r"not a Parquet file; name one, or a folder"):
        load_real_set(str(tmp_path / "set.parquet"))
    (tmp_path / "set.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match=r"a damaged Parquet file \("):
        load_real_set(str(tmp_path / "set.parquet"))


def test_parts_that_name_other_classes(tmp_path: Path) -> None:
    write(tmp_path / "test-0.parquet", table())
    write(tmp_path / "test-1.parquet", table(names=["dog", "cat", "frog"]))
    with pytest.raises(DataError, match=r"test-1.parquet names other classes than the files before it"):
        load_real_set(str(tmp_path))


def test_a_class_without_images(tmp_path: Path) -> None:
    path = folders(tmp_path / "animals")
    (tmp_path / "animals" / "emu").mkdir()
    with pytest.raises(DataError, match=r"folder 'emu' holds no images"):
        load_real_set(path)


def test_without_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the `datasets` library; pip install datasets"):
        load_real_set("hf:cifar10")


def test_a_set_must_fit_the_network(tmp_path: Path) -> None:
    teacher = load_teacher(arch="resnet20")
    ten = [f"{name}{i}" for i, name in enumerate(["cat"] * 10)]
    big = [png(np.zeros((32, 32, 3), np.uint8))]
    cases: list[tuple[pa.Table, str]] = [
        (table(), r"has 3 classes, the teacher 10"),
        (table(big, [12], names=None), r"has 13 classes, the teacher 10"),
        (table(names=None), r"images are 5x6 px, teacher.input_px is 32"),
        (table(big, [0], names=ten), r"label 0 is 'cat0', for the teacher it is 'airplane'"),
    ]
    for made, message in cases:
        real = load_real_set(write(tmp_path / "set.parquet", made))
        with pytest.raises(NisynthError, match=message):
            real.check_fits(teacher)


def test_class_names_are_compared_where_both_sides_have_some() -> None:
    check_class_names(["0", "1"], ["cat", "dog"], "a", "b")
    check_class_names([], ["cat", "dog"], "a", "b")
    check_class_names(["Pickup Truck", "dog"], ["pickup_truck", "dog"], "a", "b")
    with pytest.raises(ConfigError, match=r"a: label 1 is 'dog', for b it is 'cat'"):
        check_class_names(["cow", "dog", "cat"], ["cow", "cat", "dog"], "a", "b")
