"""The sections of a run's page as plain data: what the template shows, and what the page carries as JSON."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from nisynth.batch import REAL_R_BN_IN_Y
from nisynth.errors import counted, first_line, last_line
from nisynth.evaluation.quality import FAR_FROM_REAL, Quality
from nisynth.report.facts import RunFacts, TaskFacts, public_name
from nisynth.report.losses import Band

MOST_ROWS = 2000
GROUP = 100
EXTREMES = 5
MOST_REASONS = 3
CPUS = {"x86_64", "amd64", "aarch64", "arm64", "not recorded", "cpu"}


def verdict(facts: RunFacts, quality: Quality | None) -> dict[str, Any]:
    """Returns one word, one tone (`good`, `fair`, `bad`), the numbers beside them, and the reasons."""
    accuracies = [task.teacher_accuracy for task in facts.tasks]
    found: dict[str, Any] = {
        "tasks": len(facts.tasks),
        "planned_tasks": facts.planned,
        "images": facts.images,
        "planned_images": facts.planned_images,
        "quarantined": len(facts.quarantined),
        "damaged": len(facts.damage),
        "teacher_accuracy_median": statistics.median(accuracies) if accuracies else None,
        "teacher_accuracy_p1": float(np.percentile(accuracies, 1)) if accuracies else None,
    }
    return {**found, **_word(facts, found, quality)}


def _word(facts: RunFacts, found: dict[str, Any], quality: Quality | None) -> dict[str, Any]:
    reasons = []
    median = found["teacher_accuracy_median"]
    if median is not None and median < 0.5:
        reasons.append(f"the teacher recognises {median:.1%} of the images of the median task")
    fd = None if quality is None else quality.figure("fd")
    if fd is not None and fd.floor and fd.value > FAR_FROM_REAL * fd.floor:
        reasons.append(f"FD is {fd.value / fd.floor:,.0f} times its floor")
    if facts.damage:
        more = len(facts.damage) - MOST_REASONS
        rest = [f"and {counted(more, 'problem')} more, under Failures"] if more > 0 else []
        shown = [f"damaged: {text}" for text in facts.damage[:MOST_REASONS]]
        return {"word": "Damaged", "tone": "bad", "reasons": [*shown, *rest]}
    if facts.rejected is not None:
        return {"word": "Stopped", "tone": "bad", "reasons": [f"the canary failed: {facts.rejected.message}"]}
    if reasons:
        return {"word": "Doubtful", "tone": "bad", "reasons": reasons}
    if facts.complete:
        return {"word": "Complete", "tone": "good", "reasons": []}
    missing = facts.planned - len(facts.tasks)
    return {
        "word": "Partial",
        "tone": "fair",
        "reasons": [f"missing: {missing:,} of {counted(facts.planned, 'task')}"],
    }


def losses(facts: RunFacts) -> dict[str, Any]:
    """Returns the band of every term, the median R_BN of decoded images, and the tasks at its ends.

    `r_bn_in_y` is in units of what sampling noise gives; `best` and `worst` are of the final loss term.
    """
    in_y = [task.r_bn_in_y for task in facts.tasks if task.r_bn_in_y is not None]
    ranked = sorted(
        (task for task in facts.tasks if task.r_bn is not None), key=lambda task: task.r_bn or 0.0
    )
    count = min(EXTREMES, len(ranked) // 2)
    return {
        "bands": plain_bands(facts.bands),
        "r_bn_in_y": _short(statistics.median(in_y)) if in_y else None,
        "real_r_bn_in_y": REAL_R_BN_IN_Y,
        "best": [_brief(task) for task in ranked[:count]],
        "worst": [_brief(task) for task in ranked[::-1][:count]],
    }


def plain_bands(bands: Mapping[str, Band]) -> dict[str, dict[str, list[float]]]:
    """Returns bands by term as plain numbers, of four digits."""
    return {
        term: {name: _rounded(values) for name, values in vars(band).items()} for term, band in bands.items()
    }


def _brief(task: TaskFacts) -> dict[str, Any]:
    return {"task": task.task, "r_bn": _short(task.r_bn), "teacher_accuracy": _short(task.teacher_accuracy)}


def cost(facts: RunFacts, price: float | None) -> dict[str, Any]:
    """Returns what the run took. price: of an hour of one GPU, in any currency."""
    lost_seconds = facts.lost_seconds
    seconds = sum(task.seconds for task in facts.tasks)
    stages: dict[str, float] = {}
    for task in facts.tasks:
        for stage, value in task.timings_s.items():
            stages[stage] = stages.get(stage, 0.0) + value
    total = sum(stages.values())
    hours = seconds / 3600.0
    span = _span(facts.tasks)
    return {
        "unit": "GPU-hours" if set(facts.devices) - CPUS else "hours of CPU workers",
        "hours": hours,
        "lost_hours": None if lost_seconds is None else lost_seconds / 3600.0,
        "images_per_s_per_worker": facts.images / seconds if seconds else None,
        "images_per_s": facts.images / (span[1] - span[0]) if span else None,
        "wall_s": span[1] - span[0] if span else None,
        "span": " to ".join(f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}" for at in span or ()),
        "bytes": sum(task.bytes for task in facts.tasks),
        "writes": 2 * len(facts.tasks),
        "price": None if price is None else price * (hours + (lost_seconds or 0.0) / 3600.0),
        "stages": {
            stage: {"seconds": value, "share": value / total if total else 0.0}
            for stage, value in sorted(stages.items(), key=lambda pair: -pair[1])
        },
    }


def _span(tasks: Sequence[TaskFacts]) -> tuple[float, float] | None:
    """Returns when the first task began and the last one ended, None where any of it is not recorded."""
    timed = [task for task in tasks if task.started_at > 0 and task.finished_at > task.started_at]
    if not timed or len(timed) < len(tasks):
        return None
    return min(task.started_at for task in timed), max(task.finished_at for task in timed)


def task_table(facts: RunFacts) -> dict[str, Any]:
    """Returns one row a task, or, beyond 2,000 of them, one row per hundred or more tasks."""
    if len(facts.tasks) <= MOST_ROWS:
        rows = [_task_row(task) for task in facts.tasks]
        return {"group": 1, "rows": rows, "left_out": 0}
    size = GROUP * -(-facts.planned // (GROUP * MOST_ROWS))
    groups: dict[int, list[TaskFacts]] = {}
    for task in facts.tasks:
        groups.setdefault(task.task // size, []).append(task)
    last = facts.planned - 1
    return {
        "group": size,
        "left_out": 0,
        "rows": [
            _group_row(number * size, min(last, number * size + size - 1), groups[number])
            for number in sorted(groups)
        ],
    }


def _task_row(task: TaskFacts) -> dict[str, Any]:
    return {
        "task": task.task,
        "attempt": task.attempt,
        "seed": f"{task.seed:016x}",
        "images": task.rows,
        "teacher_accuracy": _short(task.teacher_accuracy),
        "r_bn": _short(task.r_bn),
        "ce": _short(task.losses.get("ce")),
        "seconds": round(task.seconds, 2),
        "bytes": task.bytes,
        "worker": task.worker,
        "finished_at": round(task.finished_at),
        "sha256": task.sha256,
    }


def _group_row(first: int, last: int, tasks: list[TaskFacts]) -> dict[str, Any]:
    def median(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return _short(statistics.median(known)) if known else None

    return {
        "task": first,
        "last": last,
        "tasks": len(tasks),
        "images": sum(task.rows for task in tasks),
        "teacher_accuracy": median([task.teacher_accuracy for task in tasks]),
        "worst_accuracy": _short(min(task.teacher_accuracy for task in tasks)),
        "r_bn": median([task.r_bn for task in tasks]),
        "ce": median([task.losses.get("ce") for task in tasks]),
        "seconds": round(sum(task.seconds for task in tasks), 1),
        "bytes": sum(task.bytes for task in tasks),
        "finished_at": round(max(task.finished_at for task in tasks)),
    }


def workers(facts: RunFacts) -> dict[str, Any]:
    """Returns a row a worker: what it made, and how many attempts failed, None where not recorded."""
    by_name: dict[str, list[TaskFacts]] = {}
    for task in facts.tasks:
        by_name.setdefault(task.worker, []).append(task)
    by_name.pop("", None)
    failed = Counter(attempt.worker for attempt in facts.failed_attempts or ())
    rows = []
    for name in sorted(by_name.keys() | failed.keys() - {""}):
        tasks = by_name.get(name, [])
        seconds, images = sum(task.seconds for task in tasks), sum(task.rows for task in tasks)
        rows.append(
            {
                "worker": name,
                "device": ", ".join(sorted({task.device for task in tasks})),
                "tasks": len(tasks),
                "images": images,
                "seconds": round(seconds, 1),
                "images_per_s": _short(images / seconds) if seconds else None,
                "failed": None if facts.failed_attempts is None else failed[name],
            }
        )
    return {"rows": rows, "has_failed": bool(failed)}


def failures(facts: RunFacts, most: int) -> dict[str, Any]:
    """Returns what went wrong for good: by kind, and each quarantined task's last attempt."""
    committed = {task.task for task in facts.tasks}
    made_good = [attempt for attempt in facts.failed_attempts or () if attempt.task in committed]
    tasks = []
    kinds: dict[str, int] = {}
    for log in facts.quarantined:
        for failed in log.failures:
            kinds[failed.kind] = kinds.get(failed.kind, 0) + 1
        last = log.failures[-1] if log.failures else None
        message = last.message if last else ""
        first, final = first_line(message), last_line(message)
        tasks.append(
            {
                "task": log.task,
                "attempts": len(log.failures),
                "kind": last.kind if last else "unknown",
                "first_line": first[:300],
                "last_line": final[:300] if final != first else "",
            }
        )
    return {
        "kinds": kinds,
        "tasks": tasks[:most],
        "left_out": max(0, len(tasks) - most),
        "damaged": list(facts.damage[:most]),
        "damaged_left_out": max(0, len(facts.damage) - most),
        "made_good": None if facts.failed_attempts is None else len(made_good),
        "made_good_kinds": dict(Counter(attempt.kind for attempt in made_good).most_common()),
        "canary": None if facts.rejected is None else facts.rejected.message,
    }


def provenance(facts: RunFacts, content_sha256: str) -> dict[str, Any]:
    """Returns what made the run, and the command that makes one of its tasks again."""
    return {
        "fingerprint": facts.fingerprint,
        "content_sha256": content_sha256,
        "identity": facts.identity,
        "versions": dict(sorted(facts.versions.items())),
        "devices": dict(facts.devices.most_common()),
    }


def quality_section(quality: Quality | None) -> dict[str, Any] | None:
    """Returns the quality as plain data of five digits, without paths of the machine that measured it."""
    if quality is None:
        return None
    found: dict[str, Any] = _shortened(asdict(quality))
    for name in ("synthetic", "real"):
        if found[name] is not None:
            found[name] = public_name(found[name])
    return found


def flattened(document: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Returns a nested document as (dotted name, value) pairs, for a definition list."""
    if isinstance(document, dict):
        pairs = [
            pair
            for name, value in document.items()
            for pair in flattened(value, f"{prefix}.{name}" if prefix else name)
        ]
        return pairs or [(prefix, "{}")]
    if isinstance(document, list):
        return [(prefix, ", ".join(str(value) for value in document))]
    return [(prefix, str(document))]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _shortened(document: Any) -> Any:
    """Returns plain data whose numbers have five digits: a thousand classes have thirteen thousand."""
    if isinstance(document, float):
        return _short(document)
    if isinstance(document, dict):
        return {name: _shortened(value) for name, value in document.items()}
    return [_shortened(value) for value in document] if isinstance(document, (list, tuple)) else document


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
