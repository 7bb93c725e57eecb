"""What the driver alone needs for runs of many tasks: decisions a second, and memory. No actor, no storage.

    python benchmarks/driver.py                  # 100,000 and 1,000,000 tasks
    python benchmarks/driver.py --tasks 5000000
    python benchmarks/driver.py --tasks 100000 --workers 8 64 1000

The drive loop itself commands 64 virtual workers (--workers: others) in virtual time; a decision is one task
handed out and taken back, the work of the virtual workers included. The memory is the most that the process
held beyond what it held before, at the end of the run, when the listing of commits, which a driver makes
every 30 s, is longest. Each row has a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace

from nisynth.commits import Run
from nisynth.commits.records import commit_key
from nisynth.config import load_config
from nisynth.execution.drive import Drive
from nisynth.execution.run import plan_run
from nisynth.execution.schedule import Rules, Scheduler
from nisynth.execution.virtual import Act, VirtualCommits, VirtualCrew
from nisynth.plan import Plan
from nisynth.storage import ObjectInfo

SIZES = (100_000, 1_000_000)
WORKERS = (64,)
BATCH = 256
COMMIT_BYTES = 20_000
GPU_TASK_S = 17.0


def main() -> None:
    """Prints the table, or one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=SIZES, help="sizes of runs")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="virtual workers")
    parser.add_argument("--json", action="store_true", help="measure the first size here, print JSON")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(options.tasks[0], options.workers[0])))
    else:
        print_table(options.tasks, options.workers)


def print_table(sizes: Sequence[int] = SIZES, crews: Sequence[int] = WORKERS) -> None:
    """Prints a row for each size of run and number of workers."""
    print(
        f"{'virtual tasks':>13}{'workers':>9}{'decisions/s':>14}{'driver MB':>12}"
        f"{'of it listing':>15}{'to list s':>11}"
    )
    for tasks, workers in product(sizes, crews):
        command = [sys.executable, __file__, "--json", "--tasks", str(tasks), "--workers", str(workers)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(
            f"{tasks:13,}{workers:9,}{found['decisions_per_s']:14,.0f}{found['megabytes']:12,.0f}"
            f"{found['megabytes_listing']:15,.0f}{found['list_s']:11.1f}"
        )
    print(f"{'goal':>13}{'':9}{'> 2,000':>14}{'< 1,000':>12}")


def measure(tasks: int, workers: int) -> dict[str, float]:
    """Returns what a run of so many tasks takes."""
    config = {
        "run": {"num_images": BATCH * tasks},
        "teacher": {"arch": "resnet20"},
        "method": {"name": "noise"},
    }
    plan = plan_run(load_config(config))
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    before = memory("VmRSS")
    scheduler, elapsed_s = schedule(plan, workers)
    scheduled, began_s = memory("VmHWM"), time.perf_counter()

    def listing(prefix: str) -> Iterator[ObjectInfo]:
        return (ObjectInfo(commit_key(plan.fp12, task), COMMIT_BYTES) for task in range(tasks))

    store = SimpleNamespace(url="virtual://run", list=listing)
    scheduler.committed(Run(store, plan).committed(), 0.0)
    return {
        "decisions_per_s": tasks / elapsed_s,
        "megabytes": memory("VmHWM") - before,
        "megabytes_listing": memory("VmHWM") - scheduled,
        "list_s": time.perf_counter() - began_s,
    }


def schedule(plan: Plan, workers: int) -> tuple[Scheduler, float]:
    """Returns the scheduler of a run that was just driven to its end, and the seconds that took."""
    crew = VirtualCrew(lambda attempt: Act(GPU_TASK_S))
    drive = Drive(
        VirtualCommits(),
        plan.num_tasks,
        plan.num_images,
        workers,
        Rules(),
        lambda event: None,
        clock=crew.now_s,
    )
    began_s = time.perf_counter()
    drive.execute(crew)
    return drive.scheduler, time.perf_counter() - began_s


def memory(name: str) -> float:
    """Returns megabytes that this process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e3


if __name__ == "__main__":
    main()
