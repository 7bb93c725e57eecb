"""The canary that failed the quality gate: why, with its losses and images, so that the cause can be found.

Its shard is stored like any other but has no commit, so it is not part of the run; `gc` deletes it once a
later attempt at the task is committed. The next canary's record replaces this one. Nothing is decided by it.
"""

import json
from dataclasses import asdict, dataclass

from nisynth.commits.fetch import fetch_document
from nisynth.commits.records import Commit, commit_key
from nisynth.commits.run import Run
from nisynth.errors import DataError

CANARY = 0
"""The task that goes first, alone."""
MESSAGE_CHARS = 1000


@dataclass(frozen=True)
class Rejected:
    """A batch that the quality gate refused. batch: the record that its commit would have been."""

    message: str
    batch: Commit


def reject(run: Run, batch: Commit, message: str) -> None:
    """Records why the canary was refused; its shard is stored already. Raises StorageError."""
    record = {**asdict(batch), "message": message}
    run.store.put(_key(run), json.dumps(record, sort_keys=True, allow_nan=False).encode())


def read_rejected(run: Run) -> Rejected | None:
    """Returns the canary that was refused last; None when there was none, or it is committed by now.

    Of a series, that of the round at work; its task is numbered within that round.
    A damaged record is ignored: anyone who can write to the bucket may have written it.
    Raises StorageError.
    """
    if not run.rounds:
        return None
    run = run.rounds[-1]
    data = fetch_document(run.store, _key(run))
    if data is None or run.read(CANARY) is not None:
        return None
    try:
        batch = Commit.from_json(data, commit_key(run.plan.fp12, CANARY), run.plan)
        message = json.loads(data)["message"]
    except (DataError, KeyError):
        return None
    return Rejected(str(message)[:MESSAGE_CHARS], batch)


def _key(run: Run) -> str:
    return f"rejected/{run.plan.fp12}-{CANARY:08d}.json"
