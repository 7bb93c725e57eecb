"""A verified local copy of a series: its rounds as runs are copied, its rivals by hash, the seal last.

The folder is a series at any time, and pulling again goes on where an interrupted pull ended.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nisynth.commits.card import LOADER_KEY
from nisynth.commits.fetch import fetch_document, holds
from nisynth.commits.pull import (
    WORKERS,
    Pulled,
    local_path,
    plain_entries,
    pull,
    require_enough,
)
from nisynth.commits.run import SUCCESS_KEY
from nisynth.commits.seal import CARD_KEY
from nisynth.consumers.student_report import RESULT_KEY
from nisynth.errors import DataError, PlanMismatch
from nisynth.series.plan import SeriesPlan
from nisynth.series.rivals import check_rival, rival_folder, rival_key
from nisynth.series.run import Series
from nisynth.storage import AlreadyExists, Store
from nisynth.storage.local import LocalStore
from nisynth.storage.single_writer import SingleWriter

_FOLDERS, _FILES = ("rounds", "rivals", ".tmp"), (SeriesPlan.KEY, LOADER_KEY, SUCCESS_KEY, CARD_KEY)
OnChecked = Callable[[int, int], None]


def pull_series(
    run: Series,
    folder: str,
    *,
    workers: int = WORKERS,
    allow_partial: bool = False,
    on_checked: OnChecked | None = None,
) -> Pulled:
    """Copies a series into a local folder, and returns what was done.

    Arguments, and what it raises, as `nisynth.commits.pull.pull` has them; DataError also for a rival that is
    not the one its round names.
    """
    require_enough(run, sorted(run.committed()), allow_partial)
    root = local_path(folder)
    copy = _begin_copy(root, run)
    pulled = Pulled(run.store.url, copy.url, run.plan.fingerprint, 0, 0, 0, 0, complete=run.is_sealed())
    for number, part in enumerate(run.rounds):
        if number:
            _copy_rival(run, copy, number)
        if not part.committed():
            break
        done = pull(
            part.store,
            str(root / "rounds" / f"{number:04d}"),
            workers=workers,
            allow_partial=allow_partial,
            on_checked=_offset(on_checked, run, number),
        )
        pulled = replace(
            pulled,
            shards=pulled.shards + done.shards,
            images=pulled.images + done.images,
            fetched=pulled.fetched + done.fetched,
            fetched_bytes=pulled.fetched_bytes + done.fetched_bytes,
        )
    if pulled.complete and not Series(copy, run.plan).seal():
        raise DataError(f"{copy.url}: the copy is not whole, though the series is; pull again")
    return pulled


def _begin_copy(root: Path, run: Series) -> Store:
    """Returns the store of the copy, new or resumed. Raises PlanMismatch where the folder holds more."""
    store = SingleWriter(LocalStore(str(root)))
    store.list()  # refuses a file
    names = plain_entries(root, _FOLDERS, _FILES)
    for name in {"rounds", "rivals"} & names:
        inside = [path.name for path in (root / name).iterdir()]
        plain_entries(root / name, inside, ())
        for folder in inside if name == "rivals" else []:
            plain_entries(root / name / folder, (), [path.name for path in (root / name / folder).iterdir()])
    if fetch_document(store, SeriesPlan.KEY) is None and names - {".tmp"}:
        raise PlanMismatch(f"{root}: not empty, and holds no series ({SeriesPlan.KEY}); name another folder")
    Series.join(store, run.plan)
    return store


def _copy_rival(run: Series, copy: Store, number: int) -> None:
    sha256 = run.rival_sha256(number) or ""
    found = {rival_key(number, sha256): check_rival(run.store, number, sha256)}
    result = f"{rival_folder(number)}/{RESULT_KEY}"
    data = fetch_document(run.store, result)
    if data is not None:
        found[result] = data
    for key, content in found.items():
        with suppress(AlreadyExists):
            copy.create(key, content)
        if not holds(copy, key, content):
            raise PlanMismatch(f"{copy.url}/{key}: not the source's; delete it, then pull again")


def _offset(on_checked: OnChecked | None, run: Series, number: int) -> OnChecked | None:
    """Returns a callback for one round that counts its shards among those of all rounds."""
    if on_checked is None:
        return None
    first, total = run.plan.first_tasks[number], run.plan.num_tasks
    return lambda done, _: on_checked(first + done, total)
