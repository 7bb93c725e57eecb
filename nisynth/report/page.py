"""One self-contained HTML page per run: what it made, how good it is, what it cost, how to make it again.

Everything is inlined: images as lossless WebP, charts as SVG, a few lines of JavaScript to sort and filter,
and the data as JSON. The same run gives the same bytes. Over the size limit the page has fewer images,
then fewer rows, and says so. What comes from storage (class names, tracebacks, URLs) is hostile until
escaped; paths of the maker's machine and credentials are left out.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from nisynth.errors import counted
from nisynth.evaluation.quality import Quality
from nisynth.identity import __version__
from nisynth.progress import format_seconds
from nisynth.report import sections
from nisynth.report.charts import loss_charts
from nisynth.report.curves import TERM_NAMES
from nisynth.report.facts import RunFacts
from nisynth.report.inline import Pictures, class_strips, embedded, inline
from nisynth.report.students import student_charts, student_section
from nisynth.report.timeline import Bar, lay_out

MOST_BYTES = 2_000_000
IMAGE_BYTES = 900_000
MOST_FAILURES = 200

FIGURE_NAMES = {
    "fd": ("Fréchet distance (FD)", "lower"),
    "fd_mean_term": ("FD, the means' part", "lower"),
    "fd_all_images": ("FD of all images", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "density": ("density", "about 1"),
    "coverage": ("coverage", "higher"),
    "nearest_real": ("median distance to the nearest real image", "as the floor"),
    "authentic": ("authentic share", "higher"),
    "kid_x1000": ("KID x 1000", "lower"),
    "cmmd": ("CMMD", "lower"),
    "c_t": ("C_T (copies: far below 0)", "about 0"),
    "prd_f8": ("Sajjadi F8 (recall)", "higher"),
    "prd_f1_8": ("Sajjadi F1/8 (precision)", "higher"),
    "is": ("Inception score in this network", "higher"),
}


@dataclass(frozen=True, eq=False)
class RunPage:
    """What a run's page is made from; `render` gives its bytes. student: a `result.json`, as plain data.

    quality_note: why there is no quality. hour_price: of one GPU.
    """

    facts: RunFacts
    pictures: Pictures = field(default_factory=Pictures)
    quality: Quality | None = None
    quality_note: str = ""
    content_sha256: str = ""
    student: Mapping[str, Any] | None = None
    hour_price: float | None = None

    def render(self) -> bytes:
        """Returns the page as UTF-8, at most 2,000,000 bytes as far as leaving out images and rows can do."""
        image_bytes = IMAGE_BYTES
        document = self._document()
        for _ in range(6):
            page = self._render(document, image_bytes)
            over = len(page) - MOST_BYTES
            if over <= 0:
                break
            if image_bytes > 0:
                image_bytes = max(0, image_bytes - over - 20_000)
            else:
                _leave_out_rows(document)
        return page

    def _document(self) -> dict[str, Any]:
        facts = self.facts
        method, teacher = facts.identity["method"]["name"], facts.identity["teacher"]["arch"]
        verdict = sections.verdict(facts, self.quality)
        quality = sections.quality_section(self.quality)
        nearest = None if self.quality is None else self.quality.figure("nearest_real")
        return {
            "schema": 1,
            "kind": "run",
            "title": f"{counted(facts.images, 'image')} by {method} from {teacher}",
            "subtitle": f"{facts.name} · {_kind(facts)} {facts.fingerprint[:12]} · {facts.input_px} px,"
            f" {len(facts.classes)} classes, {facts.format}",
            "verdict": {**verdict, "line": _verdict_line(verdict)},
            "images": {
                "input_px": facts.input_px,
                "why_none": self.quality_note[:1].upper() + self.quality_note[1:],
            },
            "losses": sections.losses(facts),
            "quality": quality,
            "quality_note": self.quality_note,
            "nearest": {
                "value": nearest.value if nearest else None,
                "floor": nearest.floor if nearest else None,
            },
            "map": {"points": self.pictures.map_points, "accuracy": self.pictures.map_accuracy},
            "cost": {**sections.cost(facts, self.hour_price), "hour_price": self.hour_price},
            "workers": sections.workers(facts),
            "failures": sections.failures(facts, MOST_FAILURES),
            "tasks": sections.task_table(facts),
            "provenance": {
                **sections.provenance(facts, self.content_sha256),
                "batch_size": facts.batch_size,
                "again": _again(facts),
            },
            **({} if self.student is None else {"student": student_section(self.student)}),
        }

    def _render(self, document: dict[str, Any], image_bytes: int) -> bytes:
        facts = self.facts
        strips, said = class_strips(self.pictures, facts.classes, image_bytes)
        document["images"].update(said)
        pairs = []
        if self.quality is not None:
            for pair, images in zip(self.quality.closest, self.pictures.pairs, strict=False):
                pairs.append({**vars(pair), **inline(list(images))})
        charts: dict[str, Any] = {"losses": loss_charts(facts.bands)}
        if self.student is not None:
            charts.update(student_charts(self.student))
        absent = {"pruning", "fit"} | ({"student"} if self.student is None else set())
        return render(
            document,
            [name for name in CONTENTS if name not in absent],
            strips=strips,
            pairs=pairs if image_bytes > 0 else [],
            map=embedded(self.pictures.map) if self.pictures.map else None,
            charts=charts,
            timeline=lay_out(_bars(facts)),
            plan=sections.flattened(facts.identity),
            student_identity=[]
            if self.student is None
            else sections.flattened(self.student.get("identity") or {}),
        )


CONTENTS = {
    "images": "Images by class",
    "losses": "Loss",
    "classes": "Quality by class",
    "labels": "Labels, copies, pixels",
    "real": "Against real data",
    "student": "Student",
    "pruning": "Pruning",
    "fit": "Generator",
    "cost": "Cost",
    "workers": "Workers",
    "failures": "Failures",
    "tasks": "Tasks",
    "provenance": "Provenance",
}


def render(document: Mapping[str, Any], names: Sequence[str], **pictures: Any) -> bytes:
    """Returns a page of the named sections from its document, as UTF-8."""
    folder = resources.files("nisynth.report") / "templates"
    text = (
        _environment()
        .get_template("page.html.j2")
        .render(
            d=document,
            parts=names,
            contents=[(name, CONTENTS[name]) for name in names],
            css=Markup((folder / "page.css").read_text(encoding="utf-8")),
            js=Markup((folder / "page.js").read_text(encoding="utf-8")),
            island=Markup(island(document)),
            version=__version__,
            **pictures,
        )
    )
    return text.encode("utf-8")


def island(document: Mapping[str, Any]) -> str:
    """Returns the document as JSON that no text in it can end early."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nisynth.report"),
        autoescape=True,
        trim_blocks=False,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["as"] = format
    environment.filters["counted"] = counted
    environment.filters["blank"] = lambda value: "" if value is None else f"{value:.4g}"
    environment.filters["bytes"] = _bytes
    environment.filters["moment"] = _moment
    environment.filters["code"] = _code
    environment.filters["term_name"] = lambda term: TERM_NAMES.get(term, term)
    environment.filters["duration"] = format_seconds
    environment.filters["figure_name"] = lambda name: FIGURE_NAMES.get(name, (name, ""))[0]
    environment.filters["better"] = lambda name: FIGURE_NAMES.get(name, (name, ""))[1]
    return environment


def _bars(facts: RunFacts) -> list[Bar]:
    made = [Bar(task.worker, task.started_at, task.finished_at, "committed") for task in facts.tasks]
    lost = [
        Bar(attempt.worker, attempt.ended_at - attempt.seconds, attempt.ended_at, "failed")
        for attempt in facts.failed_attempts or ()
    ]
    return made + lost


def _leave_out_rows(document: dict[str, Any]) -> None:
    """Halves the longest tables, and says so."""
    rows = document["tasks"]["rows"]
    document["tasks"]["rows"] = rows[: len(rows) // 2]
    document["tasks"]["left_out"] += len(rows) - len(rows) // 2


def _verdict_line(found: Mapping[str, Any]) -> str:
    parts = [
        f"{found['tasks']:,} of {counted(found['planned_tasks'], 'task')},"
        f" {counted(found['images'], 'image')}"
    ]
    if found["quarantined"]:
        parts.append(f"{counted(found['quarantined'], 'task')} given up on")
    if found["teacher_accuracy_median"] is not None:
        parts.append(
            f"the teacher recognises {found['teacher_accuracy_median']:.1%} of a task's images"
            f" (median; 1st percentile {found['teacher_accuracy_p1']:.1%})"
        )
    return "; ".join(parts)


def _kind(facts: RunFacts) -> str:
    return "run" if facts.rounds is None else f"series of {counted(facts.rounds, 'round')},"


def _again(facts: RunFacts) -> str:
    what, verb = ("run", "run") if facts.rounds is None else ("series", "adapt")
    return (
        f"# URL: this {what}. CONFIG: the config that it was made with. N: the task\n"
        "nisynth pull URL copy\n"
        "nisynth redo copy --task N\n"
        f"nisynth {verb} CONFIG --store copy    # makes task N alone: all others are there\n"
        "nisynth logs copy --task N"
    )


def _code(text: str) -> Markup:
    """Returns a message as HTML, what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _moment(unix_s: float) -> str:
    if not 0 < unix_s < 1e11:
        return ""
    return f"{datetime.fromtimestamp(unix_s, UTC):%m-%d %H:%M:%S}"
