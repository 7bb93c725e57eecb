"""What goes wrong in a run. An injector is armed for one run, reacts to its commits, and counts its faults.

`react` is called many times a second by a thread beside the run. Injectors that need tasks in flight
arm a teacher that stops by itself after so many tasks, act, and let it go: no moment is left to luck, and
none to the clock.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos.drivers import Death
from tests.chaos.teacher import AT_WORK, WAIT
from tests.chaos.world import World
from tests.faults import Fault
from tests.faulty_teacher import hold_after, tell


class Injector:
    """The base: nothing goes wrong.

    workers: of the run. apart: the driver needs a process of its own. death: where it dies. rules: other
    limits for the scheduler. first: a command to be killed, on a run that is complete. cure: options that
    let the next driver succeed although the faults go on.
    """

    workers: int = 2
    apart: bool = False
    death: Death | None = None
    rules: Mapping[str, Any] = {}
    first: tuple[str, ...] = ()
    cure: tuple[str, ...] = ()

    def arm(self, world: World, faults: Path) -> None:
        """Begins; `faults` is the folder that the teacher obeys."""
        self.world, self.faults = world, faults
        tell(faults)

    def started(self, pid: int) -> None:
        """Learns the process of the driver."""

    def ended(self, code: int) -> None:
        """Learns how the command ended that was to be disturbed."""

    def react(self, commits: int) -> None:
        """Learns how many tasks are committed by now."""

    def count(self) -> int:
        """Returns how many faults there were so far."""
        return 0

    def stop(self) -> None:
        """Lets no fault happen any more."""

    def aftermath(self) -> None:
        """Lets what was left of a fault happen, when the run is over."""

    def _release(self) -> None:
        (self.faults / WAIT).unlink(missing_ok=True)


class Tokens(Injector):
    """A network that does `what` in one process, `times` over, three commits apart."""

    def __init__(self, what: str, times: int = 3, after: int = 0, **rules: Any) -> None:
        self._what, self._times, self._after, self.rules = what, times, after, rules
        self._told = 0

    def arm(self, world: World, faults: Path) -> None:
        super().arm(world, faults)
        self.react(0)

    def react(self, commits: int) -> None:
        while self._told < self._times and commits >= self._after + 3 * self._told:
            self._told += 1
            tell(self.faults, f"{self._what}-{self._told}")

    def count(self) -> int:
        return self._told - len(list(self.faults.glob(f"{self._what}-*")))

    def stop(self) -> None:
        self._times = 0
        for token in self.faults.glob(f"{self._what}-*"):
            token.unlink(missing_ok=True)


class Always(Tokens):
    """A network that does `what` again and again, from the first task on, until it is mended."""

    def arm(self, world: World, faults: Path) -> None:
        Injector.arm(self, world, faults)
        tell(faults, *(f"{self._what}-{number}" for number in range(self._times)))
        self._told = self._times

    def react(self, commits: int) -> None:
        pass


class Storm(Injector):
    """A proxy that spoils requests. cure: options under which the run completes although the storm lasts."""

    def __init__(self, *faults: Fault, cure: tuple[str, ...] = ()) -> None:
        self._storm, self.cure, self._past = faults, cure, 0

    def arm(self, world: World, faults: Path) -> None:
        super().arm(world, faults)
        world.proxy.clear()
        world.proxy.inject(*self._storm)

    def count(self) -> int:
        return self._past + sum(seen.fault is not None for seen in list(self.world.proxy.seen))

    def stop(self) -> None:
        self._past = self.count()
        self.world.proxy.clear()


class Outage(Injector):
    """An S3 server that is killed in the middle and comes back: at once, or when the driver has given up."""

    def __init__(self, long: bool = False) -> None:
        self._long, self._killed = long, False

    def arm(self, world: World, faults: Path) -> None:
        super().arm(world, faults)
        hold_after(faults, 2, self.workers)

    def react(self, commits: int) -> None:
        if self._killed:
            if not self._long:
                self.stop()
        elif commits >= 2:
            self.world.server.kill()
            self._killed = True
            self._release()

    def count(self) -> int:
        return int(self._killed)

    def stop(self) -> None:
        self._release()
        if self.world.server.process is None:
            self.world.server.start()


class NodeLoss(Injector):
    """A node of the cluster that is lost with its workers at work: killed, or frozen and thawed too late."""

    workers = 3

    def __init__(self, how: str) -> None:
        self._how, self._lost = how, 0
        self._frozen: set[int] = set()

    def arm(self, world: World, faults: Path) -> None:
        super().arm(world, faults)
        assert world.nodes is not None
        self._node = world.nodes.add()
        hold_after(faults, 2, self.workers)

    def react(self, commits: int) -> None:
        nodes = self.world.nodes
        if nodes is None or commits < 2 or self._lost:
            return
        if not any((self.faults / f"{AT_WORK}{pid}").exists() for pid in nodes.actors(self._node)):
            return
        if self._how == "kill":
            nodes.kill(self._node)
        else:
            self._frozen = nodes.freeze(self._node)
        self._lost = 1
        self._release()

    def count(self) -> int:
        return self._lost

    def stop(self) -> None:
        self._release()

    def aftermath(self) -> None:
        assert self.world.nodes is not None
        self.world.nodes.thaw(self._frozen)


class Dies(Injector):
    """A driver, or another command on a run that is complete, that is killed at one step of the protocol."""

    apart = True

    def __init__(self, death: Death, first: tuple[str, ...] = ()) -> None:
        self.death, self.first, self._died = death, first, False

    def ended(self, code: int) -> None:
        self._died = code == -signal.SIGKILL

    def count(self) -> int:
        return int(self._died)


class Shot(Injector):
    """A driver that is killed from outside when this many tasks are committed."""

    apart = True

    def __init__(self, commits: int) -> None:
        self._commits, self._pid, self._shot = commits, 0, False

    def arm(self, world: World, faults: Path) -> None:
        super().arm(world, faults)
        hold_after(faults, self._commits, self.workers)

    def started(self, pid: int) -> None:
        self._pid = self._pid or pid

    def react(self, commits: int) -> None:
        if commits >= self._commits and self._pid and not self._shot:
            os.kill(self._pid, signal.SIGKILL)
            self._shot = True
            self._release()

    def count(self) -> int:
        return int(self._shot)

    def stop(self) -> None:
        self._release()
