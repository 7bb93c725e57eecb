"""The state of a training loop in a store: one safetensors object, replaced whole, never a pickle.

Tensors (weights, BatchNorm statistics, momentum) are stored as they are; numbers go as JSON into the
file's metadata, with the identity of what was being trained, so that a loop never continues another's.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from nisynth.errors import DataError, PlanMismatch, one_line
from nisynth.identity import differing_fields
from nisynth.storage import NotFound, Store
from nisynth.teachers.formats import parse_safetensors
from nisynth.teachers.save import tensors_bytes

CHECKPOINT_KEY = "checkpoint.safetensors"
SCHEMA_VERSION = 1


@dataclass(eq=False)
class TrainState:
    """All that a loop knows between two steps; everything else is a function of the config and `step`.

    sums: `(3,)` float64 on the device, of the epoch so far and of all workers: loss x images, images
    classified as labelled, images. history: one record per finished epoch. epoch_step: steps taken in the
    epoch that is not finished. source: what the source of the batches needs to resume.
    others: further optimizers, of a training that has several.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    sums: Tensor
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    epoch_step: int = 0
    source: dict[str, Any] = field(default_factory=dict)
    others: Sequence[torch.optim.Optimizer] = ()

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Returns every optimizer by what its tensors are stored under."""
        numbered = {f"optimizer{number}": other for number, other in enumerate(self.others, 2)}
        return {"optimizer": self.optimizer, **numbered}


class Checkpoints:
    """Where a loop saves itself, and how often.

    identity: JSON-able, everything that decides the weights: data, teacher, student, loss, train.
    every_s: seconds between two saves. key: the object's name; loops that share a store need their own.
    """

    def __init__(
        self, store: Store, identity: Mapping[str, Any], *, every_s: float = 300.0, key: str = CHECKPOINT_KEY
    ) -> None:
        self.store = store
        self.identity = dict(identity)
        self.every_s = every_s
        self.key = key
        self._saved_s = time.monotonic()

    def load_into(self, state: TrainState) -> None:
        """Fills the state from the store; leaves it as it is when nothing was saved there.

        Raises PlanMismatch for a checkpoint of another config, DataError for a damaged one, StorageError.
        """
        try:
            data = self.store.get(self.key)
        except NotFound:
            return
        where = f"{self.store.url}/{self.key}"
        tensors, document = _parse(data, where)
        check_identity(self.identity, document.get("identity"), where)
        try:
            _restore(state, tensors, document)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{where}: damaged ({one_line(error)}); delete it to start over") from None

    def save_if_due(self, state: TrainState) -> None:
        """Saves the state when the last save, or the start, is `every_s` ago. Raises StorageError."""
        if time.monotonic() - self._saved_s >= self.every_s:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Replaces the stored state. Raises StorageError."""
        self.store.put(self.key, _encode(state, self.identity))
        self._saved_s = time.monotonic()

    def clear(self) -> None:
        """Removes the stored state, when the result is stored and nothing is left to resume."""
        self.store.delete(self.key)


def check_identity(ours: Mapping[str, Any], theirs: object, where: str) -> None:
    """Raises PlanMismatch, naming the fields, when what is stored at `where` was made with another config."""
    if not isinstance(theirs, Mapping):
        raise DataError(f"{where}: does not say what it was trained on; delete it to start over")
    ours = json.loads(json.dumps(ours))
    if theirs != ours:
        fields = "; ".join(differing_fields(ours, theirs))
        raise PlanMismatch(f"{where}: of another config: {fields}. Use that config, or another output URL")


def _encode(state: TrainState, identity: Mapping[str, Any]) -> bytes:
    tensors = {f"network.{name}": tensor for name, tensor in state.network.state_dict().items()}
    numbers: dict[str, dict[str, dict[str, Any]]] = {key: {} for key in state.optimizers}
    for key, optimizer in state.optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"{key}.{index}.{name}"] = value
                elif value is not None:
                    numbers[key].setdefault(str(index), {})[name] = value
    tensors["sums"] = state.sums
    document = {
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "step": state.step,
        "history": state.history,
        "epoch_step": state.epoch_step,
        "source": state.source,
        **numbers,
    }
    return tensors_bytes(tensors, {"nisynth": json.dumps(document)})


def _parse(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, metadata = parse_safetensors(data)
        document = json.loads(metadata["nisynth"])
        if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
            raise ValueError("no checkpoint of this version")
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{where}: not a checkpoint, or damaged; delete it to start over") from None
    return tensors, document


def _restore(state: TrainState, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    weights = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
    state.network.load_state_dict(weights)
    for key, optimizer in state.optimizers.items():
        entries: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in document[key].items()}
        for name, tensor in tensors.items():
            if name.startswith(f"{key}."):
                _, index, entry = name.split(".", 2)
                entries.setdefault(int(index), {})[entry] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    state.sums.copy_(tensors["sums"])
    state.step = int(document["step"])
    state.history = [dict(record) for record in document["history"]]
    state.epoch_step = int(document.get("epoch_step", -1))
    state.source = dict(document.get("source", {}))
    if state.step < 0:
        raise ValueError(f"step {state.step}")
