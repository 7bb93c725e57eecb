"""nisynth: a labelled image set from a pre-trained classifier alone, as a resumable distributed job.

The way of the data, one module each: `config` -> `plan` -> `execution` -> `worker` -> `synthesis` ->
`shards` -> `storage` + `commits` -> `reader` -> `consumers`. `teachers` holds the networks.

The public names below are loaded on first use: `import nisynth` imports neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nisynth.errors import (
    BudgetExceeded,
    ConfigError,
    ConnectionLost,
    DataError,
    IncompleteRun,
    NisynthError,
    NotStarted,
    PlanMismatch,
    Stalled,
    Stopped,
    StorageError,
    TaskFailure,
    TeacherError,
)
from nisynth.identity import __version__

if TYPE_CHECKING:
    from nisynth.config import RunConfig, load_config
    from nisynth.consumers.distill import DistillConfig, distill
    from nisynth.consumers.evaluate import evaluate, read_images
    from nisynth.consumers.export import export
    from nisynth.consumers.prune import PruneConfig, prune
    from nisynth.consumers.scratch import ScratchConfig, train_from_scratch
    from nisynth.execution.run import plan_run, run
    from nisynth.fitting import fit, load_fit_config
    from nisynth.in_memory import probe, synthesize
    from nisynth.reader import collate, open_dataset
    from nisynth.series.by_url import pull, status, verify
    from nisynth.series.conductor import adapt
    from nisynth.storage import AlreadyExists, NotFound, OutcomeUnknown, Unconditional
    from nisynth.teachers import load_teacher

_HOMES = {
    "nisynth.config": ("RunConfig", "load_config"),
    "nisynth.consumers.distill": ("DistillConfig", "distill"),
    "nisynth.consumers.evaluate": ("evaluate", "read_images"),
    "nisynth.consumers.export": ("export",),
    "nisynth.consumers.prune": ("PruneConfig", "prune"),
    "nisynth.consumers.scratch": ("ScratchConfig", "train_from_scratch"),
    "nisynth.execution.run": ("plan_run", "run"),
    "nisynth.fitting": ("fit", "load_fit_config"),
    "nisynth.in_memory": ("probe", "synthesize"),
    "nisynth.reader": ("collate", "open_dataset"),
    "nisynth.series.by_url": ("pull", "status", "verify"),
    "nisynth.series.conductor": ("adapt",),
    "nisynth.storage": ("AlreadyExists", "NotFound", "OutcomeUnknown", "Unconditional"),
    "nisynth.teachers": ("load_teacher",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AlreadyExists",
    "BudgetExceeded",
    "ConfigError",
    "ConnectionLost",
    "DataError",
    "DistillConfig",
    "IncompleteRun",
    "NisynthError",
    "NotFound",
    "NotStarted",
    "OutcomeUnknown",
    "PlanMismatch",
    "PruneConfig",
    "RunConfig",
    "ScratchConfig",
    "Stalled",
    "Stopped",
    "StorageError",
    "TaskFailure",
    "TeacherError",
    "Unconditional",
    "__version__",
    "adapt",
    "collate",
    "distill",
    "evaluate",
    "export",
    "fit",
    "load_config",
    "load_fit_config",
    "load_teacher",
    "open_dataset",
    "plan_run",
    "probe",
    "prune",
    "pull",
    "read_images",
    "run",
    "status",
    "synthesize",
    "train_from_scratch",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'nisynth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
