"""What a training left, as sections of a page: a student by epoch, a pruning sweep by ratio."""

from collections.abc import Mapping
from typing import Any

from nisynth.report.charts import line_chart
from nisynth.report.facts import public_name

MOST_EPOCHS = 200


def student_section(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the page shows of a student's `result.json`."""
    history = [dict(record) for record in result.get("history") or []]
    columns = ["epoch", *sorted({name for record in history for name in record} - {"epoch"})]
    step = max(1, -(-len(history) // MOST_EPOCHS))
    kept = [
        record for number, record in enumerate(history, 1) if number % step == 0 or number == len(history)
    ]
    names = (
        "kind", "student", "num_images", "fingerprint", "complete", "test_accuracy", "teacher_accuracy",
        "num_test_images", "num_parameters", "images_per_s", "device", "versions", "identity",
    )  # fmt: skip
    return {
        **{name: result.get(name) for name in names},
        "test_set": public_name(str(result["test_set"])) if result.get("test_set") else None,
        "columns": columns,
        "history": kept,
        "history_step": step,
    }


def student_charts(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns accuracy and loss by epoch, where the history has them."""
    history = result.get("history") or []

    def line(name: str) -> tuple[list[float], list[float]]:
        found = [record for record in history if name in record]
        return [record["epoch"] for record in found], [record[name] for record in found]

    accuracies = {
        label: line(name)
        for name, label in (("test_accuracy", "real test set"), ("train_accuracy", "images trained on"))
        if line(name)[0]
    }
    charts = {}
    if accuracies:
        charts["student_accuracy"] = line_chart(accuracies, "epoch", "accuracy", "student-accuracy")
    if line("loss")[0]:
        charts["student_loss"] = line_chart({"loss": line("loss")}, "epoch", "training loss", "student-loss")
    return charts


def pruning_section(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the page shows of a pruning sweep's `result.json`."""
    names = (
        "teacher", "num_images", "fingerprint", "complete", "accuracy", "parameters", "macs", "test_split",
        "num_test_images", "device", "versions", "identity",
    )  # fmt: skip
    columns = ("ratio", "parameters", "macs", "accuracy_pruned", "accuracy_fine_tuned")
    points = [{column: point[column] for column in columns} for point in result["points"]]
    return {
        **{name: result.get(name) for name in names},
        "points": sorted(points, key=lambda point: float(point["ratio"])),
    }


def pruning_chart(section: Mapping[str, Any]) -> str:
    """Returns Figure 6 for a page: accuracy by ratio."""
    ratios = [point["ratio"] for point in section["points"]]
    lines = {
        label: (ratios, [point[name] for point in section["points"]])
        for label, name in (("fine-tuned", "accuracy_fine_tuned"), ("pruned only", "accuracy_pruned"))
    }
    lines["not pruned"] = (ratios, [section["accuracy"]] * len(ratios))
    return line_chart(lines, "pruning ratio", "accuracy", "pruning")
