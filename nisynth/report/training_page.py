"""The page of a training's folder: a student, a pruning sweep, or a fitted generator."""

from collections.abc import Mapping
from typing import Any

from nisynth.errors import DataError, counted, one_line
from nisynth.report import sections
from nisynth.report.charts import loss_charts
from nisynth.report.losses import loss_bands
from nisynth.report.page import render
from nisynth.report.students import pruning_chart, pruning_section, student_charts, student_section


def render_training(result: Mapping[str, Any], name: str) -> bytes:
    """Returns the page of what a training left in `result.json`, as UTF-8.

    Raises DataError for a document that no training wrote: anyone may have.
    """
    try:
        if "points" in result:
            return _pruning(result, name)
        return _fit(result, name) if "fit" in result.get("identity", {}) else _student(result, name)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _not_ours(name, error) from None


def summary(result: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """Returns what a training made, in words, and its accuracies, 0..1. Raises DataError as above."""
    try:
        if "points" in result:
            section = pruning_section(result)
            points = {f"pruned {p['ratio']:g}": float(p["accuracy_fine_tuned"]) for p in section["points"]}
            return f"{section['teacher']} pruned", {"not pruned": float(section["accuracy"]), **points}
        if "fit" in result.get("identity", {}):
            return f"generator fitted by {result['identity']['fit']}", {
                "iterations": int(result["iterations"])
            }
        student = student_section(result)
        head = f"{student['student']} trained on {counted(student['num_images'], 'synthetic image')}"
        found = {f"{who} accuracy": student[f"{who}_accuracy"] for who in ("test", "teacher")}
        return head, {who: None if accuracy is None else float(accuracy) for who, accuracy in found.items()}
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise _not_ours(name, error) from None


def _not_ours(name: str, error: Exception) -> DataError:
    return DataError(f"{name}/result.json: no result of a training of ours ({one_line(error)})")


def _student(result: Mapping[str, Any], name: str) -> bytes:
    student = student_section(result)
    accuracy, teacher = student["test_accuracy"], student["teacher_accuracy"]
    line = "no real test set was given" if accuracy is None else f"test accuracy {accuracy:.2%}"
    if teacher is not None:
        line += f", the teacher's {teacher:.2%}"
    document = {
        **_head("student", name, student, line, accuracy is not None),
        "title": f"{student['student']} trained on {counted(student['num_images'], 'synthetic image')}",
        "student": student,
    }
    identity = sections.flattened(result.get("identity") or {})
    return render(document, ["student"], charts=student_charts(result), student_identity=identity)


def _pruning(result: Mapping[str, Any], name: str) -> bytes:
    pruning = pruning_section(result)
    best = max((point["accuracy_fine_tuned"] for point in pruning["points"]), default=0.0)
    line = f"accuracy {pruning['accuracy']:.2%} not pruned, {best:.2%} at best when pruned and fine-tuned"
    images = counted(pruning["num_images"], "synthetic image")
    document = {
        **_head("pruning", name, pruning, line, bool(pruning["points"])),
        "title": f"{pruning['teacher']} pruned, fine-tuned on {images}",
        "pruning": pruning,
    }
    identity = sections.flattened(result.get("identity") or {})
    return render(
        document, ["pruning"], charts={"pruning": pruning_chart(pruning)}, pruning_identity=identity
    )


def _fit(result: Mapping[str, Any], name: str) -> bytes:
    identity = result["identity"]
    teacher = identity.get("teacher", {}).get("arch", "a teacher")
    bands = loss_bands([result["curve"]])
    facts = {"iterations": int(result["iterations"]), "sha256": str(result["sha256"])}
    document = {
        **_head("fit", name, {}, f"{facts['iterations']:,} iterations", True),
        "title": f"A generator fitted by {identity['fit']} to {teacher}",
        "fit": facts,
        "failures": {"canary": None},
        "losses": {"bands": sections.plain_bands(bands), "best": [], "worst": []},
    }
    charts = {"losses": loss_charts(bands)}
    return render(document, ["fit", "losses"], charts=charts, fit_identity=sections.flattened(identity))


def _head(kind: str, name: str, found: Mapping[str, Any], line: str, measured: bool) -> dict[str, Any]:
    tone = "good" if measured else "fair"
    run = f", run {str(found['fingerprint'])[:12]}" if found else ""
    return {
        "schema": 1,
        "kind": kind,
        "subtitle": f"{name}{run}",
        "verdict": {"word": "Finished", "tone": tone, "reasons": [], "line": line},
    }
