"""`make chaos`, the level of hosts: a head, two nodes and an S3 server with a network between them.

Each scenario starts a cluster and a run, holds the tasks until both nodes are at work, does its harm, lets
the tasks go, and runs the driver again until the run is complete. Then every shard is compared with those
of an undisturbed run. `python -m tests.hosts [WORD]...` plays only scenarios whose name has one of the words.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nisynth.commits import Run
from tests.chaos.__main__ import COLUMNS, print_row
from tests.chaos.drivers import LIMIT_S
from tests.chaos.play import Row, damage, reference, write_config
from tests.chaos.teacher import AT_WORK, WAIT
from tests.faulty_teacher import hold_after
from tests.hosts.network import unavailable
from tests.hosts.world import BIN, FAKETIME, World, opened_world
from tests.processes import wait_until

MOST_DRIVERS = 4


class Play:
    """One run under one kind of harm."""

    def __init__(self, world: World, scenario: "Scenario") -> None:
        self.world, self.scenario = world, scenario
        self.folder = world.folder / f"run-{time.monotonic_ns()}"
        self.faults = self.folder / "faults"
        self.faults.mkdir(parents=True)
        self.url = f"{world.server.url}/{self.folder.name}"
        self.config = write_config(self.folder, workers=2)
        self.codes: list[int] = []

    @property
    def log(self) -> Path:
        return self.folder / f"driver-{len(self.codes)}"

    def words(self) -> str:
        """Returns what the present driver has said."""
        return self.log.read_text()

    def commits(self) -> int:
        return sum(1 for _ in self.world.store(self.url).list("commits/"))

    def release(self) -> None:
        """Lets the tasks go on."""
        (self.faults / WAIT).unlink(missing_ok=True)

    def into(self, row: Row) -> None:
        """Plays, judges, and adds it all to the row."""
        world = self.world
        world.start_cluster(skewed=self.scenario.skewed)
        try:
            self._drive(self.scenario.harm)
            self.release()
            world.network.rules()
            while self.codes[-1] != 0 and len(self.codes) < MOST_DRIVERS:
                if self.scenario.restarts:
                    world.stop_cluster()
                    world.start_cluster()
                self._drive(None)
        finally:
            world.network.rules()
            world.stop_cluster()
        row.runs += 1
        row.faults += self.scenario.faults
        row.places.add("ray/s3")
        row.codes.add(tuple(self.codes))
        self._judge(row)

    def _drive(self, harm: Callable[["Play"], None] | None) -> None:
        words = ["run", str(self.config), "--store", self.url, "--executor", "ray"]
        command = [str(BIN / "nisynth"), *words, "--address", self.world.address]
        if harm is not None and not self.scenario.skewed:
            hold_after(self.faults, 1, workers=2)
        driver = self.world.network.spawn("head", command, self.world.environment, self.log)
        try:
            if harm is not None:
                if not self.scenario.skewed:
                    self._hold_both_nodes()
                harm(self)
            driver.wait(LIMIT_S)
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            driver.kill()
            raise AssertionError(f"{self.scenario.name}: {error}: {self.words()[-2000:]}") from error
        self.codes.append(driver.returncode)

    def _hold_both_nodes(self) -> None:
        """Returns when both nodes have a task and may not go on with it."""
        wait_until(lambda: self.commits() >= 1)  # the first task runs alone
        wait_until(lambda: len(list(self.faults.glob(f"{AT_WORK}*"))) >= 2)

    def _judge(self, row: Row) -> None:
        words = "".join(path.read_text() for path in sorted(self.folder.glob("driver-*")))
        run = Run.open(self.world.store(self.url))
        problems = damage(row, run, reference(self.world.folder, self.world.environment))
        if tuple(self.codes) not in self.scenario.codes:
            problems.append(f"exit codes {self.codes}")
        if self.scenario.says not in words:
            problems.append(f"no driver said {self.scenario.says!r}")
        if "Traceback" in words:
            problems.append("a driver showed a traceback")
        row.problems += [f"{row.name}: {problem}: {words[-2500:]}" for problem in problems]


def cut_off(play: Play) -> None:
    """Node 1 loses everybody but the store; its worker goes on and commits."""
    others = ("head", "node2")
    play.world.network.rules(drop=[[a, b] for o in others for a, b in (("node1", o), (o, "node1"))])
    wait_until(lambda: "is gone" in play.words())
    before = play.commits()
    play.release()
    wait_until(lambda: play.commits() > before)
    play.world.network.rules()


def one_way(play: Play) -> None:
    """What node 1 says is not heard by the head; what the head says is heard by node 1."""
    play.world.network.rules(drop=[["node1", "head"]])
    wait_until(lambda: "is gone" in play.words())
    play.release()


def slow_store(play: Play) -> None:
    """Every frame to or from the store takes 300 ms, and one of twenty is lost."""
    play.world.network.rules(delay_s={"s3": 0.3}, loss={"s3": 0.05})
    play.release()


def store_away(play: Play) -> None:
    """Nobody reaches the store for a minute, or until the driver gives up."""
    everybody = ("desk", "head", "node1", "node2")
    play.world.network.rules(drop=[[a, b] for o in everybody for a, b in (("s3", o), (o, "s3"))])
    play.release()
    time.sleep(60.0)
    play.world.network.rules()


def head_gone(play: Play) -> None:
    """The head loses its power, and the driver with it."""
    play.world.network.crash("head")
    play.release()


def nothing(play: Play) -> None:
    """The harm was done before: a clock that is wrong."""
    play.release()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One row. codes: sequences of exit codes that are right. restarts: the cluster is made anew."""

    name: str
    harm: Callable[[Play], None]
    codes: frozenset[tuple[int, ...]]
    says: str = ""
    skewed: str = ""
    restarts: bool = False
    faults: int = field(default=1)


DONE = frozenset({(0,)})
SCENARIOS = (
    Scenario(name="hosts: node cut off, healed", harm=cut_off, codes=DONE, says="is gone"),
    Scenario(name="hosts: node heard by nobody", harm=one_way, codes=DONE, says="is gone"),
    Scenario(name="hosts: store 300 ms, 5 % loss", harm=slow_store, codes=frozenset({(0,), (6, 0)})),
    Scenario(name="hosts: store away for a minute", harm=store_away, codes=frozenset({(0,), (6, 0)})),
    Scenario(name="hosts: head gone", harm=head_gone, codes=frozenset({(-9, 0)}), restarts=True),
    Scenario(
        name="hosts: clock of a node an hour off", harm=nothing, codes=frozenset({(0,)}), skewed="node1"
    ),
)


def main(words: list[str]) -> int:
    """Prints the table as it grows; 0 also where there can be no hosts, with the reason."""
    reason = unavailable()
    if reason is not None:
        print(f"skipped, the level of hosts: {reason}")
        return 0
    chosen = [s for s in SCENARIOS if not words or any(word in s.name for word in words)]
    rows = []
    with opened_world() as world:
        print_row(list(COLUMNS))
        for scenario in chosen:
            if scenario.skewed and not FAKETIME.exists():
                print(f"skipped, {scenario.name}: libfaketime (Debian's faketime) is not installed")
                continue
            rows.append(Row(scenario.name))
            began_s = time.monotonic()
            try:
                Play(world, scenario).into(rows[-1])
            except (AssertionError, TimeoutError) as error:
                rows[-1].problems.append(f"not played to its end: {error}")
            rows[-1].done_s = time.monotonic() - began_s
            print_row(rows[-1].cells())
            for problem in rows[-1].problems:
                print(f"  {problem}", flush=True)
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
