"""One trial: a run, disturbed, repeated until it is complete, and then judged against an undisturbed one."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nisynth.commits import Run
from nisynth.commits.audit import gc, verify
from nisynth.commits.seal import read_commits, read_manifest
from nisynth.config import RunConfig
from nisynth.storage.local import LocalStore
from tests.chaos.drivers import Ended, run_apart, run_here
from tests.chaos.injectors import Injector
from tests.chaos.scenarios import Scenario, Trial
from tests.chaos.witness import Witness
from tests.chaos.world import World
from tests.tiny import keys, tiny_config

TASKS = 16
MOST_DRIVERS = 5


@dataclass
class Row:
    """What happened in the trials of one scenario.

    next_s: longest time from a fault to the next commit. done_s: longest from a run's last fault to its
    end. codes: exit codes of each trial's drivers. problems: what should not have happened, in words.
    """

    name: str
    places: set[str] = field(default_factory=set)
    runs: int = 0
    faults: int = 0
    lost: int = 0
    duplicates: int = 0
    wrong: int = 0
    next_s: float = 0.0
    done_s: float = 0.0
    codes: set[tuple[int, ...]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Returns the row of the table."""
        codes = ", ".join(" ".join(map(str, codes)) for codes in sorted(self.codes))
        numbers = map(str, (self.runs, self.faults, self.lost, self.duplicates, self.wrong))
        return [
            self.name,
            ", ".join(sorted(self.places)),
            *numbers,
            f"{self.next_s:.1f}",
            f"{self.done_s:.1f}",
            codes,
        ]


def play(scenario: Scenario, world: World, trials: tuple[Trial, ...] | None = None) -> Row:
    """Returns what the scenario's trials (or only those given) showed."""
    row = Row(scenario.name)
    for trial in scenario.trials if trials is None else trials:
        folder = world.folder / f"run-{time.monotonic_ns()}"
        folder.mkdir()
        try:
            _Play(scenario, trial, world, folder).into(row)
        except (AssertionError, TimeoutError) as error:  # the other scenarios still have something to tell
            row.problems.append(
                f"{row.name} ({trial.executor}/{trial.store}): not played to its end: {error}"
            )
    return row


def reference(where: Path, environment: Mapping[str, str]) -> dict[int, str]:
    """Returns the sha256 of every task's shard in a run that nothing disturbs; made once per folder."""
    folder = where / "undisturbed"
    if not folder.exists():
        (folder / "faults").mkdir(parents=True)
        path = write_config(folder, workers=1)
        ended = run_apart(["run", str(path), "--store", str(folder / "run")], environment, folder / "log")
        assert ended.code == 0, ended.words
    return _digests(Run.open(LocalStore(str(folder / "run"))))


def chaos_config(folder: Path, workers: int) -> RunConfig:
    """Returns the config of 16 tasks of 4 images, whose teacher obeys `folder/faults`."""
    return tiny_config(
        folder,
        run={"num_images": 4 * TASKS},
        teacher={"arch": "tests.chaos.teacher:ChaosNet", "kwargs": {"folder": str(folder / "faults")}},
        execution={"workers": workers},
    )


class _Play:
    def __init__(self, scenario: Scenario, trial: Trial, world: World, folder: Path) -> None:
        self.scenario, self.trial, self.world, self.folder = scenario, trial, world, folder
        self.injector: Injector = trial.inject()
        self.url = world.new_url(trial.store, folder)
        self.config = write_config(folder, self.injector.workers if trial.executor == "ray" else 1)
        self.drivers: list[Ended] = []

    def into(self, row: Row) -> None:
        """Plays, judges, and adds it all to the row."""
        self.injector.arm(self.world, self.folder / "faults")
        if self.injector.first:
            ended = run_apart(self._run_command(), self.world.environment, self.folder / "log")
            assert ended.code == 0, ended.words
            self._interrupt()
        witness = Witness(self.world.store(self.url, attempts=1), self.injector)
        try:
            with witness:
                if not self.injector.first:
                    self._drive(self.injector)
                    self.injector.ended(self.drivers[-1].code)
                    witness.struck(self.injector.count())
                end_s = self._repeat()
        finally:
            self.injector.stop()
        self.injector.aftermath()
        row.runs += 1
        row.places.add(f"{self.trial.executor}/{self.trial.store}")
        row.faults += witness.faults
        next_s, done_s = witness.recovery_s(end_s)
        row.next_s, row.done_s = max(row.next_s, next_s), max(row.done_s, done_s)
        row.codes.add(tuple(driver.code for driver in self.drivers))
        self._judge(row, witness)

    def _repeat(self) -> float:
        """Drives on until the run is complete, without the faults unless there is a cure; returns when."""
        if not self.injector.cure:
            self.injector.stop()
        while self.drivers[-1].code != 0 and len(self.drivers) < MOST_DRIVERS:
            if self.drivers[-1].code == 4:
                lifted = run_apart(["retry", self.url], self.world.environment, self.folder / "retry")
                assert lifted.code == 0, lifted.words
            self._drive(None, *self.injector.cure)
        return time.monotonic()

    def _drive(self, injector: Injector | None, *options: str) -> None:
        if self.trial.executor == "ray" and not self.injector.apart:
            rules, overrides = injector.rules if injector else {}, options[1::2]
            self.drivers.append(run_here(self.config, self.url, overrides, self.world.environment, rules))
            return
        command = self._run_command(*options)
        armed = {"death": injector.death, "on_start": injector.started} if injector else {}
        log = self.folder / f"driver-{len(self.drivers)}"
        self.drivers.append(run_apart(command, self.world.environment, log, **armed))

    def _interrupt(self) -> None:
        verb, *options = self.injector.first
        command = [verb, self.url, *options]
        log = self.folder / "interrupted"
        self.drivers.append(run_apart(command, self.world.environment, log, self.injector.death))
        self.injector.ended(self.drivers[-1].code)

    def _run_command(self, *options: str) -> list[str]:
        joined = ["--executor", self.trial.executor]
        if self.trial.executor == "ray" and self.injector.apart:
            joined += ["--address", self.world.address]
        return ["run", str(self.config), "--store", self.url, *joined, *options]

    def _judge(self, row: Row, witness: Witness) -> None:
        store = self.world.store(self.url)
        run = Run.open(store)
        codes = tuple(driver.code for driver in self.drivers)
        words = "\n".join(driver.words for driver in self.drivers)
        problems = damage(row, run, reference(self.world.folder, self.world.environment), witness.changed())
        if codes not in self.scenario.codes:
            problems.append(f"exit codes {codes}")
        if self.scenario.says not in self.drivers[0].words:
            problems.append(f"the first driver did not say {self.scenario.says!r}")
        if witness.faults == 0:
            problems.append("no fault happened")
        if "Traceback" in words and "quarantined" not in words:
            problems.append("a driver showed a traceback")
        where = f"{self.trial.executor}/{self.trial.store}"
        row.problems += [f"{row.name} ({where}): {problem}: {words[-1500:]}" for problem in problems]


def damage(row: Row, run: Run, wanted: dict[int, str], changed: int = 0) -> list[str]:
    """Counts into the row what was lost, doubled or spoilt; returns it in words, too.

    wanted: each task's sha256 in an undisturbed run. changed: commits that were seen and then changed.
    """
    planned = set(range(run.plan.num_tasks))
    found = _digests(run)
    verdict = verify(run, deep=True)
    listed = [line.task for line in read_manifest(run)] if run.is_sealed() else []
    lost = len(planned - found.keys()) + len(planned - set(listed))
    duplicates = len(listed) - len(set(listed)) + changed
    wrong = {problem.task for problem in verdict.problems}
    wrong |= {task for task, digest in found.items() if digest != wanted[task]}
    gc(run)
    stray = len(keys(run.store, "data/")) - len(planned)
    row.lost += lost
    row.duplicates += duplicates
    row.wrong += len(wrong)
    counts = {"lost": lost, "committed twice": duplicates, "wrong": len(wrong), "stray shards": stray}
    return [f"{name}: {number}" for name, number in counts.items() if number]


def _digests(run: Run) -> dict[int, str]:
    return {commit.task: commit.sha256 for commit in read_commits(run)}


def write_config(folder: Path, workers: int) -> Path:
    """Writes `chaos_config` into the folder and returns the file."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(chaos_config(folder, workers).to_dict()))
    return path
