"""The bucket policy, held against every request that real commands make: what a role needs, and no more."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from nisynth import run
from nisynth.commits import Run
from nisynth.commits.audit import gc, redo, verify
from nisynth.storage import open_store
from tests.faults import FaultProxy
from tests.servers import WeedServer
from tests.tiny import fake_commit, tiny_config

REPO = Path(__file__).resolve().parents[2]
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
    policy = json.loads((REPO / "cluster" / "aws" / "storage-policy.json").read_text())
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


@pytest.mark.parametrize("role", ["reader", "writer", "operator"])
def test_nobody_overwrites_what_a_run_has_created(role: str) -> None:
    for key in ("run/commits/0123456789ab-00000000.json", "run/data/a.parquet", "run/plan.json"):
        assert not allowed(role, "PUT", key)
        assert allowed(role, "PUT", key, conditional=True) == (role == "writer")


def test_only_the_operator_deletes_what_counts() -> None:
    for name in ("commits/a.json", "quarantine/a.json", "manifest.parquet", "_SUCCESS"):
        may = [role for role in ("reader", "writer", "operator") if allowed(role, "DELETE", f"run/{name}")]
        assert may == ["operator"]
    assert not any(allowed(role, "DELETE", "run/plan.json") for role in ("reader", "writer", "operator"))
