"""Whatever somebody writes into the bucket, each verb ends with a documented code, and never in 70."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nisynth.commits import Run
from nisynth.commits.records import commit_key
from nisynth.commits.seal import MANIFEST_KEY, seal
from nisynth.identity import fingerprint
from nisynth.storage import ObjectInfo, open_store
from nisynth.storage.local import LocalStore
from tests.command_line import nisynth
from tests.commits.test_hostile import VALUES, bounded, chooser, mutated
from tests.sources import shard_of
from tests.tiny import commit_all, tiny_plan

VERBS = (
    ["status"],
    ["verify"],
    ["verify", "--deep"],
    ["logs"],
    ["logs", "--task", "1"],
    ["export", "export", "--format", "npz"],
    ["pull", "pulled"],
    ["redo", "--bad"],
    ["gc"],
)
DOCUMENTED = {0, 1, 2, 3, 6}
BYTES = st.tuples(st.integers(0, 10**6), st.integers(1, 255))


def plan(run: Run, data: st.DataObject) -> None:
    document = dict(run.plan.document)
    document["identity"] = mutated(document["identity"], chooser(data), data.draw(VALUES))
    document["fingerprint"] = fingerprint(document["identity"])
    run.store.put("plan.json", json.dumps(document).encode())


def commit(run: Run, data: st.DataObject) -> None:
    key = commit_key(run.plan.fp12, 1)
    document = mutated(json.loads(run.store.get(key)), chooser(data), data.draw(VALUES | st.just(...)))
    run.store.put(key, json.dumps(document).encode())


def manifest(run: Run, data: st.DataObject) -> None:
    forged = altered(run.store.get(MANIFEST_KEY), data)
    run.store.put(MANIFEST_KEY, forged)
    run.store.put("_SUCCESS", f"{hashlib.sha256(forged).hexdigest()}\n".encode())


def shard(run: Run, data: st.DataObject) -> None:
    """Alters an NPZ shard, and its commit with it, so that only decoding tells."""
    forged = altered(run.store.get(shard_of(run, 1)), data)
    run.store.put(shard_of(run, 1), forged)
    key = commit_key(run.plan.fp12, 1)
    told = {"sha256": hashlib.sha256(forged).hexdigest(), "bytes": len(forged)}
    run.store.put(key, json.dumps(json.loads(run.store.get(key)) | told).encode())


def altered(sound: bytes, data: st.DataObject) -> bytes:
    forged = bytearray(sound)
    for position, byte in data.draw(st.lists(BYTES, min_size=1, max_size=3)):
        forged[position % len(forged)] ^= byte
    return bytes(forged[: data.draw(st.sampled_from([len(forged), len(forged) // 2]))])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    run = Run.join(open_store(str(folder / "run")), tiny_plan(folder, output={"format": "npz"}))
    commit_all(run)
    assert seal(run)
    return folder / "run"


def read_by_every_verb(url: Path, folder: Path) -> None:
    for verb, *arguments in VERBS:
        places = [str(folder / word) if word in ("export", "pulled") else word for word in arguments]
        told = nisynth(verb, url, *places)
        assert told.returncode in DOCUMENTED, (verb, told.returncode, told.stdout, told.stderr)
        assert "Traceback" not in told.stderr
        assert "\x1b" not in told.stdout + told.stderr


def check(tamper: Any, finished: Path, folder: Path, data: st.DataObject) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    url = Path(shutil.copytree(finished, folder / "run"))
    tamper(Run.open(open_store(str(url))), data)
    read_by_every_verb(url, folder)


@pytest.mark.parametrize("tamper", [plan, commit, manifest, shard])
def test_any_forged_object_ends_in_one_line(tamper: Any, finished: Path, tmp_path: Path) -> None:
    @settings(bounded, max_examples=4)
    @given(data=st.data())
    def hold(data: st.DataObject) -> None:
        check(tamper, finished, tmp_path / "copy", data)

    hold()


@pytest.mark.slow
@pytest.mark.parametrize("tamper", [plan, commit, manifest, shard])
def test_many_forged_objects_end_in_one_line(tamper: Any, finished: Path, tmp_path: Path) -> None:
    @settings(bounded, max_examples=300)
    @given(data=st.data())
    def hold(data: st.DataObject) -> None:
        check(tamper, finished, tmp_path / "copy", data)

    hold()


@pytest.mark.parametrize("size", [-1, 0, 10**30])
def test_a_listing_that_lies_about_sizes_ends_in_one_line(
    size: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_ = LocalStore.list

    def lying(self: LocalStore, prefix: str = "") -> Iterator[ObjectInfo]:
        return (ObjectInfo(info.key, size) for info in list_(self, prefix))

    url = Path(shutil.copytree(finished, tmp_path / "run"))
    monkeypatch.setattr(LocalStore, "list", lying)
    read_by_every_verb(url, tmp_path)
