"""What a pruning sweep leaves behind: its points, its report, Figure 6."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nisynth.errors import DataError, counted
from nisynth.report.curves import pruning_curves
from nisynth.storage import NotFound, Store
from nisynth.training.checkpoints import check_identity

RESULT_KEY = "result.json"


@dataclass(frozen=True, kw_only=True)
class PrunePoint:
    """One ratio. widths: filters kept, by layer. macs: of one image. Accuracies: 0..1, on the real test set.

    weights: the network's key at the output URL. accuracy_fine_tuned: of what lies there, opened again.
    """

    ratio: float
    widths: dict[str, int]
    parameters: int
    macs: int
    accuracy_pruned: float
    accuracy_fine_tuned: float
    weights: str
    history: list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What `result.json` holds; points by ratio.

    fingerprint, num_images, complete: of the run. teacher, parameters, macs, accuracy: of the unpruned
    network. identity: all that decides a point but its ratio.
    """

    output: str
    fingerprint: str
    num_images: int
    complete: bool
    teacher: str
    parameters: int
    macs: int
    accuracy: float
    test_set: str
    test_split: str
    num_test_images: int
    points: list[PrunePoint]
    device: str
    versions: dict[str, str]
    identity: dict[str, Any]
    config: dict[str, Any]
    schema_version: int = 1

    def __repr__(self) -> str:
        points = ", ".join(f"{point.ratio:g}: {point.accuracy_fine_tuned:.2%}" for point in self.points)
        return f"PruneReport({self.output!r}: {self.teacher}, {self.accuracy:.2%} unpruned, {points})"


def point_name(ratio: float) -> str:
    """Returns how a ratio's files begin: `pruned-50`, `pruned-62.5`."""
    return f"pruned-{100 * ratio:g}"


def draw_figure(report: PruneReport) -> bytes:
    """Returns Figure 6 of a sweep as a PNG."""
    epochs, points = report.identity["train"]["epochs"], report.points
    by = "labels" if report.identity["loss"]["of"] == "labels" else "the teacher's answers"
    return pruning_curves(
        [point.ratio for point in points],
        {
            "fine-tuned": [point.accuracy_fine_tuned for point in points],
            "pruned only": [point.accuracy_pruned for point in points],
        },
        report.accuracy,
        f"{report.teacher} pruned by L1 norm, fine-tuned {epochs} epochs by {by}"
        f" on {counted(report.num_images, 'synthetic image')} of run {report.fingerprint[:12]};"
        f" accuracy on {report.test_split}, N={report.num_test_images:,}",
    )


def store_report(store: Store, report: PruneReport) -> None:
    """Replaces the stored report by one that knows more points. Raises StorageError."""
    store.put(RESULT_KEY, json.dumps(asdict(report), indent=1).encode())


def stored_points(store: Store, identity: Mapping[str, Any]) -> dict[float, PrunePoint]:
    """Returns the points of an earlier sweep at the output URL whose networks are still there.

    Raises PlanMismatch when it was of another config, DataError when its result is damaged.
    """
    where = f"{store.url}/{RESULT_KEY}"
    damaged = DataError(f"{where}: damaged; delete it to prune again, or use another output URL")
    try:
        document = json.loads(store.get(RESULT_KEY))
    except NotFound:
        return {}
    except ValueError:
        raise damaged from None
    check_identity(identity, document.get("identity") if isinstance(document, dict) else None, where)
    known = [f.name for f in fields(PrunePoint)]
    try:
        points = [PrunePoint(**{name: point[name] for name in known}) for point in document["points"]]
    except (TypeError, KeyError):
        raise damaged from None
    present = {info.key for info in store.list("pruned-")}
    return {point.ratio: point for point in points if point.weights in present}
