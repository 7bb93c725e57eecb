"""The finished set, read by three libraries that know nothing of each other."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nisynth import open_dataset, run
from tests.tiny import tiny_config


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    url = tmp_path / "run"
    classes = ["cat", "dog", "eel", "fox"]
    run(tiny_config(tmp_path, run={"num_images": 14}, teacher={"classes": classes}), str(url))
    return url


def test_datasets_pandas_and_open_dataset_agree(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    files = sorted(str(path) for path in (finished / "data").glob("*.parquet"))
    theirs = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    frame = pd.concat([pd.read_parquet(path) for path in files], ignore_index=True)
    ours = open_dataset(str(finished))
    assert len(theirs) == len(frame) == len(ours) == 14
    assert tuple(theirs.features["label"].names) == ours.classes == ("cat", "dog", "eel", "fox")
    for i in range(14):
        pixels, label = ours[i]
        assert label == theirs[i]["label"] == frame["label"][i]
        hwc = pixels.permute(1, 2, 0).numpy()
        assert np.array_equal(hwc, np.asarray(theirs[i]["image"]))
        assert np.array_equal(hwc, np.asarray(Image.open(io.BytesIO(frame["image"][i]["bytes"]))))
    assert frame["task"].tolist() == [i // 4 for i in range(14)]
    assert frame["index_in_task"].tolist() == [i % 4 for i in range(14)]


def test_datasets_opens_the_run_by_its_card(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    opened = datasets.load_dataset(str(finished), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(opened) == 14
    assert opened[0]["image"].size == (16, 16)
