"""A store that holds something enormous where a run's object should be fills nobody's memory."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from nisynth import open_dataset
from nisynth.commits import Run
from nisynth.commits.audit import verify
from nisynth.commits.fetch import MAX_DOCUMENT_BYTES
from nisynth.commits.records import commit_key, shard_key
from nisynth.commits.seal import read_manifest, seal
from nisynth.errors import DataError, StorageError
from tests.sources import forge, make_run, shard_of, source_of

HUGE = 10**12
USES: dict[str, Callable[[Run], object]] = {
    "plan.json": lambda run: Run.open(run.store),
    "_SUCCESS": lambda run: run.is_sealed(),
    "_MANIFEST": read_manifest,
    "commit": lambda run: run.read(1),
}


@pytest.mark.parametrize("name", USES)
def test_a_document_too_large_to_be_ours_is_refused_unread(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    key = commit_key(run.plan.fp12, 1) if name == "commit" else name
    source_of(run).sizes[key] = HUGE
    with pytest.raises(DataError, match=rf"{key}: has {HUGE} bytes, no more than \d+ can belong there"):
        USES[name](run)
    assert source_of(run).gets[key] == 0


def test_joining_a_run_reads_no_enormous_plan(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    source_of(run).sizes["plan.json"] = MAX_DOCUMENT_BYTES + 1
    with pytest.raises(DataError, match=r"plan\.json: has \d+ bytes"):
        Run.join(run.store, run.plan)


def test_what_stands_in_the_place_of_ours_is_compared_by_its_size_first(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.store.delete("_SUCCESS")
    source_of(run).sizes["_MANIFEST"] = HUGE
    with pytest.raises(DataError, match="its content differs from what the commits give"):
        seal(run)
    key = shard_key(run.plan.fp12, 0, attempt := str(uuid4()), "parquet")
    run.store.create(key, b"another's")
    source_of(run).sizes[key] = HUGE
    with pytest.raises(StorageError, match="another object holds this attempt's key"):
        run.put_shard(0, attempt, b"mine")
    assert source_of(run).gets["_MANIFEST"] == source_of(run).gets[key] == 0


def test_verify_fetches_no_shard_that_the_plan_or_its_commit_could_not_give(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    claimed, longer = shard_of(run, 1), shard_of(run, 2)
    forge(run, 1, bytes=HUGE)
    source_of(run).sizes = {claimed: HUGE, longer: HUGE}
    source_of(run).gets.clear()
    for deep in (False, True):
        first, second = verify(run, deep=deep).problems[:2]
        assert f"its shard has {HUGE} bytes, which exceeds the limit for 4 images" in first.text
        assert f"is damaged: it has {HUGE} bytes, its commit says" in second.text
    assert source_of(run).gets[claimed] == source_of(run).gets[longer] == 0


def test_a_dataset_is_not_opened_on_a_shard_that_the_plan_could_not_give(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[0, 1])
    forge(run, 1, bytes=HUGE)
    with pytest.raises(DataError, match="exceeds the limit for 4 images"):
        open_dataset(run.store.url, allow_partial=True)
