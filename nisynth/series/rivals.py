"""The rivals of a series: files named by the hash of their weights, and what they were distilled from.

`rivals/<r>/` is the training that made the rival of round r: `result.json`, `student.safetensors`. A round
starts from a copy of the student that is named by its hash, written before the plan that names it. So two
conductors whose students differ in the last bits make two files, and the plan says which one counts.
"""

import json
import re
from collections.abc import Callable, Iterator

from nisynth.commits.audit import Problem
from nisynth.commits.fetch import fetch_document, holds
from nisynth.consumers.student import STUDENT_KEY
from nisynth.consumers.student_report import RESULT_KEY
from nisynth.errors import DataError, NisynthError, StorageError, TeacherError
from nisynth.reader.view import View
from nisynth.series.run import Series
from nisynth.storage import AlreadyExists, NotFound, Store
from nisynth.teachers.checkpoint import hash_tensors, parse_checkpoint

LARGEST_BYTES = 1 << 33
_SHA256 = re.compile(r"[0-9a-f]{64}")


def rival_folder(number: int) -> str:
    """Returns the folder, below a series' URL, of the training that makes the rival of a round."""
    return f"rivals/{number:04d}"


def rival_key(number: int, sha256: str) -> str:
    """Returns the key of the rival of a round. Raises DataError for what is not a sha256."""
    if not _SHA256.fullmatch(sha256):
        raise DataError(f"rounds/{number:04d}/plan.json: its rival's hash is {sha256[:80]!r}")
    return f"{rival_folder(number)}/{sha256}.safetensors"


def publish(store: Store, number: int) -> str:
    """Returns the hash of the student that was trained for a round, after a copy of it has that name.

    Raises DataError when the student is damaged, NotFound, StorageError.
    """
    key = f"{rival_folder(number)}/{STUDENT_KEY}"
    data = store.get(key, LARGEST_BYTES)
    sha256 = _hash(data, f"{store.url}/{key}")
    name = rival_key(number, sha256)
    try:
        store.create(name, data)
    except AlreadyExists:
        if not holds(store, name, data):
            check_rival(store, number, sha256)
    return sha256


def check_rival(store: Store, number: int, sha256: str) -> bytes:
    """Returns a rival's file after its weights were held against the hash that the round's plan names.

    Raises DataError where they are others, or the file is gone; StorageError.
    """
    key = rival_key(number, sha256)
    where, folder = f"{store.url}/{key}", rival_folder(number)
    cure = f"put the original back, or delete it and let `nisynth adapt` copy it from {folder}/{STUDENT_KEY}"
    try:
        data = store.get(key, LARGEST_BYTES)
    except NotFound:
        raise DataError(f"{where}: the rival of round {number} is missing; {cure}") from None
    found = _hash(data, where)
    if found != sha256:
        raise DataError(
            f"{where}: the rival of round {number} was changed, its weights are {found[:12]}...; {cure}"
        )
    return data


def delete_losing_rivals(series: Series) -> list[str]:
    """Deletes the copies of rivals that no begun round names; returns their keys. Raises StorageError.

    Two conductors whose students differed leave two: the plan of the round says which one counts. Of a round
    that is not begun, nothing is deleted.
    """
    deleted = []
    for number in range(1, len(series.rounds)):
        winner = rival_key(number, series.rival_sha256(number) or "")
        for info in list(series.store.list(f"{rival_folder(number)}/")):
            name = info.key.rpartition("/")[2].removesuffix(".safetensors")
            if _SHA256.fullmatch(name) and info.key != winner:
                series.store.delete(info.key)
                deleted.append(info.key)
    return deleted


def judge_rivals(series: Series) -> Iterator[Problem]:
    """Yields what is wrong with the rivals of the rounds that are begun. Raises StorageError.

    A rival is its file's weights by hash, and its training's result says which images it was made from:
    those of the rounds before it.
    """
    for number in range(1, len(series.rounds)):
        sha256 = series.rival_sha256(number) or ""
        for look in (
            lambda n=number, s=sha256: check_rival(series.store, n, s),
            lambda n=number: _check_source(series, n),
        ):
            problem = _problem(look)
            if problem is not None:
                yield problem


def _check_source(series: Series, number: int) -> None:
    key = f"{rival_folder(number)}/{RESULT_KEY}"
    data = fetch_document(series.store, key)
    where = f"{series.store.url}/{key}"
    if data is None:
        raise DataError(f"{where}: missing, so what the rival of round {number} was made from is not known")
    try:
        source = json.loads(data)["identity"]["data"]
        stated = source["content_sha256"], source["fingerprint"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(f"{where}: damaged; it does not say what the rival was made from") from None
    expected = View(series.rows_before(number)).content_sha256, series.plan.fingerprint
    if stated != expected:
        raise DataError(
            f"{where}: the rival of round {number} was made from other images than the rounds before it"
        )


def _problem(look: Callable[[], object]) -> Problem | None:
    try:
        look()
    except StorageError:
        raise
    except NisynthError as error:
        return Problem(None, str(error))
    return None


def _hash(data: bytes, where: str) -> str:
    try:
        return hash_tensors(parse_checkpoint(data, where).tensors)
    except TeacherError as error:
        raise DataError(str(error).replace("teacher.weights ", "")) from None
