"""The commit protocol over a store, which says which shards are part of a run, and what is built on it.

A task is done exactly when `commits/<fp12>-<task>.json` exists; that object is created once, by
conditional create, after the shard that it describes. Everything else (resume, verify, redo, gc, the
manifest) is a function of these objects.

`records` the documents and keys; `run` plan, commit, quarantine, resume; `seal` manifest, card and
`_SUCCESS`; `audit` verify, redo and gc; `status` how far a run is, and watching it; `logs` what is known
of a task; `rejected` the canary that failed; `fetch` objects of a store that is not trusted;
`pull` a verified local copy.
"""

from nisynth.commits.records import Commit, Outcome, Receipt
from nisynth.commits.run import Run

__all__ = ["Commit", "Outcome", "Receipt", "Run"]
