"""export and warm as their users meet them: other tools read the same images, and every end resumes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from nisynth.commits import Run
from nisynth.consumers.export import FORMATS, JOURNAL
from nisynth.reader import open_dataset
from tests.command_line import nisynth
from tests.reader.runs import NUM_IMAGES, make_run
from tests.test_cli import says

SHARDS = 13


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def whole(run: Run) -> list[tuple[bytes, int]]:
    """Returns pixels and label of every image, sorted: formats differ in their order."""
    images = open_dataset(run.store.url, cache=False).load()
    return pairs(images.pixels, images.labels.tolist())


def pairs(pixels: Tensor, labels: list[int]) -> list[tuple[bytes, int]]:
    return sorted((image.numpy().tobytes(), label) for image, label in zip(pixels, labels, strict=True))


def read_imagefolder(folder: Path) -> list[tuple[bytes, int]]:
    found = ImageFolder(str(folder))
    return pairs(torch.stack([pil_to_tensor(image) for image, _ in found]), [label for _, label in found])


def read_webdataset(folder: Path) -> list[tuple[bytes, int]]:
    webdataset = pytest.importorskip("webdataset")
    decode = webdataset.autodecode.Decoder([webdataset.imagehandler("pil")])
    found: list[tuple[Tensor, int]] = []
    for path in folder.glob("*.tar"):
        with path.open("rb") as file:  # its WebDataset leaves files open
            parts = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": file}])
            samples = [decode(sample) for sample in webdataset.tariterators.group_by_keys(parts)]
        found += [(pil_to_tensor(sample["png"]), sample["cls"]) for sample in samples]
    return pairs(torch.stack([image for image, _ in found]), [label for _, label in found])


def read_hf(folder: Path) -> list[tuple[bytes, int]]:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "hf"))
    assert found.column_names == ["image", "label"]
    assert found.features["label"].num_classes == 4
    return pairs(torch.stack([pil_to_tensor(image) for image in found["image"]]), list(found["label"]))


def read_npz(folder: Path) -> list[tuple[bytes, int]]:
    found: list[tuple[bytes, int]] = []
    for path in folder.glob("*.npz"):
        arrays = np.load(path, allow_pickle=False)
        assert arrays["classes"].tolist() == ["0", "1", "2", "3"]
        found += pairs(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2), arrays["labels"].tolist())
    return sorted(found)


READERS = {
    "imagefolder": read_imagefolder,
    "webdataset": read_webdataset,
    "hf": read_hf,
    "npz": read_npz,
}


@pytest.mark.parametrize("format", FORMATS)
def test_the_tool_of_each_format_reads_the_same_images(run: Run, tmp_path: Path, format: str) -> None:
    done = nisynth("export", run.store.url, tmp_path / "out", "--format", format, "-q")
    assert done.returncode == 0, done.stderr
    assert (
        f"{NUM_IMAGES} images as {format}, {SHARDS} parts, each checked; written now {SHARDS}" in done.stdout
    )
    first = hashes(tmp_path / "out")
    assert READERS[format](tmp_path / "out") == whole(run)
    assert nisynth("export", run.store.url, tmp_path / "again", "--format", format, "-q").returncode == 0
    assert hashes(tmp_path / "again") == first


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_resumes_and_mends_what_was_damaged(run: Run, tmp_path: Path, format: str) -> None:
    folder = tmp_path / "out"
    arguments = ("export", run.store.url, folder, "--format", format, "--json", "-q")
    assert nisynth(*arguments).returncode == 0
    first = hashes(folder)
    journal = (folder / JOURNAL).read_bytes().split(b"\n")
    # It died as it wrote the ninth part's line; of the eight before, one lost a file, one was overwritten.
    (folder / JOURNAL).write_bytes(b"\n".join(journal[:9]) + b"\n" + journal[9][:20])
    missing, altered = (next(iter(json.loads(line)["files"])) for line in journal[2:4])
    (folder / missing).unlink()
    (folder / altered).write_bytes(b"not this")
    again = json.loads(nisynth(*arguments).stdout)
    assert (again["written"], again["parts"], again["complete"]) == (SHARDS - 8 + 2, SHARDS, True)
    entries = {name: sha256 for name, sha256 in hashes(folder).items() if name != JOURNAL}
    assert entries == {name: sha256 for name, sha256 in first.items() if name != JOURNAL}
    assert json.loads(nisynth(*arguments).stdout)["written"] == 0


def test_what_export_cannot_do_is_told_in_a_line(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    says(
        nisynth("export", run.store.url, folder, "--format", "tfrecord"),
        2,
        "unknown format 'tfrecord'; valid: image",
    )
    says(nisynth("export", run.store.url, "s3://b/x", "--format", "npz"), 2, "name a local folder")
    folder.mkdir()
    (folder / "mine.txt").write_text("dear")
    says(nisynth("export", run.store.url, folder, "--format", "npz"), 2, "not empty, and no export")
    assert (folder / "mine.txt").read_text() == "dear"
    assert nisynth("export", run.store.url, tmp_path / "a", "--format", "npz", "-q").returncode == 0
    says(nisynth("export", run.store.url, tmp_path / "a", "--format", "hf"), 2, "another set or format")
    (tmp_path / "file").write_text("")
    says(nisynth("export", run.store.url, tmp_path / "file", "--format", "npz"), 6, "file")


def test_part_of_a_run_is_exported_and_warmed_only_when_asked_for(tmp_path: Path) -> None:
    url = make_run(tmp_path, tasks=[0, 1]).store.url
    for words in (
        ("export", url, tmp_path / "out", "--format", "npz"),
        ("warm", url, "--cache", tmp_path / "c"),
    ):
        says(nisynth(*words), 2, "--allow-partial")
        partial = nisynth(*words, "--allow-partial", "-q")
        assert partial.returncode == 3
        assert "16 images" in partial.stdout


def test_a_damaged_shard_stops_an_export_and_the_rest_goes_on_after_redo(run: Run, tmp_path: Path) -> None:
    victim = open_dataset(run.store.url).shards[4]
    path = Path(run.store.url) / victim.shard
    good = path.read_bytes()
    path.write_bytes(good[:-8] + b"\0" * 8)
    arguments = ("export", run.store.url, tmp_path / "out", "--format", "webdataset", "-q")
    says(nisynth(*arguments), 1, "redo", "--task 4")
    path.write_bytes(good)
    assert "written now 9" in nisynth(*arguments).stdout


def test_warm_fills_the_cache_that_a_reader_then_finds(run: Run, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = nisynth("warm", run.store.url, "--cache", cache, "-q")
    assert first.returncode == 0, first.stderr
    assert f"{NUM_IMAGES} images of {SHARDS} shards in the cache" in first.stdout
    images = open_dataset(run.store.url, cache=cache)
    assert sum(len(labels) for _, labels in images.stream(10)) == NUM_IMAGES
    assert (images.source.stats.fetched_bytes, images.source.stats.cache_hits) == (0, SHARDS)
    again = json.loads(nisynth("warm", run.store.url, "--cache", cache, "--json", "-q").stdout)
    assert (again["fetched_bytes"], again["shards"], again["complete"]) == (0, SHARDS, True)


def test_warm_refuses_a_cache_that_cannot_hold_the_set(run: Run, tmp_path: Path) -> None:
    (tmp_path / "no-folder").write_text("")
    unwritable = nisynth("warm", run.store.url, "--cache", tmp_path / "no-folder", "-q")
    says(unwritable, 6, "did not take every shard")
