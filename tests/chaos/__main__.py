"""`make chaos`: every scenario on a real Ray and a real S3 server, one row each; 1 when any row is bad.

next s: the longest time from a fault to the next commit that was seen in storage, or to the run's end.
done s: the longest time from a run's last fault to its end. codes: of each run's drivers, -9 for killed.

`python -m tests.chaos [WORD]...` plays only the scenarios whose name contains one of the words.
"""

import sys
import time

LEAST_FAULTS = 1000
LEAST_UNSPOILED = 60
TOTALS = ("runs", "faults", "lost", "duplicates", "wrong")
COLUMNS = {
    "fault": 36,
    "executor/store": 25,
    "runs": 4,
    "faults": 6,
    "lost": 4,
    "twice": 5,
    "wrong": 5,
    "next s": 6,
    "done s": 6,
    "exit codes": 12,
}


def main(words: list[str]) -> int:
    """Prints the table as it grows, and what was wrong under it."""
    from tests.chaos.play import Row, play, reference
    from tests.chaos.scenarios import SCENARIOS
    from tests.chaos.world import opened

    chosen = [s for s in SCENARIOS if not words or any(word in s.name for word in words)]
    began_s, rows = time.monotonic(), list[Row]()
    with opened() as world:
        reference(world.folder, world.environment)
        print_row(list(COLUMNS))
        for scenario in chosen:
            rows.append(play(scenario, world))
            print_row(rows[-1].cells())
            for problem in rows[-1].problems:
                print(f"  {problem}", flush=True)
    total = {name: sum(getattr(row, name) for row in rows) for name in TOTALS}
    spoiled = sum(row.faults for row in rows if row.name.startswith("proxy"))
    print(", ".join(f"{name} {number}" for name, number in total.items()), end=" ")
    print(f"({spoiled} of the faults are spoiled requests); {time.monotonic() - began_s:.0f} s")
    unspoiled = total["faults"] - spoiled
    few = not words and (total["faults"] < LEAST_FAULTS or unspoiled < LEAST_UNSPOILED)
    if few:
        print(
            f"fewer than {LEAST_FAULTS} faults, or than {LEAST_UNSPOILED} apart from spoiled requests:"
            " the harness is at fault"
        )
    return 1 if few or any(row.problems for row in rows) else 0


def print_row(cells: list[str]) -> None:
    """Prints one line; words to the left, numbers to the right."""
    shown = [
        cell.rjust(width) if 2 <= place <= 8 else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(cells, COLUMNS.values(), strict=True))
    ]
    print("  ".join(shown).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
