"""nisynth: a labelled image set from a pre-trained classifier alone, as a resumable distributed job.

The way of the data, one module each: `config` -> `plan` -> `execution` -> `worker` -> `synthesis` ->
`shards` -> `storage` + `commits` -> `reader` -> `consumers`. `teachers` holds the networks.

The public names below are loaded on first use, so that a machine with only torch can import what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nisynth.identity import __version__

if TYPE_CHECKING:
    from nisynth.execution.run import run
    from nisynth.in_memory import synthesize
    from nisynth.reader import collate, open_dataset
    from nisynth.series.conductor import adapt
    from nisynth.teachers import load_teacher

__all__ = ["__version__", "adapt", "collate", "load_teacher", "open_dataset", "run", "synthesize"]

_HOMES = {
    "adapt": "nisynth.series.conductor",
    "collate": "nisynth.reader",
    "load_teacher": "nisynth.teachers",
    "open_dataset": "nisynth.reader",
    "run": "nisynth.execution.run",
    "synthesize": "nisynth.in_memory",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nisynth' has no attribute {name!r}")
