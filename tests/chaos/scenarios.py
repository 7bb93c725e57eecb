"""The scenarios, as data: what goes wrong, in which runs, and the sequences of exit codes that are right.

A run under a fault is repeated, without the fault, until it is complete; `codes` are those of all its
drivers, one after the other, -9 for one that was killed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tests.chaos.drivers import Death
from tests.chaos.injectors import Always, Dies, Injector, NodeLoss, Outage, Shot, Storm, Tokens
from tests.faults import Fault

SHARD, COMMIT = r"data/.*", r"commits/.*"


@dataclass(frozen=True)
class Trial:
    """One run to be disturbed. quick: part of the subset that runs with the tests."""

    executor: Literal["local", "ray"]
    store: Literal["local", "s3"]
    inject: Callable[[], Injector]
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One row of the table. says: what the first driver has to say."""

    name: str
    trials: tuple[Trial, ...]
    codes: frozenset[tuple[int, ...]]
    says: str = ""


def _workers(name: str, what: str, **options: Any) -> Scenario:
    inject = partial(Tokens, what, **options)
    quick = what == "exit"
    trials = (Trial("ray", "s3", inject, quick), Trial("ray", "local", inject))
    return Scenario(name=name, trials=trials, codes=frozenset({(0,)}))


def _killed(name: str, *deaths: Death, on_s3: bool = True) -> Scenario:
    """Every death on the local store, and all but those inside a call on S3 too."""
    trials = [Trial("local", "local", partial(Dies, death), quick=True) for death in deaths]
    trials += [Trial("local", "s3", partial(Dies, d)) for d in deaths if on_s3 and d.when != "inside"]
    return Scenario(name=name, trials=tuple(trials), codes=frozenset({(-9, 0)}))


def _redo_killed(name: str, *deaths: Death) -> Scenario:
    first = ("redo", "--task", "1", "--task", "3")
    trials = tuple(Trial("local", "local", partial(Dies, death, first), quick=True) for death in deaths)
    return Scenario(name=name, trials=trials, codes=frozenset({(-9, 0)}))


def _storm(name: str, *faults: Fault) -> Scenario:
    """A storm may end a run, with 6 and no other code."""
    inject = partial(Storm, *faults)
    trials = (
        Trial("local", "s3", inject, quick=True),
        *(Trial("local", "s3", inject) for _ in range(2)),
        *(Trial("ray", "s3", inject) for _ in range(3)),
    )
    return Scenario(name=name, trials=trials, codes=frozenset({(0,), (6, 0)}))


def _status(status: int, code: str, verb: str | None = None) -> tuple[Fault, Fault]:
    """Answers in place of the server's, and after it: the request was carried out, and nobody knows."""
    fault = partial(Fault, "status", verb=verb, times=30, probability=0.25, status=status, code=code)
    return fault(), fault(forward=True)


WORKERS = (
    _workers("actor exits", "exit"),
    _workers("actor segfaults", "segfault"),
    _workers("network raises", "raise"),
    _workers("network returns NaN", "nan"),
    # Before any task was ever finished, nobody knows how long one may take: that is the guard's part.
    _workers("actor hangs", "hang", times=2, after=1, deadline_floor_s=10.0),
    Scenario(
        name="first actor hangs",
        trials=(Trial("ray", "local", partial(Tokens, "hang", 1, no_progress_s=90.0)),),
        codes=frozenset({(5, 0)}),
        says="stuck: task 0",
    ),
    Scenario(
        name="task kills every actor",
        trials=(Trial("ray", "local", partial(Always, "exit", 3)),),
        codes=frozenset({(4, 0)}),
        says="task 0 is quarantined: worker_died",
    ),
    Scenario(
        name="network always raises",
        trials=(
            Trial("local", "local", partial(Always, "raise", 3), quick=True),
            Trial("ray", "s3", partial(Always, "raise", 3)),
        ),
        codes=frozenset({(4, 0)}),
        says="task 0 is quarantined: raised",
    ),
)
MACHINES = (
    Scenario(
        name="raylet killed with its workers",
        trials=(
            Trial("ray", "s3", partial(NodeLoss, "kill")),
            Trial("ray", "local", partial(NodeLoss, "kill")),
        ),
        codes=frozenset({(0,)}),
    ),
    Scenario(
        name="node frozen, thawed afterwards",
        trials=(
            Trial("ray", "s3", partial(NodeLoss, "freeze")),
            Trial("ray", "local", partial(NodeLoss, "freeze")),
        ),
        codes=frozenset({(0,)}),
    ),
    Scenario(
        name="S3 server killed, back at once",
        trials=(Trial("ray", "s3", Outage), Trial("local", "s3", Outage)),
        codes=frozenset({(0,), (6, 0)}),
    ),
    Scenario(
        name="S3 server killed, back later",
        trials=(
            Trial("ray", "s3", partial(Outage, long=True)),
            Trial("local", "s3", partial(Outage, long=True)),
        ),
        codes=frozenset({(6, 0)}),
    ),
)
DRIVERS = (
    Scenario(
        name="driver killed with actors at work",
        trials=(Trial("ray", "s3", partial(Shot, 3), quick=True), Trial("ray", "local", partial(Shot, 5))),
        codes=frozenset({(-9, 0)}),
    ),
    _killed(
        "driver killed: plan",
        Death("create", r"plan\.json", "before"),
        Death("create", r"plan\.json", "inside"),
        Death("create", r"plan\.json", "after"),
    ),
    _killed("driver killed: probe of the store", Death("create", r"probe-.*", "after", 5)),
    _killed(
        "driver killed: before the shard",
        Death("create", SHARD, "before", 1),
        Death("create", SHARD, "inside", 2),
    ),
    _killed(
        "driver killed: shard, no commit",
        Death("create", SHARD, "after", 2),
        Death("create", COMMIT, "before", 3),
        Death("create", COMMIT, "inside", 1),
    ),
    _killed(
        "driver killed: after the commit",
        Death("create", COMMIT, "after", 1),
        Death("create", COMMIT, "after", 8),
    ),
    _killed(
        "driver killed: before the manifest",
        Death("create", r"_MANIFEST", "before"),
        Death("create", r"_MANIFEST", "inside"),
    ),
    _killed(
        "driver killed: manifest, no _SUCCESS",
        Death("create", r"_MANIFEST", "after"),
        Death("create", r"README\.md", "after"),
        Death("create", r"_SUCCESS", "inside"),
    ),
    _killed("driver killed: after _SUCCESS", Death("create", r"_SUCCESS", "after")),
    _redo_killed(
        "redo killed: seal half off",
        Death("delete", r"_SUCCESS", "after"),
        Death("delete", r"_MANIFEST", "after"),
    ),
    _redo_killed("redo killed: half the commits off", Death("delete", COMMIT, "after", 1)),
)
STORMS = (
    _storm("proxy: storm of 409", *_status(409, "ConditionalRequestConflict", "PUT")),
    _storm("proxy: storm of 412", *_status(412, "PreconditionFailed", "PUT")),
    _storm("proxy: storm of 500", *_status(500, "InternalError")),
    _storm("proxy: storm of 503", *_status(503, "SlowDown")),
    _storm(
        "proxy: lost responses",
        Fault("lost", "PUT", times=30, probability=0.3),
        Fault("lost", "DELETE", times=5, probability=0.3),
        Fault("dropped", times=20, probability=0.1),
    ),
    _storm(
        "proxy: truncated bodies",
        Fault("truncated", "GET", times=30, probability=0.4),
        Fault("truncated", "LIST", times=10, probability=0.4),
    ),
    Scenario(
        name="proxy: ignored conditions",
        trials=tuple(
            Trial(
                executor,
                "s3",
                partial(
                    Storm,
                    Fault("unconditional", "PUT", times=None),
                    cure=("--set", "execution.single_writer=true"),
                ),
                quick=executor == "local",
            )
            for executor in ("local", "ray")
        ),
        codes=frozenset({(6, 0)}),
        says="or set execution.single_writer: true",
    ),
)
SCENARIOS = (*WORKERS, *MACHINES, *DRIVERS, *STORMS)
