"""The consumers' door: what it gives, what it refuses, and the cache behind it."""

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from nisynth import open_dataset
from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.errors import DataError, IncompleteRun, PlanMismatch
from nisynth.storage import Store, open_store
from tests.tiny import commit_all, fake_batch, keys, tiny_plan


def make_run(tmp_path: Path, url: str = "", tasks: Any = None, **sections: dict[str, Any]) -> Run:
    run = Run.join(open_store(url or str(tmp_path / "run")), tiny_plan(tmp_path, **sections))
    commit_all(run, tasks)
    seal(run)
    return run


def shard_of(run: Run, task: int) -> str:
    commit = run.read(task)
    assert commit is not None
    return commit.shard


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("format_", ["parquet", "npz"])
def test_a_run_becomes_a_torch_dataset(tmp_path: Path, format_: str) -> None:
    run = make_run(tmp_path, run={"num_images": 14}, output={"format": format_})
    dataset = open_dataset(run.store.url)
    assert (len(dataset), dataset.complete) == (14, True)
    assert (dataset.classes, dataset.num_classes) == (("0", "1", "2", "3"), 4)
    assert dataset.fingerprint == run.plan.fingerprint
    assert dataset.normalization == run.plan.normalization

    images = dataset.load()
    pixels, labels = images.pixels, images.labels
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (14, 3, 16, 16))
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (14,))
    expected = [run.plan.normalization.to_pixels(fake_batch(run.plan, task).images) for task in range(4)]
    assert torch.equal(pixels, torch.cat(expected)[:14])
    assert labels.tolist() == [label for task in range(4) for label in run.plan.labels(task)][:14]

    image, label = dataset[13]
    assert torch.equal(image, pixels[13])
    assert type(label) is int
    assert label == labels[13]
    assert torch.equal(dataset[-1][0], pixels[13])
    with pytest.raises(IndexError, match=r"0\.\.13"):
        dataset[14]


def test_a_data_loader_takes_it_with_and_without_processes(tmp_path: Path) -> None:
    dataset = open_dataset(make_run(tmp_path).store.url)
    for num_workers in (0, 1):
        batches = list(DataLoader(dataset, batch_size=5, num_workers=num_workers))
        assert [len(images) for images, _ in batches] == [5, 5, 5, 1]
        assert torch.equal(torch.cat([images for images, _ in batches]), dataset.load().pixels)


def test_it_travels_to_another_process_before_and_after_loading(tmp_path: Path) -> None:
    dataset = open_dataset(make_run(tmp_path).store.url)
    before = pickle.loads(pickle.dumps(dataset)).load().pixels
    after = pickle.loads(pickle.dumps(dataset)).load().pixels
    assert torch.equal(before, dataset.load().pixels)
    assert torch.equal(after, dataset.load().pixels)


def test_every_shard_can_be_read_alone(tmp_path: Path) -> None:
    dataset = open_dataset(make_run(tmp_path).store.url)
    parts = [dataset.read_shard(number).pixels for number in range(len(dataset.shards))]
    assert torch.equal(torch.cat(parts), dataset.load().pixels)


def test_the_content_hash_tells_equal_sets_from_others(tmp_path: Path) -> None:
    whole = open_dataset(make_run(tmp_path).store.url)
    again = open_dataset(make_run(tmp_path, str(tmp_path / "again")).store.url)
    part = open_dataset(make_run(tmp_path, str(tmp_path / "part"), [0, 2]).store.url, allow_partial=True)
    assert whole.content_sha256 == again.content_sha256 != part.content_sha256


def test_an_incomplete_run_is_opened_only_on_request(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[1, 3])
    with pytest.raises(IncompleteRun, match="allow_partial"):
        open_dataset(run.store.url)
    dataset = open_dataset(run.store.url, allow_partial=True)
    assert (len(dataset), dataset.complete) == (8, False)
    assert dataset.load().labels.tolist() == [*run.plan.labels(1), *run.plan.labels(3)]


def test_a_run_without_commits_and_a_folder_without_a_run_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[])
    with pytest.raises(IncompleteRun, match="no task is committed"):
        open_dataset(run.store.url, allow_partial=True)
    with pytest.raises(PlanMismatch, match="no run there"):
        open_dataset(str(tmp_path / "nowhere"))


def test_a_damaged_shard_is_named_with_its_cure(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    damage(tmp_path / "run" / shard_of(run, 2))
    dataset = open_dataset(run.store.url)
    assert dataset.read_shard(1)
    with pytest.raises(DataError, match=rf"{shard_of(run, 2)}: is damaged.*redo .*--task 2"):
        dataset.load()
    assert DataError.exit_code == 1


def test_a_missing_shard_is_named_with_its_cure(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.store.delete(shard_of(run, 0))
    with pytest.raises(DataError, match=rf"{shard_of(run, 0)}: is missing; .*redo .*--task 0"):
        open_dataset(run.store.url).load()


def test_a_shard_of_other_labels_is_refused_though_its_hash_fits(tmp_path: Path) -> None:
    """A commit and a shard that agree with each other, but not with the plan."""
    from nisynth.shards import OutputConfig, encode

    run = make_run(tmp_path, tasks=[0])
    commit = run.read(0)
    assert commit is not None
    batch = fake_batch(run.plan, 0)
    batch.labels[:] = batch.labels.flip(0)
    data = encode(batch, OutputConfig(), run.plan.normalization, run.plan.classes)
    run.store.put(commit.shard, data)
    forged = commit.to_json().decode().replace(commit.sha256, hashlib.sha256(data).hexdigest())
    run.store.put(keys(run.store, "commits/")[0], forged.encode())
    with pytest.raises(DataError, match="other labels than the plan's"):
        open_dataset(run.store.url, allow_partial=True).load()


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.slice(0, 3),
        lambda table: table.set_column(3, "bytes", [[10**12] * 4]),
        lambda table: table.set_column(6, "seed", [["00"] * 4]),
        lambda table: table.set_column(0, "task", [["first"] * 4]),
        lambda table: table.set_column(4, "rows", [[None] * 4]),
    ],
)
def test_a_manifest_that_does_not_fit_the_plan_is_refused(
    tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    import io

    import pyarrow.parquet as pq

    run = make_run(tmp_path)
    table = change(pq.read_table(io.BytesIO(run.store.get("_MANIFEST"))))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    run.store.put("_MANIFEST", sink.getvalue())
    run.store.put("_SUCCESS", hashlib.sha256(sink.getvalue()).hexdigest().encode())
    with pytest.raises(DataError, match=r"does not fit plan\.json|is not a run's manifest"):
        open_dataset(run.store.url)


def test_a_cached_run_is_read_once_and_then_from_the_disk(tmp_path: Path) -> None:
    run = make_run(tmp_path, "memory://cached")
    first = open_dataset(run.store.url, cache=tmp_path / "cache").load().pixels
    for task in range(4):
        run.store.delete(shard_of(run, task))
    again = open_dataset(run.store.url, cache=tmp_path / "cache").load().pixels
    assert torch.equal(first, again)
    with pytest.raises(DataError, match="is missing"):
        open_dataset(run.store.url, cache=tmp_path / "other").load()


def test_a_damaged_cache_entry_is_fetched_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    dataset = open_dataset(run.store.url, cache=tmp_path / "cache")
    pixels = dataset.load().pixels
    for path in (tmp_path / "cache").glob("u8/*/*"):
        damage(path)
    again = open_dataset(run.store.url, cache=tmp_path / "cache")
    assert torch.equal(again.load().pixels, pixels)
    assert (again.source.stats.damaged, again.source.stats.cache_hits) == (4, 0)
    third = open_dataset(run.store.url, cache=tmp_path / "cache")
    assert torch.equal(third.load().pixels, pixels)
    assert (third.source.stats.damaged, third.source.stats.fetched_bytes) == (0, 0)


def test_threads_that_come_first_together_share_one_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(make_run(tmp_path).store.url, cache=tmp_path / "cache")
    together = Barrier(4)

    def open_store_together(url: str) -> Store:
        together.wait(timeout=60)
        return open_store(url)

    monkeypatch.setattr("nisynth.reader.dataset.open_store", open_store_together)
    with ThreadPoolExecutor(4) as pool:
        sources = list(pool.map(lambda _: dataset.source, range(4)))
    assert len({id(source) for source in sources}) == 1


def test_a_cache_that_cannot_be_written_slows_nothing_down_but_fetching(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    run = make_run(tmp_path)
    assert len(open_dataset(run.store.url, cache=tmp_path / "cache").load().pixels) == 16


def test_local_runs_keep_no_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    open_dataset(make_run(tmp_path).store.url).load()
    assert not (tmp_path / "xdg").exists()


def test_a_run_on_s3_is_cached_where_the_platform_keeps_caches(
    tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    run = make_run(tmp_path, s3_url)
    first = open_dataset(s3_url).load().pixels
    assert len(list((tmp_path / "xdg/nisynth/u8").glob("*/*"))) == 4
    for task in range(4):
        run.store.delete(shard_of(run, task))
    assert torch.equal(open_dataset(s3_url).load().pixels, first)
    with pytest.raises(DataError, match="is missing"):
        open_dataset(s3_url, cache_bytes=0).load()


def test_a_machine_with_only_torch_opens_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    code = (
        "import sys\n"
        "for name in ('ray', 'boto3', 'pydantic', 'datasets', 'typer'): sys.modules[name] = None\n"
        "import nisynth\n"
        "print(len(nisynth.open_dataset(sys.argv[1]).load().labels))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, run.store.url], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "16"
