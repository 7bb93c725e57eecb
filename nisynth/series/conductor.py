"""The conductor of a series looks at what is stored and takes the next step; it holds no state.

Round by round: the rival is distilled from the rounds before, a copy of it gets the name of its hash, the
round's run starts from that copy, and the seal comes last. Each step resumes by itself and a result that
exists is never made twice, so a conductor may be killed anywhere, and two on one URL finish one series.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nisynth.commits.seal import read_manifest
from nisynth.consumers.distill import distill
from nisynth.device import default_device
from nisynth.errors import ConfigError, DataError, PlanMismatch
from nisynth.execution.run import Executor, run
from nisynth.series.config import AdaptConfig, load_adapt_config
from nisynth.series.plan import SeriesPlan
from nisynth.series.rivals import check_rival, publish, rival_folder, rival_key
from nisynth.series.run import Series
from nisynth.storage import NotFound, open_store
from nisynth.storage.probe import probe_conditional_create
from nisynth.synthesis import check_engine
from nisynth.teachers import load_teacher

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True)
class SeriesReport:
    """What a conductor leaves behind when a series is complete.

    rivals: the hash of the weights of each round's rival, round 1's first. executed: tasks that this
    conductor's workers committed. teacher_accuracy: of the teacher on all decoded images, 0..1.
    """

    url: str
    fingerprint: str
    rounds: int
    tasks: int
    images: int
    rivals: tuple[str, ...]
    executed: int
    seconds: float
    teacher_accuracy: float


def adapt(
    config: AdaptConfig | str | Path | Mapping[str, Any],
    store: str,
    *,
    executor: Executor = "local",
    address: str | None = None,
    progress: bool | None = None,
    say: Say = logger.info,
) -> SeriesReport:
    """Returns the report of a complete series; run again, it resumes.

    config: an AdaptConfig, a file, a shipped config's name, or a mapping. store: the series' URL. executor,
    address, progress: as `nisynth.run` has them; on a cluster, rivals are distilled there, too. say: hears
    a line for each step. Raises a NisynthError whose `exit_code` says why it ended early.
    """
    config = config if isinstance(config, AdaptConfig) else load_adapt_config(config)
    began_s = time.monotonic()
    conductor = _Conductor(config, store, executor, address, progress, say)
    with _cluster(config, executor, address):
        executed = conductor.conduct()
    series = conductor.series
    rows = read_manifest(series)
    return SeriesReport(
        url=series.store.url,
        fingerprint=series.plan.fingerprint,
        rounds=len(series.rounds),
        tasks=len(rows),
        images=series.plan.num_images,
        rivals=tuple(series.rival_sha256(number) or "" for number in range(1, len(series.rounds))),
        executed=executed,
        seconds=time.monotonic() - began_s,
        teacher_accuracy=sum(row.teacher_accuracy * row.rows for row in rows) / series.plan.num_images,
    )


class _Conductor:
    """A validated series, ready to run, and how its steps are carried out."""

    def __init__(
        self,
        config: AdaptConfig,
        url: str,
        executor: Executor,
        address: str | None,
        progress: bool | None,
        say: Say,
    ) -> None:
        self._config, self._executor, self._address = config, executor, address
        self._progress, self._say = progress, say
        if executor == "local" and address is not None:
            raise ConfigError(f"address {address!r}: the local executor joins no cluster; use --executor ray")
        if executor == "local":
            check_engine(config.run.method, config.run.engine, default_device())
        store = open_store(url, single_writer=config.run.execution.single_writer)
        series = Series.join(store, _planned(config))
        assert isinstance(series, Series)
        self.series = series
        if not config.run.execution.single_writer and not series.is_sealed():
            probe_conditional_create(store)

    def conduct(self) -> int:
        """Does what is missing; returns how many tasks were committed by it."""
        if self.series.is_sealed():
            self._say(f"{self.series.store.url}: complete already; nothing to do")
            return 0
        executed = sum(self._make_round(number) for number in self._open_rounds())
        if not self.series.seal():
            raise DataError(f"{self.series.store.url}: a round lost its seal meanwhile; run again")
        return executed

    def _open_rounds(self) -> Iterator[int]:
        for number in range(len(self.series.plan.sizes)):
            rounds = self.series.rounds
            if number >= len(rounds) or not rounds[number].is_sealed():
                yield number

    def _make_round(self, number: int) -> int:
        """Returns how many tasks of a round this conductor's workers committed; the round is complete then.

        Another conductor may begin the round first, with a student of other last bits: then its rival counts.
        """
        series, before = self.series, self.series.rival_sha256(number)
        last = len(series.plan.sizes) - 1
        tasks = series.plan.sizes[number]
        self._say(f"round {number} of 0..{last}: {tasks:,} task{'s' if tasks > 1 else ''}")
        try:
            return self._run(number, None if number == 0 else self._rival(number))
        except PlanMismatch:
            if before is not None or series.rival_sha256(number) is None:
                raise
            return self._run(number, self._rival(number))

    def _run(self, number: int, rival_url: str | None) -> int:
        config = self._config.round_config(self.series.plan, number, rival_url)
        report = run(
            config,
            self.series.round_url(number),
            executor=self._executor,
            address=self._address,
            progress=self._progress,
        )
        return report.executed

    def _rival(self, number: int) -> str:
        """Returns the URL of the rival that a round competes with, made if it is not there yet."""
        series, store = self.series, self.series.store
        pinned = series.rival_sha256(number)
        if pinned is not None and self._is_there(number, pinned):
            check_rival(store, number, pinned)
            return f"{store.url}/{rival_key(number, pinned)}"
        self._distill(number)
        sha256 = publish(store, number)
        if pinned is not None and sha256 != pinned:
            raise DataError(
                f"{series.round_url(number)}/plan.json: names a rival of weights {pinned[:12]}..., which is"
                f" gone, and what is distilled again has {sha256[:12]}...; put that file back, or delete"
                f" rounds/{number:04d} and what lies behind it"
            )
        return f"{store.url}/{rival_key(number, sha256)}"

    def _is_there(self, number: int, sha256: str) -> bool:
        try:
            self.series.store.size_bytes(rival_key(number, sha256))
        except NotFound:
            return False
        return True

    def _distill(self, number: int) -> None:
        url, start = self.series.store.url, None
        if number > 1:
            before = self.series.rival_sha256(number - 1) or ""
            check_rival(self.series.store, number - 1, before)
            start = f"{url}/{rival_key(number - 1, before)}"
        output = f"{url}/{rival_folder(number)}"
        config = self._config.distillation(self.series.plan, number, url, output, start)
        self._say(f"rival of round {number}: {config.train.steps:,} steps over the rounds before it")
        distill(config, address=self._address, say=self._say, on_cluster=self._executor == "ray")


def _planned(config: AdaptConfig) -> SeriesPlan:
    """Returns the plan of a series whose rival fits its teacher. Raises ConfigError."""
    teacher = load_teacher(config.run.teacher)
    config.check_rival(teacher)
    for note in teacher.notes:
        logger.warning("note: %s", note)
    return config.plan(teacher)


def _cluster(config: AdaptConfig, executor: Executor, address: str | None) -> AbstractContextManager[None]:
    """Returns one connection to a cluster for all rounds and rivals."""
    if executor != "ray":
        return nullcontext()
    from nisynth.execution.cluster import connected

    workers = max(config.run.execution.workers, config.rounds.workers)
    return connected(address, replace(config.run.execution, workers=workers))
