"""No bucket and no folder leads a pull astray, whatever they name, claim or link to."""

import hashlib
import json
import os
from pathlib import Path
from uuid import uuid4

import pytest

from nisynth.commits.fetch import MAX_DOCUMENT_BYTES
from nisynth.commits.pull import pull
from nisynth.commits.records import commit_key, shard_key
from nisynth.errors import DataError, StorageError
from nisynth.storage import open_store
from tests.sources import TASKS, contents, forge, is_sound, make_run, shard_of, source_of
from tests.tiny import keys

HOSTILE_SHARDS = [
    "../../escaped.parquet",
    "/etc/escaped.parquet",
    "data/../../escaped.parquet",
    "plan.json",
    "data/x\x00.parquet",
]


@pytest.mark.parametrize("shard", HOSTILE_SHARDS)
def test_a_commit_that_names_another_key_is_refused(tmp_path: Path, shard: str) -> None:
    run = make_run(tmp_path)
    forge(run, 1, shard=shard)
    with pytest.raises(DataError, match="which is not its attempt's"):
        pull(run.store, str(tmp_path / "deep/copy"))
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_commit_of_another_attempt_format_or_plan_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt = str(uuid4())
    forge(run, 0, attempt="../../..")
    run.store.create(npz := shard_key(run.plan.fp12, 1, attempt, "npz"), run.store.get(shard_of(run, 1)))
    forge(run, 1, attempt=attempt, shard=npz)
    forge(run, 2, fingerprint="0" * 64)
    forge(run, 3, seed=1)
    forge(run, 4, figures={"teacher_accuracy": []})
    run.store.put(commit_key(run.plan.fp12, 5), b"[" * 100_000)
    with pytest.raises(DataError, match="6 tasks cannot be copied"):
        pull(run.store, str(tmp_path / "copy"))
    assert set(contents(open_store(str(tmp_path / "copy")))) == {"plan.json", ".huggingface.yaml"}


def test_listed_keys_are_taken_apart_or_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    fp12 = run.plan.fp12
    source_of(run).more_keys = [
        f"commits/{fp12}-00000001.json/../../../escaped",
        f"commits/../{fp12}-00000001.json",
        f"commits/{fp12}-99999999.json",  # outside the plan
        "commits/000000000000-00000001.json",  # of another fingerprint
        f"data/{fp12}-00000001-../../escaped.parquet",
        "../escaped",
        "/etc/escaped",
    ]
    run.store.create("commits/000000000000-00000001.json", b"{}")
    assert pull(run.store, str(tmp_path / "copy")).shards == TASKS
    assert "commits/000000000000-00000001.json" not in keys(open_store(str(tmp_path / "copy")))
    assert not list(tmp_path.rglob("*escaped*"))


def test_what_is_too_large_is_refused_before_it_is_downloaded(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    source = source_of(run)
    longer, claimed, record = shard_of(run, 0), shard_of(run, 1), commit_key(run.plan.fp12, 2)
    source.sizes = {longer: 10**12, claimed: 10**12, record: MAX_DOCUMENT_BYTES + 1}
    forge(run, 1, bytes=10**12)
    source.gets.clear()
    with pytest.raises(DataError, match=r"3 tasks cannot be copied; .* it has 1000000000000 bytes"):
        pull(source, str(tmp_path / "copy"))
    assert source.gets[longer] == source.gets[claimed] == source.gets[record] == 0
    assert is_sound(tmp_path / "copy", TASKS - 3)
    source.sizes = {"plan.json": MAX_DOCUMENT_BYTES + 1}
    source.gets.clear()
    with pytest.raises(DataError, match=r"plan\.json: has \d+ bytes, no more than \d+ can belong there"):
        pull(source, str(tmp_path / "other"))
    assert source.gets.total() == 0


def test_a_changed_or_impossible_plan_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    document = json.loads(run.store.get("plan.json"))
    document["identity"]["run"]["seed"] = 9
    run.store.put("plan.json", json.dumps(document).encode())
    with pytest.raises(DataError, match="fingerprint does not match"):
        pull(run.store, str(tmp_path / "copy"))
    document["identity"]["output"]["format"] = "../../escaped"
    canonical = json.dumps(document["identity"], sort_keys=True, separators=(",", ":"))
    document["fingerprint"] = hashlib.sha256(canonical.encode()).hexdigest()
    run.store.put("plan.json", json.dumps(document).encode())
    with pytest.raises(DataError, match="not a plan of this version"):
        pull(run.store, str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "name", ["data", "commits", ".tmp", "plan.json", "README.md", "_MANIFEST", "_SUCCESS"]
)
def test_links_in_the_folder_are_not_followed(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    outside, copy = tmp_path / "outside", tmp_path / "copy"
    outside.mkdir()
    if "." in name[1:] or name.startswith("_"):
        (outside / "target").write_bytes(b"precious")
        target = outside / "target"
    else:
        target = outside
    before = sorted(path.name for path in outside.iterdir())
    copy.mkdir()
    if name != "plan.json":
        (copy / "plan.json").write_bytes(run.store.get("plan.json"))
    (copy / name).symlink_to(target)
    with pytest.raises(StorageError, match=rf"{name}: not a plain (file|folder); pull follows no links"):
        pull(run.store, str(copy))
    assert sorted(path.name for path in outside.iterdir()) == before
    assert all(path.read_bytes() == b"precious" for path in outside.iterdir())


def test_a_shard_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shard = tmp_path / "copy" / shard_of(run, 0)
    shard.parent.mkdir(parents=True)
    (tmp_path / "copy/plan.json").write_bytes(run.store.get("plan.json"))
    (tmp_path / "precious").write_bytes(b"precious")
    shard.symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="not a plain file"):
        pull(run.store, str(tmp_path / "copy"))
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(StorageError, match="not a plain file"):
        pull(run.store, str(tmp_path / "copy"))
    assert (tmp_path / "precious").read_bytes() == b"precious"
