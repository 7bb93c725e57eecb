"""The life of a run in a real bucket: two writers race, it is sealed, judged, redone, swept and pulled."""

import threading
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from nisynth import open_dataset
from nisynth.commits import Run
from nisynth.commits.audit import gc, redo, verify
from nisynth.commits.pull import pull
from nisynth.commits.seal import seal
from nisynth.storage import open_store
from tests.faults import Fault, FaultProxy
from tests.servers import WeedServer
from tests.tiny import commit_all, fake_commit, keys, tiny_plan


def race(url: str, run: Run, task: int) -> dict[str, str]:
    """Two drivers, each with a store of its own, commit one task at once; returns outcome by attempt."""
    records = [fake_commit(run, task, str(uuid4())) for _ in range(2)]
    outcomes: dict[str, str] = {}
    start = threading.Barrier(2, timeout=60)

    def commit(number: int) -> None:
        mine = Run.join(open_store(url), run.plan)
        start.wait()
        outcomes[records[number].attempt] = mine.commit(records[number])

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_a_run_on_s3_from_the_first_commit_to_a_copy(s3_url: str, tmp_path: Path) -> None:
    run = Run.join(open_store(s3_url), tiny_plan(tmp_path, run={"num_images": 14}))
    outcomes = race(s3_url, run, 1)
    assert sorted(outcomes.values()) == ["mine", "other"]
    winner = run.read(1)
    assert winner is not None
    assert outcomes[winner.attempt] == "mine"
    assert keys(run.store, "data/") == [winner.shard]

    left_over = fake_commit(run, 0, str(uuid4()))  # its worker died before it could commit
    commit_all(run, [0])
    assert gc(run) == [left_over.shard]
    assert not seal(run)
    commit_all(run, [2, 3])
    assert seal(run)
    assert verify(run, deep=True).problems == ()

    shard = keys(run.store, "data/")[2]
    data = run.store.get(shard)
    run.store.put(shard, data[:-1] + bytes([data[-1] ^ 1]))
    assert verify(run, deep=True).bad_tasks == [2]
    assert redo(run, [2]) == [2]
    assert (run.is_sealed(), run.committed()) == (False, {0, 1, 3})
    commit_all(run, [2])
    assert seal(run)
    verdict = verify(run, deep=True)
    assert (verdict.checked, verdict.problems) == (4, ())
    assert len(keys(run.store, "data/")) == 4

    done = pull(open_store(s3_url), str(tmp_path / "copy"), workers=4)
    assert (done.complete, done.shards, done.fetched, done.images) == (True, 4, 4, 14)
    copy = open_store(str(tmp_path / "copy"))
    assert {key: copy.get(key) for key in keys(copy)} == {key: run.store.get(key) for key in keys(run.store)}
    assert verify(Run.open(copy), deep=True).problems == ()
    assert pull(open_store(s3_url), str(tmp_path / "copy")).fetched == 0
    here, there = open_dataset(str(tmp_path / "copy")), open_dataset(s3_url, cache=tmp_path / "cache")
    assert torch.equal(here.load().pixels, there.load().pixels)
    assert here.load().labels.tolist() == there.load().labels.tolist()


def test_a_pull_over_a_bad_network_is_whole(
    s3_server: WeedServer, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.join(open_store(s3_url), tiny_plan(tmp_path))
    commit_all(run)
    seal(run)
    with FaultProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for task, kind in enumerate(("truncated", "corrupted", "shortened", "dropped")):
            proxy.inject(Fault(kind, verb="GET", key=f"data/.*-{task:08d}-"))  # type: ignore[arg-type]
        proxy.inject(Fault("status", verb="GET", key="commits/", status=503, code="SlowDown", times=2))
        done = pull(open_store(s3_url), str(tmp_path / "copy"))
        faults = {seen.fault for seen in proxy.seen if seen.fault}
    assert (done.complete, done.fetched) == (True, 4)
    assert len(faults) == 5
    verdict = verify(Run.open(open_store(str(tmp_path / "copy"))), deep=True)
    assert (verdict.checked, verdict.problems) == (4, ())
