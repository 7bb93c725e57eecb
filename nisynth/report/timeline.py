"""Who worked on what, and when: one row per worker, one bar per attempt, as paths that a template draws.

One path holds all bars of a worker and an outcome, so that ten thousand attempts stay small.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

WIDTH_PX = 1000.0
ROW_PX = 18
BAR_PX = 12
MOST_WORKERS = 60

BarOutcome = Literal["committed", "failed"]


@dataclass(frozen=True)
class Bar:
    """One attempt: Unix seconds by the clock of the worker."""

    worker: str
    start: float
    end: float
    outcome: BarOutcome


def lay_out(bars: Iterable[Bar]) -> dict[str, Any] | None:
    """Returns rows of paths, ticks and sizes in the units of the drawing; None without a bar."""
    known = [bar for bar in bars if bar.worker and 0 < bar.start < bar.end]
    if not known:
        return None
    first, last = min(bar.start for bar in known), max(bar.end for bar in known)
    scale = WIDTH_PX / (last - first)
    workers: dict[str, list[Bar]] = {}
    for bar in sorted(known, key=lambda bar: (bar.worker, bar.start)):
        workers.setdefault(bar.worker, []).append(bar)
    shown = list(workers.items())[:MOST_WORKERS]
    return {
        "width": int(WIDTH_PX),
        "height": ROW_PX * len(shown),
        "row_px": ROW_PX,
        "rows": [
            {
                "worker": worker,
                "y": number * ROW_PX,
                "paths": {
                    outcome: _path([bar for bar in own if bar.outcome == outcome], first, scale, number)
                    for outcome in dict.fromkeys(bar.outcome for bar in own)
                },
            }
            for number, (worker, own) in enumerate(shown)
        ],
        "ticks": [{"x": round(at * scale, 1), "label": label} for at, label in _ticks(last - first)],
        "seconds": last - first,
        "left_out": len(workers) - len(shown),
    }


def _path(bars: list[Bar], first: float, scale: float, row: int) -> str:
    top = row * ROW_PX + (ROW_PX - BAR_PX) // 2
    parts = []
    for bar in bars:
        left = (bar.start - first) * scale
        width = max((bar.end - bar.start) * scale - 0.6, 0.4)  # a gap tells two tasks apart
        parts.append(f"M{left:.1f} {top}h{width:.1f}v{BAR_PX}h-{width:.1f}z")
    return "".join(parts)


def _ticks(seconds: float) -> list[tuple[float, str]]:
    """Returns (seconds, label) of about five round times."""
    steps = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400)
    step = next((s for s in steps if seconds / s <= 6), 86400 * max(1, round(seconds / 86400 / 5)))
    unit, name = (3600, "h") if step >= 3600 else (60, "min") if step >= 60 else (1, "s")
    return [(float(at), f"{at / unit:g} {name}") for at in range(0, int(seconds) + 1, int(step))]
