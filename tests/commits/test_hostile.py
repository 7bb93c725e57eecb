"""Whatever somebody writes into the bucket, reading it raises an error of ours, soon and in little memory."""

import hashlib
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nisynth.commits import Run
from nisynth.commits.pull import pull
from nisynth.commits.records import Commit, commit_key
from nisynth.commits.seal import MANIFEST_KEY, read_manifest
from nisynth.errors import DataError, NisynthError
from nisynth.identity import fingerprint
from nisynth.plan import Plan
from nisynth.shards import decode
from tests.sources import TASKS, make_run, shard_of, source_of

bounded = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**30, -1, 10**9, "../../escaped", "x]\ny: [1", "\x1b[2J", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def mutated(document: Any, choose: Callable[[int], int], value: Any) -> Any:
    """Returns the document with one value, at any depth, replaced, or left out where `value` is `...`."""
    children = list(document) if isinstance(document, dict) else range(len(document))
    chosen = children[choose(len(children))]
    child = document[chosen]
    changed = dict(document) if isinstance(document, dict) else list(document)
    if isinstance(child, dict | list) and child and choose(4):
        changed[chosen] = mutated(child, choose, value)
    elif value is ...:
        del changed[chosen]
    else:
        changed[chosen] = value
    return changed


def chooser(data: st.DataObject) -> Callable[[int], int]:
    return lambda count: data.draw(st.integers(0, count - 1))


@bounded
@given(data=st.data(), value=VALUES | st.just(...))
def test_any_plan_is_used_or_refused(tmp_path: Path, data: st.DataObject, value: Any) -> None:
    run = prepared(tmp_path)
    document = dict(run.plan.document)
    document["identity"] = mutated(document["identity"], chooser(data), value)
    document["fingerprint"] = fingerprint(document["identity"])
    try:
        plan = Plan(json.loads(json.dumps(document)))
    except DataError:
        return
    assert len(plan.classes) == plan.num_classes
    assert plan.rows(plan.num_tasks - 1) >= 1
    assert repr(plan)
    assert plan.shard_files
    assert plan.normalization
    assert plan.num_real_images >= 0


@bounded
@given(data=st.data(), value=VALUES | st.just(...))
def test_any_commit_is_used_or_refused(tmp_path: Path, data: st.DataObject, value: Any) -> None:
    run = prepared(tmp_path)
    key = commit_key(run.plan.fp12, 1)
    document = mutated(json.loads(run.store.get(key)), chooser(data), value)
    try:
        commit = Commit.from_json(json.dumps(document).encode(), key, run.plan)
    except DataError:
        return
    assert run.misfit(commit) is None
    assert commit.to_json()


@pytest.mark.parametrize("field", ["figures", "versions"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_commit_with_a_number_that_json_lacks_is_refused(tmp_path: Path, field: str, number: str) -> None:
    run = prepared(tmp_path)
    key = commit_key(run.plan.fp12, 1)
    text = json.dumps(json.loads(run.store.get(key)) | {field: {"extra": ["PLACE"]}})
    with pytest.raises(DataError, match="figures or versions hold a number that is not finite"):
        Commit.from_json(text.replace('"PLACE"', number).encode(), key, run.plan)


@bounded
@given(position=st.integers(0, 10**6), byte=st.integers(1, 255), cut=st.booleans())
def test_no_altered_byte_of_a_shard_goes_unseen(tmp_path: Path, position: int, byte: int, cut: bool) -> None:
    run = prepared(tmp_path)
    sound = run.store.get(shard_of(run, 1))
    position %= len(sound)
    rest = b"" if cut else bytes([sound[position] ^ byte]) + sound[position + 1 :]
    with pytest.raises(DataError):
        decode(sound[:position] + rest, "parquet")


@settings(bounded, max_examples=40)
@given(more=st.lists(st.text(max_size=40) | st.from_regex(r"(data|commits)/[./a-f0-9-]{0,60}"), max_size=6))
def test_no_listing_leads_a_pull_outside_its_folder(tmp_path: Path, more: list[str]) -> None:
    run = prepared(tmp_path)
    source_of(run).more_keys = more
    copy = tmp_path / "inside" / hashlib.sha256(repr(more).encode("utf-8", "replace")).hexdigest()
    try:
        pull(run.store, str(copy))
    except NisynthError:
        pass
    finally:
        source_of(run).more_keys = []
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] in (["inside"], [])


def reseal(run: Run, table: pa.Table, **options: Any) -> int:
    """Puts a manifest and the seal that fits it, as anyone could; returns its bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    run.store.put(MANIFEST_KEY, sink.getvalue())
    run.store.put("_SUCCESS", f"{hashlib.sha256(sink.getvalue()).hexdigest()}\n".encode())
    return len(sink.getvalue())


def test_a_small_manifest_that_unfolds_is_refused_before_it_does(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    table = pq.read_table(io.BytesIO(run.store.get(MANIFEST_KEY)))
    long = table.set_column(1, "attempt", pa.array(["a" * 40_000_000, *"bcdef"]))
    many = pa.concat_tables([table] * 50_000).combine_chunks()
    plain = {"use_dictionary": False, "compression": "zstd"}
    forgeries: list[tuple[pa.Table, dict[str, Any], str]] = [
        (long, plain, "unpacked it has"),
        (many, plain, "300000 rows, the run has 6 tasks"),
        (table, {"use_dictionary": True}, "is encoded as"),
        (table.append_column("more", table["task"]), plain, "its columns or their types are not"),
        (table.drop_columns(["seed"]), plain, "its columns or their types are not"),
    ]
    for forged, options, words in forgeries:
        assert reseal(run, forged, **options) < 1_000_000
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match=words):
                read_manifest(run)
            assert tracemalloc.get_traced_memory()[1] < 8_000_000
        finally:
            tracemalloc.stop()
        assert pa.total_allocated_bytes() - before < 8_000_000
    reseal(run, table, **plain)
    assert len(read_manifest(run)) == TASKS


def in_four_bytes(number: int) -> bytes:
    """Returns a number as Thrift's compact protocol may have it, whatever it is, in four bytes."""
    sevens = [2 * number >> shift & 127 for shift in (0, 7, 14, 21)]
    return bytes([*(seven | 128 for seven in sevens[:3]), sevens[3]])


def test_a_manifest_whose_footer_hides_what_a_page_unfolds_to_is_refused_before_it_does(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path)
    table = pq.read_table(io.BytesIO(run.store.get(MANIFEST_KEY)))
    long = table.set_column(1, "attempt", pa.array(["a" * 100_000_000, *"bcdef"]))
    reseal(run, long, use_dictionary=False, compression="zstd", write_statistics=False)
    data = run.store.get(MANIFEST_KEY)
    told = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(1).total_uncompressed_size
    assert data.count(in_four_bytes(told)) == 1
    run.store.put(MANIFEST_KEY, forged := data.replace(in_four_bytes(told), in_four_bytes(500)))
    run.store.put("_SUCCESS", f"{hashlib.sha256(forged).hexdigest()}\n".encode())
    assert pq.ParquetFile(io.BytesIO(forged)).metadata.row_group(0).column(1).total_uncompressed_size == 500
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="unpacked it has 10000"):
        read_manifest(run)
    assert pa.total_allocated_bytes() - before < 8_000_000


@bounded
@given(position=st.integers(0, 10**6), byte=st.integers(1, 255))
def test_no_altered_byte_of_a_manifest_goes_unseen(tmp_path: Path, position: int, byte: int) -> None:
    run = prepared(tmp_path)
    sound = run.store.get(MANIFEST_KEY)
    position %= len(sound)
    source_of(run).answers[MANIFEST_KEY] = [
        sound[:position] + bytes([sound[position] ^ byte]) + sound[position + 1 :]
    ]
    with pytest.raises(DataError, match="its sha256 differs"):
        read_manifest(run)


RUNS: dict[Path, Run] = {}


def prepared(tmp_path: Path) -> Run:
    """Returns one run for all examples of a test."""
    if tmp_path not in RUNS:
        RUNS.clear()
        RUNS[tmp_path] = make_run(tmp_path)
    return RUNS[tmp_path]
