"""Answers that lack what S3 promises, or come from something else: bounded, one line, nothing misread."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nisynth.commits import Run
from nisynth.commits.audit import redo, verify
from nisynth.commits.seal import seal
from nisynth.errors import DataError, StorageError
from nisynth.storage import AlreadyExists, NotFound, OutcomeUnknown, Unconditional, open_store
from nisynth.storage.s3 import S3Store
from nisynth.storage.single_writer import SingleWriter
from tests.faults import Fault, FaultProxy
from tests.tiny import commit_all, keys, tiny_plan

Quick = Callable[..., S3Store]


def always(kind: str, verb: str | None = None, **how: object) -> Fault:
    return Fault(kind, verb, times=None, **how)  # type: ignore[arg-type]


def test_a_get_without_a_length_is_read_to_its_end_and_no_further_than_allowed(
    proxy: FaultProxy, quick: Quick
) -> None:
    store = quick()
    content = bytes(range(256)) * 1000
    store.create("data/1", content)
    proxy.inject(always("unsized", "GET"))
    assert store.get("data/1") == content
    assert store.get("data/1", len(content)) == content
    with pytest.raises(DataError, match="no more than 1000 can belong there"):
        store.get("data/1", 1000)


def test_a_head_without_a_length_is_made_up_for_by_a_listing(proxy: FaultProxy, quick: Quick) -> None:
    store = quick()
    store.create("data/1", b"twelve bytes")
    store.create("data/1.longer", b"")
    proxy.inject(always("unsized", "HEAD"))
    assert store.size_bytes("data/1") == 12
    assert store.size_bytes("data/1.longer") == 0
    with pytest.raises(NotFound):
        store.size_bytes("data/2")


def test_a_listing_that_repeats_its_page_ends_in_one_line(proxy: FaultProxy, quick: Quick) -> None:
    store = quick(page_keys=2)
    for number in range(5):
        store.create(f"data/{number}", b"")
    assert len(keys(store)) == 5
    proxy.inject(always("repeated", "LIST"))
    with pytest.raises(StorageError, match="lists the same page again and again"):
        keys(store)


def test_a_delete_that_is_answered_with_404_is_done(proxy: FaultProxy, quick: Quick, tmp_path: Path) -> None:
    run = Run.join(quick(), tiny_plan(tmp_path))
    commit_all(run)
    assert seal(run)
    proxy.inject(always("status", "DELETE", status=404, code="NoSuchKey", forward=True))
    assert redo(run, [2]) == [2]
    assert (run.is_sealed(), run.committed()) == (False, {0, 1, 3})


@pytest.mark.parametrize("verb", ["GET", "HEAD", "PUT", "LIST", "DELETE"])
def test_a_login_page_is_no_answer_of_the_store(proxy: FaultProxy, quick: Quick, verb: str) -> None:
    store = quick()
    store.create("plan.json", b"{}")
    proxy.inject(always("page"))
    uses: dict[str, Callable[[], object]] = {
        "GET": lambda: store.get("plan.json"),
        "HEAD": lambda: store.size_bytes("plan.json"),
        "PUT": lambda: store.create("commits/1.json", b"mine"),
        "LIST": lambda: keys(store),
        "DELETE": lambda: store.delete("plan.json"),
    }
    with pytest.raises(StorageError, match=r"answers with a web page|does not answer as S3 does") as caught:
        uses[verb]()
    assert type(caught.value) is (OutcomeUnknown if verb == "PUT" else StorageError)
    proxy.clear()
    assert keys(store) == ["plan.json"]


def test_a_page_in_place_of_a_plan_is_not_called_a_damaged_plan(
    proxy: FaultProxy, quick: Quick, tmp_path: Path
) -> None:
    run = Run.join(quick(), tiny_plan(tmp_path))
    proxy.inject(always("page", "GET"))
    with pytest.raises(StorageError, match="answers with a web page"):
        Run.open(run.store)


def test_a_proxy_that_compresses_leads_to_no_redo(proxy: FaultProxy, quick: Quick, tmp_path: Path) -> None:
    run = Run.join(quick(), tiny_plan(tmp_path))
    commit_all(run)
    proxy.inject(always("gzip", "GET", key="data/"))
    with pytest.raises(StorageError, match=r"a proxy compresses .* let it pass objects through unchanged"):
        verify(run, deep=True)
    proxy.clear()
    assert verify(run, deep=True).problems == ()


def test_a_body_that_drips_has_a_deadline(proxy: FaultProxy, quick: Quick) -> None:
    store = quick(read_s=0.5, attempts=2)
    store.put("data/1", bytes(10_000))
    proxy.inject(always("drip", "GET"))
    with pytest.raises(StorageError, match="sends the object too slowly"):
        store.get("data/1")
    proxy.clear()
    proxy.inject(Fault("drip", "GET"))
    assert store.get("data/1") == bytes(10_000)


@pytest.mark.parametrize("code", ["NotImplemented", "501"])
def test_one_writer_needs_no_conditional_writes(proxy: FaultProxy, quick: Quick, code: str) -> None:
    proxy.inject(always("status", "PUT", key="", status=501, code=code))
    with pytest.raises(Unconditional, match=r"or set execution\.single_writer: true"):
        quick().create("plan.json", b"{}")
    assert proxy.count("PUT") == 1  # trying again cannot help


def test_a_run_of_one_writer_where_conditions_are_not_implemented(
    proxy: FaultProxy, s3_url: str, tmp_path: Path
) -> None:
    proxy.refuse_conditions = True
    store = open_store(s3_url, single_writer=True)
    run = Run.join(store, tiny_plan(tmp_path))
    assert Run.join(store, run.plan).plan.fingerprint == run.plan.fingerprint
    commit_all(run)
    assert seal(run)
    assert verify(run, deep=True).complete
    with pytest.raises(AlreadyExists):
        store.create("plan.json", b"{}")


def test_a_second_writer_is_found_out_where_the_store_can(quick: Quick) -> None:
    store = SingleWriter(quick())
    store.create("commits/1.json", b"one")
    with pytest.raises(AlreadyExists):
        SingleWriter(quick()).create("commits/1.json", b"two")
