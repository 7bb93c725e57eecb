"""The bucket policy, held against every request that real commands make: what a role needs, and no more."""

import json
import uuid
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from nisynth import adapt, run
from nisynth.commits import Run
from nisynth.commits.audit import gc, redo, verify
from nisynth.commits.records import commit_key
from nisynth.commits.run import SUCCESS_KEY
from nisynth.commits.seal import create_same, seal
from nisynth.errors import StorageError
from nisynth.storage import Store, open_store
from tests.faults import FaultProxy
from tests.series.recipes import recipe
from tests.servers import ROLES, WeedServer, role_credentials, s3_environment
from tests.tiny import commit_all, fake_commit, tiny_config, tiny_plan

REPO = Path(__file__).resolve().parents[2]
POLICY = (REPO / "cluster" / "aws" / "storage-policy.json").read_text()
BUCKET = "arn:aws:s3:::example-bucket"
ACTIONS = {
    "GET": "s3:GetObject",
    "HEAD": "s3:GetObject",
    "PUT": "s3:PutObject",
    "DELETE": "s3:DeleteObject",
    "LIST": "s3:ListBucket",
}


def allowed(role: str, verb: str, key: str, conditional: bool = False) -> bool:
    """Decides as AWS does: a denial beats what allows, and nothing is allowed by default."""
    policy = json.loads(POLICY)
    arn = BUCKET if verb == "LIST" else f"{BUCKET}/{key}"
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        if ACTIONS[verb] in _listed(statement["Action"])
        and any(fnmatchcase(arn, pattern) for pattern in _listed(statement["Resource"]))
        and _concerns(statement["Principal"], role)
        and statement.get("Condition") in (None, {"Null": {"s3:if-none-match": str(not conditional).lower()}})
    }
    return effects == {"Allow"}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _concerns(principal: Any, role: str) -> bool:
    return principal == "*" or any(arn.endswith(f"role/nisynth-{role}") for arn in _listed(principal["AWS"]))


@pytest.fixture
def proxy(s3_server: WeedServer, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Sees every request that goes to the S3 server."""
    with FaultProxy(s3_server.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


def refused(proxy: FaultProxy, role: str) -> set[str]:
    """Returns which of the requests seen since the last call the policy refuses to the role."""
    seen = list(proxy.seen)
    proxy.clear()
    assert seen
    return {
        f"{request.verb} {request.key.split('/')[1]}"
        for request in seen
        if not allowed(role, request.verb, request.key, "if-none-match" in request.headers)
    }


def test_each_role_may_do_its_work_and_no_other(proxy: FaultProxy, s3_url: str, tmp_path: Path) -> None:
    run(tiny_config(tmp_path), s3_url)
    assert refused(proxy, "writer") == set()

    opened = Run.open(open_store(s3_url))
    loser = fake_commit(opened, 0, "00000000-0000-4000-8000-000000000000")
    assert opened.commit(loser) == "other"
    opened.put_shard(1, "00000000-0000-4000-8000-000000000001", b"an attempt that lost")
    assert len(gc(opened)) == 1
    assert refused(proxy, "writer") == set()

    assert verify(Run.open(open_store(s3_url)), deep=True).problems == ()
    assert refused(proxy, "reader") == set()

    redo(opened, [0])
    assert refused(proxy, "operator") == set()
    opened.quarantine(0, ["a failure"])
    assert "PUT quarantine" in refused(proxy, "reader")
    opened.retry()
    assert refused(proxy, "writer") == {"DELETE quarantine"}


def test_a_writer_may_take_its_seal_off_where_a_commit_was_redone_meanwhile(
    proxy: FaultProxy, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Run.join(open_store(s3_url), tiny_plan(tmp_path))
    commit_all(opened)

    def redone_after_the_seal(store: Store, key: str, data: bytes) -> None:
        create_same(store, key, data)
        if key == SUCCESS_KEY:
            store.delete(commit_key(opened.plan.fp12, 0))

    monkeypatch.setattr("nisynth.commits.seal.create_same", redone_after_the_seal)
    assert not seal(opened)
    assert not opened.is_sealed()
    assert refused(proxy, "writer") == {"DELETE commits"}  # the redo's own


@pytest.mark.slow
def test_a_writer_may_make_a_series_and_clear_away_what_its_rivals_saved(
    proxy: FaultProxy, s3_url: str, tmp_path: Path
) -> None:
    adapt(recipe(tmp_path), s3_url)
    assert any(request.verb == "DELETE" and "checkpoint" in request.key for request in proxy.seen)
    assert refused(proxy, "writer") == set()


@pytest.mark.parametrize("role", ROLES)
def test_nobody_overwrites_what_a_run_has_created(role: str) -> None:
    for key in ("run/commits/0123456789ab-00000000.json", "run/data/a.parquet", "run/plan.json"):
        assert not allowed(role, "PUT", key)
        assert allowed(role, "PUT", key, conditional=True) == (role == "writer")


def test_only_the_operator_deletes_what_counts() -> None:
    for name in ("commits/a.json", "quarantine/a.json"):
        assert [role for role in ROLES if allowed(role, "DELETE", f"run/{name}")] == ["operator"]
    assert not any(allowed(role, "DELETE", "run/plan.json") for role in ROLES)


@pytest.fixture
def enforced(s3_server: WeedServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """Opens a run, as a role, in a bucket whose policy the S3 server enforces.

    SeaweedFS knows no `s3:if-none-match` and would refuse every write that the last statement is about, so
    that one statement is left out here; it calls its users users and not roles.
    """
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    bucket = f"policy-{uuid.uuid4().hex[:8]}"
    policy = json.loads(
        POLICY.replace("example-bucket", bucket).replace(
            "arn:aws:iam::111122223333:role/", "arn:aws:iam::000000000000:user/"
        )
    )
    assert policy["Statement"].pop()["Sid"] == "NobodyOverwritesWhatARunCreates"
    s3_server.new_bucket(bucket, json.dumps(policy))

    def open_as(role: str) -> Store:
        for name, value in s3_environment(s3_server.endpoint, *role_credentials(role)).items():
            monkeypatch.setenv(name, value)
        return open_store(f"s3://{bucket}/run")

    return open_as


def test_an_s3_server_lets_each_role_do_its_work(enforced: Callable[[str], Store], tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert run(config, enforced("writer").url).exit_code == 0
    lost = Run.open(enforced("writer"))
    lost.put_shard(1, "00000000-0000-4000-8000-000000000001", b"an attempt that lost")
    assert len(gc(lost)) == 1
    for key in ("checkpoint.safetensors", "ratio-0.50.checkpoint.safetensors"):
        enforced("writer").put(key, b"what a training saves of itself")
        enforced("writer").delete(key)
    assert verify(Run.open(enforced("reader")), deep=True).complete
    assert redo(Run.open(enforced("operator")), [0]) == [0]
    assert run(config, enforced("writer").url).executed == 1


@pytest.mark.parametrize(
    ("role", "verb", "key"),
    [
        ("writer", "delete", "commits/0123456789ab-00000000.json"),
        ("writer", "delete", "plan.json"),
        ("reader", "delete", "_SUCCESS"),
        ("writer", "delete", "quarantine/0123456789ab-00000000.json"),
        ("reader", "put", "README.md"),
        ("reader", "create", "data/a.parquet"),
        ("reader", "delete", "data/a.parquet"),
        ("operator", "put", "README.md"),
        ("operator", "create", "commits/0123456789ab-00000000.json"),
        ("operator", "delete", "plan.json"),
    ],
)
def test_an_s3_server_refuses_each_role_everything_else(
    enforced: Callable[[str], Store], role: str, verb: str, key: str
) -> None:
    enforced("writer").create(key, b"what a run wrote")
    store = enforced(role)
    with pytest.raises(StorageError, match=r"(?i)permission|access ?denied|refuse"):
        getattr(store, verb)(key, *([b"other bytes"] if verb != "delete" else []))
    assert enforced("reader").get(key) == b"what a run wrote"
