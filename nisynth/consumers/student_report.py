"""What a training of a student leaves for people and machines to read: `result.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from nisynth.errors import DataError
from nisynth.storage import NotFound, Store
from nisynth.training.checkpoints import check_identity

RESULT_KEY = "result.json"
Kind = Literal["distill", "scratch"]


@dataclass(frozen=True, kw_only=True)
class StudentReport:
    """What `result.json` holds. Accuracies are 0..1, on the real test set; None without one.

    fingerprint, num_images, complete: of the run. history: of the training; its test_accuracy is on the
    test set of that time, which is not test_set where the student was measured again later.
    identity: all that decides the weights. config: as the user gave it. images_per_s: of the process that
    finished. passes: of a run that was followed, in how many passes over the images each task's were shown.
    """

    kind: Kind
    output: str
    fingerprint: str
    num_images: int
    complete: bool
    student: str
    num_parameters: int
    test_accuracy: float | None
    teacher_accuracy: float | None
    test_set: str | None
    num_test_images: int
    history: list[dict[str, float]]
    images_per_s: float
    device: str
    versions: dict[str, str]
    identity: dict[str, Any]
    config: dict[str, Any]
    passes: dict[str, int] | None = None
    schema_version: int = 1

    def __repr__(self) -> str:
        accuracy = "" if self.test_accuracy is None else f", {self.test_accuracy:.2%} on {self.test_set}"
        return f"StudentReport({self.kind} at {self.output!r}: {self.student}{accuracy})"


def store_report(store: Store, report: StudentReport) -> None:
    """Writes the report, which says that the job is done. Raises StorageError."""
    store.put(RESULT_KEY, json.dumps(asdict(report), indent=1).encode())


def stored_report(store: Store, identity: Mapping[str, Any]) -> StudentReport | None:
    """Returns the report of a job that is done already, None when it is not.

    Raises PlanMismatch when another config's result lies there, DataError when it is damaged.
    """
    where = f"{store.url}/{RESULT_KEY}"
    try:
        document = json.loads(store.get(RESULT_KEY))
        known = {f.name for f in fields(StudentReport)}
        report = StudentReport(**{name: value for name, value in document.items() if name in known})
    except NotFound:
        return None
    except (ValueError, TypeError, AttributeError):
        raise DataError(f"{where}: damaged; delete it to train again, or use another output URL") from None
    check_identity(identity, report.identity, where)
    return report


def plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the document in JSON's own types, as it will be read back."""
    copied: dict[str, Any] = json.loads(json.dumps(document))
    return copied
