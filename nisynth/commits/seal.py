"""The end of a run: every commit read and checked, then manifest, dataset card and `_SUCCESS`, in this order.

Sealing is idempotent and tried at the end of every run. The manifest is a pure function of the commits
(sorted by task, no time, no curves), so drivers that race write the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nisynth.commits.card import write_card
from nisynth.commits.fetch import MAX_DOCUMENT_BYTES, holds, wrong_size
from nisynth.commits.parallel import in_parallel
from nisynth.commits.records import ManifestRow
from nisynth.commits.run import SUCCESS_KEY, Run
from nisynth.errors import DataError, StorageError, one_line
from nisynth.parquet import check_footer, read_pages
from nisynth.shards import to_parquet
from nisynth.storage import AlreadyExists, NotFound, OutcomeUnknown, Store

MANIFEST_KEY = "_MANIFEST"
"""A Parquet file. Its name has no `.parquet`, and an underscore first: what reads every Parquet file below a
run's URL must find images alone."""
OLD_MANIFEST_KEY = "manifest.parquet"
"""What it was called in runs that an earlier version sealed: these are read as they are."""
CARD_KEY = "README.md"
TRIES = 5
_ROW_BYTES = 512
_COLUMNS = {
    "task": pa.int64(),
    **dict.fromkeys(("attempt", "shard"), pa.string()),
    **dict.fromkeys(("bytes", "rows"), pa.int64()),
    **dict.fromkeys(("sha256", "seed"), pa.string()),
    "teacher_accuracy": pa.float64(),
}


def seal(run: Run) -> bool:
    """Finishes a run whose tasks are all committed; False when some are not.

    First every commit is read and every shard's size checked. Then the shards of attempts that lost are
    deleted, and manifest, card and `_SUCCESS` written. Last the commits are listed again: where `redo` has
    removed some meanwhile, the seal is taken off again. Raises DataError when a commit or shard is damaged,
    StorageError.
    """
    if len(run.committed()) < run.plan.num_tasks:
        return False
    rows = read_commits(run)
    if len(rows) < run.plan.num_tasks:
        return False
    shards = list(run.shards())
    check_sizes(run, rows, shards)
    delete_losers(run, losers_of(rows, shards))
    manifest = encode_manifest(run, rows)
    create_same(run.store, MANIFEST_KEY, manifest)
    run.name_images()
    card = write_card(run.plan, [row.bytes for row in rows], [row.teacher_accuracy for row in rows])
    with suppress(AlreadyExists, OutcomeUnknown):  # an existing card is kept: somebody may have edited it
        run.store.create(CARD_KEY, card.encode())
    create_same(run.store, SUCCESS_KEY, f"{hashlib.sha256(manifest).hexdigest()}\n".encode())
    if len(run.committed()) == run.plan.num_tasks:
        return True
    unseal(run)
    return False


def read_commits(run: Run, tasks: Sequence[int] | None = None) -> list[ManifestRow]:
    """Returns a row for every commit of the run (or of `tasks`, in this order), each fetched and checked.

    Missing ones are left out. Loss curves are not kept: those of a thousand tasks take 23 MB.
    Raises DataError, StorageError.
    """
    wanted = range(run.plan.num_tasks) if tasks is None else tasks
    return [ManifestRow.of(commit) for commit in in_parallel(run.read, wanted) if commit is not None]


def losers_of(
    rows: Iterable[ManifestRow], shards: Iterable[tuple[str, int, str, int]]
) -> list[tuple[str, int]]:
    """Returns (key, task) of those shards whose task has another attempt in `rows`, which hold every task."""
    winners = {row.task: row.attempt for row in rows}
    return [(key, task) for key, task, attempt, _ in shards if winners[task] != attempt]


def delete_losers(run: Run, suspects: Iterable[tuple[str, int]]) -> list[str]:
    """Deletes those shards whose task's commit names another shard, and nothing else; returns their keys.

    suspects: (shard key, task). The commit is read again right before each deletion: after a `redo`, the
    shard that had lost may be the one that counts.
    """

    def delete(suspect: tuple[str, int]) -> str | None:
        key, task = suspect
        try:
            commit = run.read(task)
        except DataError:
            return None  # a damaged commit does not say which shard counts: keep them all
        if commit is None or commit.shard == key:
            return None
        run.store.delete(key)
        return key

    return [key for key in in_parallel(delete, suspects) if key is not None]


def encode_manifest(run: Run, rows: list[ManifestRow]) -> bytes:
    """Returns the roll-up of the commits as Parquet, one row a shard, the plan's identity in its metadata."""
    ordered = sorted(rows, key=lambda row: row.task)
    plain = ("task", "attempt", "shard", "bytes", "rows", "sha256")
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in ordered] for name in plain}
    columns["seed"] = [f"{row.seed:016x}" for row in ordered]
    columns["teacher_accuracy"] = [row.teacher_accuracy for row in ordered]
    plan = {"fingerprint": run.plan.fingerprint, "identity": run.plan.identity}
    return to_parquet(
        pa.table(columns).replace_schema_metadata({"nisynth": json.dumps(plan, sort_keys=True)})
    )


def read_manifest(run: Run) -> list[ManifestRow]:
    """Returns the rows of a sealed run's manifest, after its hash was compared with `_SUCCESS`.

    Raises IncompleteRun when the run is not sealed, DataError when the manifest is damaged.
    """
    expected = run.read_seal()
    try:
        manifests = [
            _manifest_bytes(part.store, MAX_DOCUMENT_BYTES + _ROW_BYTES * part.plan.num_tasks)
            for part in run.rounds
        ]
    except NotFound:
        raise DataError(
            f"{run.store.url}/{MANIFEST_KEY}: missing, though _SUCCESS says that the run is complete;"
            f" `nisynth redo {run.store.url} --bad` takes the seal off, then run again"
        ) from None
    if run.seal_of([hashlib.sha256(data).hexdigest() for data in manifests]) != expected:
        raise DataError(
            f"{run.store.url}/{MANIFEST_KEY}: damaged, its sha256 differs from the one in _SUCCESS;"
            f" `nisynth redo {run.store.url} --bad` takes the seal off, then run again"
        )
    return [
        run.numbered(number, row)
        for number, (part, data) in enumerate(zip(run.rounds, manifests, strict=True))
        for row in _rows(data, part.plan.num_tasks)
    ]


def _manifest_bytes(store: Store, max_bytes: int) -> bytes:
    """Returns the manifest of one run. Raises NotFound, StorageError."""
    try:
        return store.get(MANIFEST_KEY, max_bytes)
    except NotFound:
        return store.get(OLD_MANIFEST_KEY, max_bytes)


def _rows(data: bytes, num_tasks: int) -> Iterator[ManifestRow]:
    try:
        schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])
        for row in _read(data, num_tasks).cast(schema).to_pylist():
            yield ManifestRow(**{**row, "seed": int(row["seed"], 16)})
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise DataError(f"{MANIFEST_KEY}: is not a run's manifest ({one_line(error)})") from None


def unseal(run: Run) -> None:
    """Takes the seal off, `_SUCCESS` first, so that no reader meets a manifest of commits that are gone."""
    for key in (SUCCESS_KEY, MANIFEST_KEY, OLD_MANIFEST_KEY, CARD_KEY):
        run.store.delete(key)


def check_sizes(run: Run, rows: list[ManifestRow], shards: Iterable[tuple[str, int, str, int]]) -> None:
    """Raises DataError where a shard is missing or of another size than its row says; StorageError.

    shards: what the run's `shards` lists.
    """
    listed = {key: size for key, _, _, size in shards}
    wrong = in_parallel(lambda row: wrong_size(run.store, row, listed), rows)
    problems = [text for text in wrong if text is not None]
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        raise DataError(
            f"{run.store.url}: {len(problems):,} bad shards; `nisynth redo {run.store.url} --bad`, then run"
            f" again; the first: {problems[0]}"
        )


def create_same(store: Store, key: str, data: bytes) -> None:
    """Creates an object that a racing writer may have created with the same bytes.

    Raises DataError where it holds other bytes, StorageError.
    """
    for _ in range(TRIES):
        try:
            store.create(key, data)
            return
        except (AlreadyExists, OutcomeUnknown):
            try:
                if holds(store, key, data):
                    return
            except NotFound:
                continue
            raise DataError(
                f"{store.url}/{key}: its content differs from what the commits give;"
                f" `nisynth redo {store.url} --bad` takes the seal off"
            ) from None
    raise StorageError(f"{store.url}/{key}: could not be created in {TRIES} tries; run again")


def _read(data: bytes, num_tasks: int) -> pa.Table:
    """Returns the table of a manifest, read in this thread. Raises ValueError where `seal` did not write it.

    `read_table` goes through pyarrow's scanner, whose threads may still hold the bytes when Python ends, and
    then they end the process by SIGABRT: seen once at the end of a complete run on a busy machine.
    """
    check_footer(data)
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    _check_columns(file, data, num_tasks)
    return file.read(use_threads=False)


def _check_columns(file: pq.ParquetFile, data: bytes, num_tasks: int) -> None:
    """Raises ValueError before a small file unfolds into a large table.

    Every encoding but PLAIN lets a file of a few KB hold gigabytes, and so does compression: what the footer
    and the headers of the pages say of the unfolded columns is held to what as many rows of ours can take.
    """
    found = file.metadata
    if {field.name: field.type for field in file.schema_arrow} != _COLUMNS:
        raise ValueError(f"its columns or their types are not those of a manifest: {list(_COLUMNS)}")
    if found.num_rows != num_tasks:
        raise ValueError(f"it has {found.num_rows} rows, the run has {num_tasks} tasks")
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    size_bytes = 0
    for chunk in chunks:
        if chunk.has_dictionary_page or not {"PLAIN", "RLE"}.issuperset(chunk.encodings):
            raise ValueError(f"column {chunk.path_in_schema} is encoded as {chunk.encodings}")
        pages = list(read_pages(data, chunk.data_page_offset, chunk.total_compressed_size))
        if any(page.num_values > num_tasks for page in pages):
            raise ValueError(f"a page of column {chunk.path_in_schema} has more values than the run tasks")
        size_bytes += max(chunk.total_uncompressed_size, sum(page.unfolded_bytes for page in pages))
    if size_bytes > MAX_DOCUMENT_BYTES + _ROW_BYTES * num_tasks:
        raise ValueError(f"unpacked it has {size_bytes} bytes, which exceeds the limit for {num_tasks} rows")
