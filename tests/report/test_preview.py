"""A look at a run at any time, and one clear line where there is nothing to see or nowhere to put it."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from nisynth.commits import Run
from nisynth.commits.records import shard_key
from nisynth.errors import ConfigError, DataError, IncompleteRun
from nisynth.report import preview
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.tiny import commit_all, tiny_plan


def begin(tmp_path: Path, num_images: int = 16, **sections: dict[str, str]) -> Run:
    plan = tiny_plan(tmp_path, run={"num_images": num_images}, **sections)
    return Run.join(open_store(str(tmp_path / "run")), plan)


def size_px(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


@pytest.mark.parametrize("output", [{"format": "parquet"}, {"format": "npz"}])
def test_a_growing_run_can_be_looked_at(tmp_path: Path, output: dict[str, str]) -> None:
    run = begin(tmp_path, output=output)
    commit_all(run, [1, 3])
    assert preview.draw_preview(run, str(tmp_path / "sheet.png"), rows=5) == 8
    width, height = size_px(tmp_path / "sheet.png")
    commit_all(run, [0, 2])
    assert preview.draw_preview(run, str(tmp_path / "sheet.png"), rows=5) == 16
    taller = size_px(tmp_path / "sheet.png")
    assert taller[0] == width
    assert taller[1] > height
    assert sorted(path.name for path in tmp_path.glob("*.png*")) == ["sheet.png"]


def test_images_come_from_shards_all_over_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path, num_images=160)
    commit_all(run)
    read: Counter[int] = Counter()
    original = run.read
    monkeypatch.setattr(run, "read", lambda task: (read.update([task]), original(task))[1])
    assert preview.draw_preview(run, str(tmp_path / "sheet.png"), rows=4) == 16
    assert sorted(read) == [0, 10, 20, 30]
    read.clear()
    assert preview.draw_preview(run, str(tmp_path / "sheet.png"), rows=100) == 64
    assert len(read) == preview.MAX_SHARDS


def test_no_commit_yet(tmp_path: Path) -> None:
    with pytest.raises(IncompleteRun, match="no task is committed yet"):
        preview.draw_preview(begin(tmp_path), str(tmp_path / "sheet.png"), rows=5)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--rows 0: must be at least 1"):
        preview.draw_preview(begin(tmp_path), str(tmp_path / "sheet.png"), rows=0)


@pytest.mark.parametrize("output", ["", "missing/sheet.png", "run/plan.json/sheet.png"])
def test_an_output_that_cannot_be_written(tmp_path: Path, output: str) -> None:
    run = begin(tmp_path)
    commit_all(run)
    with pytest.raises(
        ConfigError, match=r"output .*: cannot be written .*; name a file in a folder that exists"
    ):
        preview.draw_preview(run, str(tmp_path / output), rows=1)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    run = begin(tmp_path)
    winners = commit_all(run, [2])
    key = shard_key(run.plan.fp12, 2, winners[2], "parquet")
    data = bytearray(run.store.get(key))
    data[len(data) // 2] ^= 1
    run.store.put(key, bytes(data))
    with pytest.raises(DataError, match=key):
        preview.draw_preview(run, str(tmp_path / "sheet.png"), rows=1)


def test_one_task(tmp_path: Path) -> None:
    run = begin(tmp_path)
    commit_all(run, [2])
    sheet = str(tmp_path / "sheet.png")
    assert preview.draw_task(run, sheet, 2, rows=3) == 4
    with pytest.raises(IncompleteRun, match="task 1 is not committed"):
        preview.draw_task(run, sheet, 1, rows=3)
    with pytest.raises(ConfigError, match="the run has tasks 0"):
        preview.draw_task(run, sheet, 4, rows=3)


def test_methods_as_rows(tmp_path: Path) -> None:
    run = begin(tmp_path)
    commit_all(run)
    sheet = tmp_path / "sheet.png"
    assert preview.draw_methods([run, run, run], str(sheet)) == 12
    narrow = size_px(sheet)
    assert preview.draw_preview(run, str(sheet), rows=3) == 12
    assert size_px(sheet)[0] < narrow[0]  # without the names at the left
    assert size_px(sheet)[1] == narrow[1]
    other = Run.join(
        open_store(str(tmp_path / "other")), tiny_plan(tmp_path, teacher={"classes": ["a", "b", "c", "d"]})
    )
    with pytest.raises(ConfigError, match="its classes or image size are not those of"):
        preview.draw_methods([run, other], str(sheet))


def test_the_command_takes_one_way_to_draw(tmp_path: Path) -> None:
    commit_all(begin(tmp_path))
    url, sheet = tmp_path / "run", tmp_path / "sheet.png"
    assert nisynth("preview", url, "--task", 1, "-o", sheet).returncode == 0
    assert nisynth("preview", url, url, "--rows-by", "method", "-o", sheet).stdout.endswith("8 images\n")
    assert "several runs need --rows-by method" in nisynth("preview", url, url).stderr
    assert "rows are by `method`" in nisynth("preview", url, "--rows-by", "class").stderr
    assert "not both" in nisynth("preview", url, "--rows-by", "method", "--task", 1).stderr
