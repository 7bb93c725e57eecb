"""What a run will take on a cluster: the drive loop itself, against virtual workers in virtual time.

The scheduler, its rules and the loop are those of a real run, so a prediction holds what they do: the canary
that goes first alone, uploads beside the next compute, duplicates of stragglers, and what a lost node costs.
"""

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from nisynth.commits import Run
from nisynth.commits.parallel import in_parallel
from nisynth.errors import DataError, IncompleteRun
from nisynth.execution.drive import Drive
from nisynth.execution.event_log import read_events
from nisynth.execution.events import Event, Stepped, TaskDone, WorkerLost
from nisynth.execution.ledger import Attempt
from nisynth.execution.schedule import Rules
from nisynth.execution.stored import RELIST_S
from nisynth.execution.virtual import Act, VirtualCommits, VirtualCrew

SAMPLED_COMMITS = 256
SLOTS_SHOWN = 64
BARS_SHOWN = 20_000
KEYS_PER_LIST = 1000
FIXED_REQUESTS = 40
"""Of a driver besides its tasks: the plan, the probe of the store, the seal; counted in a test."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one task and one start of a worker take, in seconds.

    compute_s: of tasks, under the compute lock; one is drawn for each attempt. store_s: to encode, upload
    and commit. start_s: from the request for a worker until it is ready, the machine's own start included.
    """

    compute_s: Sequence[float]
    store_s: float = 0.2
    start_s: float = 60.0


@dataclass(frozen=True)
class Bar:
    """One stretch of compute in a slot, in seconds of the run. kind: what came of it."""

    slot: int
    begin_s: float
    end_s: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a simulated run took. Hours are of GPUs, summed over the cluster.

    useful: compute that became commits. wasted: compute that did not (lost with a node, done twice).
    held: from the request for a worker to its end. utilisation: useful / held; after_canary: the same from
    the canary's commit on, when all workers have work. losses: of nodes.
    """

    gpus: int
    makespan_s: float
    useful_hours: float
    wasted_hours: float
    held_hours: float
    after_canary: float
    requests: int
    losses: int
    bars: tuple[Bar, ...]

    @property
    def utilisation(self) -> float:
        """The share of the GPU time held that became commits."""
        return self.useful_hours / self.held_hours


def simulate(
    num_tasks: int,
    gpus: int,
    costs: Costs,
    *,
    loss_per_hour: float = 0.0,
    rules: Rules | None = None,
    seed: int = 0,
) -> Prediction:
    """Returns what a run of `num_tasks` takes on `gpus` workers of one GPU each.

    loss_per_hour: the share of nodes lost in an hour, each replaced after `costs.start_s`. Deterministic by
    seed. Raises the error that such a run would end with, e.g. Stalled.
    """
    draw = random.Random(seed)

    def act(attempt: Attempt) -> Act:
        return Act(draw.choice(costs.compute_s), costs.store_s)

    num_slots = min(gpus, num_tasks)
    crew = VirtualCrew(act, start_s=lambda slot: costs.start_s, loss_per_hour=loss_per_hour, draw=draw)
    account = _Account(num_tasks, num_slots, crew.now_s)
    commits = VirtualCommits()
    drive = Drive(
        commits, num_tasks, num_tasks, num_slots, rules or Rules(), account, clock=crew.now_s, seed=seed
    )
    drive.execute(crew)
    return account.prediction(crew.busy_s)


def costs_of(run: Run, start_s: float | None = None) -> Costs:
    """Returns what the tasks of a run took, by its commits; and its workers' starts, by its event logs.

    start_s: to be used instead; also where no log tells. Raises IncompleteRun when nothing is committed.
    """
    tasks = sorted(run.committed())
    step = max(1, len(tasks) // SAMPLED_COMMITS)

    def timings(task: int) -> dict[str, float]:
        try:
            commit = run.read(task)
        except DataError:
            commit = None
        return {} if commit is None else commit.timings_s

    found = [timing for timing in in_parallel(timings, tasks[::step]) if timing.get("synthesize", 0.0) > 0]
    if not found:
        raise IncompleteRun(f"{run.store.url}: no commit says how long its task took; give --task-s S")
    compute_s = [timing["synthesize"] + timing.get("judge", 0.0) for timing in found]
    store_s = [timing.get("encode", 0.0) + timing.get("put", 0.0) for timing in found]
    costs = Costs(compute_s=compute_s, store_s=median(store_s))
    if start_s is None:
        starts_s = _starts_s(run)
        return replace(costs, start_s=median(starts_s)) if starts_s else costs
    return replace(costs, start_s=start_s)


def _starts_s(run: Run) -> list[float]:
    """Returns the seconds from the start of a driver to its workers', as the event logs have them."""
    began: dict[str, float] = {}
    starts = []
    for line in read_events(run.store):
        at, driver = line.get("at"), line["driver"]
        if not isinstance(at, float | int):
            continue
        if line.get("event") == "started":
            began[driver] = at
        elif line.get("event") == "worker_ready" and driver in began and at >= began[driver]:
            starts.append(at - began[driver])
    return starts


class _Account:
    """A listener that adds up what a virtual run uses."""

    def __init__(self, num_tasks: int, num_slots: int, clock: Callable[[], float]) -> None:
        self._clock, self._num_tasks, self._num_slots = clock, num_tasks, num_slots
        self._done = bytearray(num_tasks)
        self._held_since_s = array("d", [0.0]) * num_slots
        self._computing: dict[int, float] = {}
        self._useful_s = self._useful_before_s = self._held_s = self._fanned_out_s = 0.0
        self._attempts = self._losses = 0
        self._bars: list[Bar] = []

    def __call__(self, event: Event) -> None:
        match event:
            case Stepped(iteration=0):
                self._computing[event.slot] = self._clock()
                self._attempts += 1
            case TaskDone():
                self._finish(event)
            case WorkerLost():
                self._lose(event)

    def prediction(self, busy_s: float) -> Prediction:
        """Returns the sums at the end of the run."""
        end_s = self._clock()
        held_s = self._held_s + sum(end_s - since_s for since_s in self._held_since_s)
        fanned_s = (end_s - self._fanned_out_s) * self._num_slots
        after = (self._useful_s - self._useful_before_s) / fanned_s if fanned_s > 0 else 1.0
        return Prediction(
            gpus=self._num_slots,
            makespan_s=end_s,
            useful_hours=self._useful_s / 3600,
            wasted_hours=(busy_s - self._useful_s) / 3600,
            held_hours=held_s / 3600,
            after_canary=after,
            requests=self._requests(end_s),
            losses=self._losses,
            bars=tuple(self._bars),
        )

    def _finish(self, done: TaskDone) -> None:
        compute_s, task = done.receipt.compute_s or 0.0, done.attempt.task
        begin_s = self._clock() - sum(done.receipt.seconds.values())
        first = not self._done[task]
        self._show(done.attempt.slot, begin_s, begin_s + compute_s, "committed" if first else "done twice")
        if first:
            self._done[task] = 1
            self._useful_s += compute_s
        if task == 0 and first:
            self._fanned_out_s, self._useful_before_s = self._clock(), self._useful_s

    def _lose(self, lost: WorkerLost) -> None:
        now_s = self._clock()
        self._losses += 1
        self._held_s += now_s - self._held_since_s[lost.slot]
        self._held_since_s[lost.slot] = now_s
        begin_s = self._computing.pop(lost.slot, now_s)
        self._show(lost.slot, begin_s, now_s, "lost")

    def _show(self, slot: int, begin_s: float, end_s: float, kind: str) -> None:
        if slot < SLOTS_SHOWN and len(self._bars) < BARS_SHOWN:
            self._bars.append(Bar(slot, begin_s, end_s, kind))

    def _requests(self, end_s: float) -> int:
        """Each attempt looks for a commit and stores two objects; the seal reads every commit again.

        Listings grow with what is committed: half of it in the mean, every 30 s.
        """
        pages = self._num_tasks // KEYS_PER_LIST + 1
        listings = end_s / RELIST_S * (pages + 1) / 2
        return round(3 * self._attempts + self._num_tasks + listings + 5 * pages + FIXED_REQUESTS)
