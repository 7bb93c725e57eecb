"""Finishing, looking back, and undoing: what is sealed is whole, and nothing whole is ever deleted."""

import hashlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from nisynth.commits import Run
from nisynth.commits.audit import gc, redo, redo_bad, verify
from nisynth.commits.records import commit_key
from nisynth.commits.seal import delete_losers, read_manifest, seal
from nisynth.commits.status import status
from nisynth.errors import ConfigError, DataError, IncompleteRun
from nisynth.storage import open_store
from tests.sources import contents
from tests.tiny import commit_all, fake_commit, keys, tiny_plan


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path, run={"num_images": 14}))


def damage(run: Run, key: str) -> None:
    data = bytearray(run.store.get(key))
    data[len(data) // 2] ^= 1
    run.store.put(key, bytes(data))


def test_an_incomplete_run_is_not_sealed(run: Run) -> None:
    commit_all(run, [0, 1, 3])
    assert not seal(run)
    assert not run.is_sealed()
    with pytest.raises(IncompleteRun, match="no _SUCCESS"):
        read_manifest(run)


def test_the_seal_is_the_manifests_hash_and_sealing_again_changes_nothing(run: Run) -> None:
    winners = commit_all(run)
    assert seal(run)
    manifest = run.store.get("_MANIFEST")
    assert run.store.get("_SUCCESS").decode().strip() == hashlib.sha256(manifest).hexdigest()
    rows = read_manifest(run)
    assert {row.task: row.attempt for row in rows} == winners
    assert [row.rows for row in rows] == [4, 4, 4, 2]
    assert [row.seed for row in rows] == [task.seed for task in run.plan]
    assert seal(run)
    assert run.store.get("_MANIFEST") == manifest


def test_the_card_names_teacher_and_fingerprint(run: Run) -> None:
    commit_all(run)
    seal(run)
    card = run.store.get("README.md").decode()
    assert run.plan.fingerprint in card
    assert "14 synthetic images, 16x16, 4 classes" in card


def test_losers_shards_go_when_the_run_is_sealed(run: Run) -> None:
    fake_commit(run, 2, str(uuid4()))  # put, never committed
    commit_all(run)
    assert len(keys(run.store, "data/")) == 5
    seal(run)
    assert len(keys(run.store, "data/")) == 4


def test_gc_leaves_what_no_commit_decides(run: Run) -> None:
    pending = fake_commit(run, 3, str(uuid4()))
    loser = fake_commit(run, 0, str(uuid4()))
    commit_all(run, [0])
    assert gc(run) == [loser.shard]
    assert pending.shard in keys(run.store, "data/")


def test_a_loser_that_a_redo_made_the_winner_is_spared(run: Run) -> None:
    """The commits are read, then the task is redone by others, then the shards are listed."""
    was = fake_commit(run, 0, str(uuid4()))
    assert run.commit(was) == "mine"
    redo(run, [0])
    assert run.commit(now := fake_commit(run, 0, str(uuid4()))) == "mine"
    assert delete_losers(run, [(now.shard, 0)]) == []
    assert delete_losers(run, [(now.shard, 0), (was.shard, 0)]) == [was.shard]


def test_sealing_refuses_a_missing_or_short_shard(run: Run) -> None:
    commit_all(run)
    shard = keys(run.store, "data/")[1]
    run.store.put(shard, b"short")
    with pytest.raises(DataError, match=r"-00000001-.*: is damaged: it has 5 bytes, .*--task 1"):
        seal(run)
    run.store.delete(shard)
    with pytest.raises(DataError, match="is missing"):
        seal(run)
    run.store.delete(keys(run.store, "data/")[0])
    with pytest.raises(DataError, match=r"2 bad shards; `nisynth redo .* --bad`"):
        seal(run)
    assert not run.is_sealed()


def test_verify_judges_what_is_committed_not_completeness(run: Run) -> None:
    commit_all(run, [0, 2])
    verdict = verify(run, deep=True)
    assert (verdict.checked, verdict.problems) == (2, ())


def test_deep_verify_finds_one_flipped_bit_and_redo_removes_exactly_that(run: Run) -> None:
    commit_all(run)
    seal(run)
    damage(run, keys(run.store, "data/")[2])
    assert verify(run).problems == ()  # the size is right
    verdict = verify(run, deep=True)
    assert verdict.bad_tasks == [2]
    assert "sha256 differs from its commit's" in verdict.problems[0].text
    assert redo(run, verdict.bad_tasks) == [2]
    assert not run.is_sealed()
    assert run.committed() == {0, 1, 3}
    commit_all(run, [2])
    assert seal(run)
    assert verify(run, deep=True).problems == ()


def test_verify_finds_a_damaged_commit_and_a_missing_shard(run: Run) -> None:
    commit_all(run)
    run.store.put(commit_key(run.plan.fp12, 0), b"{")
    run.store.delete(keys(run.store, "data/")[1])
    verdict = verify(run)
    assert verdict.bad_tasks == [0, 1]
    assert redo(run, verdict.bad_tasks) == [0, 1]


def test_verify_finds_commits_missing_under_a_seal(run: Run) -> None:
    commit_all(run)
    seal(run)
    run.store.delete(commit_key(run.plan.fp12, 3))
    [problem] = verify(run).problems  # one line, however many are missing
    assert "1 of 4 tasks are not committed, though _SUCCESS says" in problem.text
    assert redo_bad(run)[1] == []
    assert not run.is_sealed()
    assert run.committed() == {0, 1, 2}


def test_verify_finds_a_forged_shard_with_a_matching_commit(run: Run) -> None:
    """Right hash, right size, wrong labels: only the plan knows."""
    commit_all(run, [0])
    other = tiny_labels(run)
    run.store.put(other.shard, run.store.get(other.shard))
    assert "task 1: " in (text := verify(run, deep=True).problems[0].text)
    assert f"{other.shard}: holds other labels than the plan's; `nisynth redo" in text


def tiny_labels(run: Run) -> Any:  # type: ignore[no-untyped-def]
    """Commits, as task 1, a shard whose labels are those of another permutation."""
    from nisynth.batch import ImageBatch
    from nisynth.shards import OutputConfig, encode
    from tests.tiny import fake_batch

    batch = fake_batch(run.plan, 1)
    wrong = ImageBatch(task=batch.task, images=batch.images, labels=batch.labels.flip(0))
    data = encode(wrong, OutputConfig(), run.plan.normalization, run.plan.classes)
    record = fake_commit(run, 1, str(uuid4()), put=False)
    key = run.put_shard(1, record.attempt, data)
    from dataclasses import replace

    record = replace(record, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), shard=key)
    assert run.commit(record) == "mine"
    return record


def test_a_damaged_manifest_is_found(run: Run) -> None:
    commit_all(run)
    seal(run)
    damage(run, "_MANIFEST")
    assert "sha256 differs from the one in _SUCCESS" in verify(run).problems[0].text
    with pytest.raises(DataError):
        read_manifest(run)


def test_redo_bad_changes_nothing_where_nothing_is_bad(run: Run) -> None:
    commit_all(run)
    seal(run)
    before = contents(run.store)
    verdict, removed = redo_bad(run)
    assert (verdict.checked, verdict.problems, removed) == (4, (), [])
    assert contents(run.store) == before


def test_complete_means_committed_and_sealed(run: Run) -> None:
    assert not verify(run).complete
    commit_all(run)
    assert not verify(run).complete
    seal(run)
    assert verify(run).complete


def test_what_an_interrupted_seal_left_is_judged_where_it_would_hinder_the_next(run: Run) -> None:
    commit_all(run)
    seal(run)
    run.store.delete("_SUCCESS")
    assert verify(run).problems == ()  # the same commits: the next seal goes on from there
    run.store.put("_MANIFEST", b"of commits that are gone")
    with pytest.raises(DataError, match="its content differs from what the commits give"):
        seal(run)
    assert "the manifest lists other shards than the commits" in verify(run).problems[0].text
    redo_bad(run)
    assert seal(run)


def test_redo_outside_the_plan(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"tasks 0\.\.3"):
        redo(run, [4])


def test_status_counts_and_estimates(run: Run) -> None:
    run.quarantine(3, [])
    commit_all(run, [0, 1])
    found = status(run)
    assert (found.planned, found.committed, found.quarantined, found.images) == (4, 2, 1, 8)
    assert found.eta_s == 1.0  # one task left, one second apart by their records
    assert not found.complete
    commit_all(run, [2, 3])
    seal(run)
    assert (status(run).complete, status(run).eta_s, status(run).images) == (True, 0.0, 14)


def test_a_manifest_that_is_missing_under_the_seal_is_damage_that_redo_bad_mends(run: Run) -> None:
    commit_all(run)
    assert seal(run)
    run.store.delete("_MANIFEST")
    with pytest.raises(DataError, match=r"_MANIFEST: missing, though _SUCCESS .*redo .* --bad"):
        read_manifest(run)
    verdict, removed = redo_bad(run)
    assert len(verdict.problems) == 1
    assert removed == []
    assert seal(run)
    assert verify(run).complete


def test_verify_sees_a_manifest_that_names_shards_of_equal_bytes_that_lost(run: Run) -> None:
    commit_all(run)
    assert seal(run)
    run.store.delete(commit_key(run.plan.fp12, 0))
    commit_all(run, [0])  # the same images by another attempt
    (problem,) = verify(run).problems
    assert "the manifest lists other shards than the commits" in problem.text
