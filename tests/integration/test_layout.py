"""What other tools find when they are given a run's URL: the images, and nothing else."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as arrow_dataset
import pyarrow.fs as arrow_fs
import pytest

from nisynth import open_dataset, pull, status, verify
from nisynth.commits import Run
from nisynth.commits.card import LOADER_KEY
from nisynth.commits.seal import CARD_KEY, MANIFEST_KEY, OLD_MANIFEST_KEY
from nisynth.config import ExecutionConfig
from nisynth.execution.cluster import connected
from nisynth.execution.run import run as run_all
from nisynth.images import Normalization
from nisynth.storage import Store, open_store
from tests.reader.runs import NUM_IMAGES, make_run
from tests.tiny import commit_all, fake_commit, keys, tiny_config, tiny_plan

RUN = {"num_images": NUM_IMAGES, "batch_size": 8}
ATTEMPT = "01234567-89ab-4cde-8f01-23456789abcd"
LOCAL: dict[str, Callable[[str], int]] = {
    "pandas": lambda url: len(pd.read_parquet(f"{url}/data")),
    "polars": lambda url: pl.read_parquet(f"{url}/**/*.parquet").height,
    "pyarrow": lambda url: arrow_dataset.dataset(f"{url}/data").count_rows(),
    "duckdb": lambda url: rows_by_duckdb(f"{url}/**/*.parquet"),
}


def rows_by_duckdb(pattern: str) -> int:
    with duckdb.connect() as connection:
        found = connection.execute("SELECT count(image) FROM read_parquet(?)", [pattern]).fetchone()
    assert found is not None
    return int(found[0])


def rows_by_datasets(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    found = datasets.load_dataset(url, split="train", cache_dir=str(tmp_path / "hf-cache"))
    assert found.column_names == ["image", "label", "task", "index_in_task"]
    return len(found)


@pytest.mark.parametrize("tool", LOCAL)
def test_a_tool_finds_the_images_of_a_folder_and_nothing_else(tmp_path: Path, tool: str) -> None:
    assert LOCAL[tool](make_run(tmp_path).store.url) == NUM_IMAGES


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_ray_data_finds_the_images_of_a_folder_and_nothing_else(tmp_path: Path) -> None:
    import ray.data

    with connected(None, ExecutionConfig()):
        ray.data.DataContext.get_current().enable_progress_bars = False
        assert ray.data.read_parquet(make_run(tmp_path).store.url).count() == NUM_IMAGES


@pytest.mark.parametrize("state", ["sealed", "without a card", "not sealed"])
def test_datasets_finds_the_images_of_a_run_in_any_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    if state == "not sealed":
        run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path, run=RUN))
        commit_all(run)
    else:
        run = make_run(tmp_path)
    if state == "without a card":
        run.store.delete(CARD_KEY)
    assert rows_by_datasets(run.store.url, tmp_path, monkeypatch) == NUM_IMAGES


def test_datasets_refuses_an_npz_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make_run(tmp_path, output={"format": "npz"}).store.url
    with pytest.raises(Exception, match="No \\(supported\\) data files"):
        rows_by_datasets(url, tmp_path, monkeypatch)


def test_tools_find_the_images_in_a_bucket_and_nothing_else(s3_url: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, s3_url)
    path, scheme_and_host = s3_url.removeprefix("s3://"), os.environ["AWS_ENDPOINT_URL"]
    bucket = arrow_fs.S3FileSystem(
        endpoint_override=scheme_and_host,
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
    )
    assert len(pd.read_parquet(f"{path}/data", filesystem=bucket)) == NUM_IMAGES
    assert arrow_dataset.dataset(f"{path}/data", filesystem=bucket).count_rows() == NUM_IMAGES
    options = {"aws_endpoint_url": scheme_and_host, "aws_allow_http": "true", "aws_region": "us-east-1"}
    lazy = pl.scan_parquet(f"{s3_url}/**/*.parquet", storage_options=options)
    assert lazy.select(pl.len()).collect().item() == NUM_IMAGES
    found = [key for key in keys(run.store) if key.endswith(".parquet")]
    assert found == [row.shard for row in open_dataset(s3_url).shards]


def test_a_loser_that_came_after_the_seal_goes_with_the_next_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run_all(config, url := str(tmp_path / "run"))
    store = open_store(url)
    before = keys(store, "data/")
    late = fake_commit(Run.open(store), 1, ATTEMPT)
    assert late.shard in keys(store, "data/")
    assert run_all(config, url).exit_code == 0
    assert keys(store, "data/") == before


@pytest.mark.parametrize("format", ["parquet", "npz"])
def test_a_run_in_the_layout_of_earlier_versions_is_read_and_copied(tmp_path: Path, format: str) -> None:
    run = make_run(tmp_path, output={"format": format})
    expected = open_dataset(run.store.url, cache=False).load()
    as_earlier_versions_left_it(run.store)
    assert verify(run.store.url, deep=True).complete
    assert status(run.store.url).complete
    pull(run.store.url, str(tmp_path / "copy"))
    for url in (run.store.url, str(tmp_path / "copy")):
        found = open_dataset(url, cache=False).load()
        assert np.array_equal(found.pixels, expected.pixels)
        assert found.labels.tolist() == expected.labels.tolist()


def as_earlier_versions_left_it(store: Store) -> None:
    store.put(OLD_MANIFEST_KEY, store.get(MANIFEST_KEY))
    store.delete(MANIFEST_KEY)
    store.delete(LOADER_KEY)


def test_an_npz_shard_says_what_its_floats_mean(tmp_path: Path) -> None:
    run = make_run(tmp_path, output={"format": "npz"})
    images = open_dataset(run.store.url, cache=False)
    with np.load(tmp_path / "run" / images.shards[0].shard) as shard:
        columns: Any = (np.newaxis, slice(None), np.newaxis, np.newaxis)
        pixels = shard["images"] * shard["std"][columns] + shard["mean"][columns]
        eight_bits = (pixels * 255).clip(0, 255).round().astype(np.uint8)
        assert np.array_equal(eight_bits, images.load().pixels[:8])
        assert shard["classes"].tolist() == list(images.classes)
        assert Normalization(tuple(shard["mean"]), tuple(shard["std"])) == images.normalization
