"""`make chaos`: every scenario on a real Ray and a real S3 server, one row each; 1 when any row is bad.

`python -m tests.chaos [WORD]...` plays only the scenarios whose name contains one of the words.
"""

import sys
import time

LEAST_FAULTS = 60
TOTALS = ("runs", "faults", "lost", "duplicates", "wrong")
HEADER = [
    "fault",
    "executor/store",
    "runs",
    "faults",
    "lost",
    "twice",
    "wrong",
    "median s",
    "max s",
    "exit codes",
]


def main(words: list[str]) -> int:
    """Prints the table as it grows, and what was wrong under it."""
    from tests.chaos.play import Row, play, reference
    from tests.chaos.scenarios import SCENARIOS
    from tests.chaos.world import opened

    chosen = [s for s in SCENARIOS if not words or any(word in s.name for word in words)]
    widths = [max(len(s.name) for s in SCENARIOS), 32, 4, 6, 4, 5, 5, 8, 6, 12]
    began_s, rows = time.monotonic(), list[Row]()
    with opened() as world:
        reference(world)
        print_row(HEADER, widths)
        for scenario in chosen:
            rows.append(play(scenario, world))
            print_row(rows[-1].cells(), widths)
            for problem in rows[-1].problems:
                print(f"  {problem}", flush=True)
    total = {name: sum(getattr(row, name) for row in rows) for name in TOTALS}
    spoiled = sum(row.faults for row in rows if row.name.startswith("proxy"))
    print(", ".join(f"{name} {number}" for name, number in total.items()), end=" ")
    print(f"({spoiled} of the faults are spoiled requests); {time.monotonic() - began_s:.0f} s")
    few = not words and total["faults"] - spoiled < LEAST_FAULTS
    if few:
        print(f"fewer than {LEAST_FAULTS} faults apart from spoiled requests: the harness is at fault")
    return 1 if few or any(row.problems for row in rows) else 0


def print_row(cells: list[str], widths: list[int]) -> None:
    """Prints one line; words to the left, numbers to the right."""
    shown = [
        cell.rjust(width) if 2 <= place <= 8 else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    print("  ".join(shown).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
