"""Weights from local files and URLs, fitted to a network, and the hash that a run knows them by."""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nisynth.errors import ConfigError, TeacherError, one_line
from nisynth.storage import NotFound, read_url
from nisynth.teachers.download import download, is_remote
from nisynth.teachers.formats import StateDict, parse

EXTRA_STATE = "_extra_state"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state dicts of one file, likeliest first, and a safetensors file's metadata.

    `source` is the path or URL, for messages.
    """

    source: str
    state_dicts: tuple[StateDict, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Returns the likeliest tensors, by their names in the file."""
        return self.state_dicts[0].tensors

    def load_into(self, network: nn.Module, arch: str) -> list[str]:
        """Copies the tensors of the state dict that fits into the network; returns notes, a line each.

        Of several that fit, the likeliest. Entries that the network has no place for are left out with a
        note, where they are none of its layers (an averaging's counter, a loss's or an auxiliary head's
        weights). Raises TeacherError where names or shapes differ, or where the class counts do.
        """
        own = {name: t for name, t in network.state_dict().items() if not name.endswith(EXTRA_STATE)}
        fits = [_Fit(state, own) for state in self.state_dicts]
        fitting = [fit for fit in fits if not fit.misfits()]
        if not fitting:
            best = max(fits, key=lambda fit: len(fit.tensors))
            stated = self.metadata.get("arch", arch)
            hint = f"; its metadata says {stated!r}" if stated != arch else ""
            raise TeacherError(
                f"teacher.weights {self.source} do not fit arch {arch!r}: {', '.join(best.misfits())}{hint}"
            )
        fit = fitting[0]
        head = [name for name, tensor in fit.tensors.items() if own[name].shape != tensor.shape]
        if head:
            raise TeacherError(
                f"teacher.num_classes: arch {arch!r} is built with {own[head[-1]].shape[0]} classes, but "
                f"weights {self.source} have {fit.tensors[head[-1]].shape[0]} ({head[-1]})"
            )
        self._check_values(fit.tensors, network)
        fit.load_into(network, f"teacher.weights {self.source}")
        return self._notes(fit, fitting)

    def _check_values(self, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
        where, own = f"teacher.weights {self.source}", network.state_dict()
        # A mask among the buffers may well be infinite.
        must_be_finite = {name for name, _ in network.named_parameters()}
        for name, tensor in tensors.items():
            finite = name in must_be_finite or name.rpartition(".")[2] in ("running_mean", "running_var")
            if bool((~torch.isfinite(tensor) if finite else torch.isnan(tensor)).any()):
                raise TeacherError(f"{where}: {name} holds values that are not finite; take another file")
            if own[name].is_floating_point() and not tensor.is_floating_point() and tensor.ndim:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise TeacherError(
                    f"{where}: {name} holds {kind} values where the network computes with floats (quantized "
                    "weights?); give those from before quantization"
                )

    def _notes(self, fit: "_Fit", fitting: list["_Fit"]) -> list[str]:
        notes = []
        others = [f"{other.state.place or 'the top'}" for other in fitting if other is not fit]
        if others:
            notes.append(
                f"weights are of {fit.state.place or 'the top'} of the file; {', '.join(others)} fit, too"
            )
        left_out = [*fit.surplus, *fit.state.skipped]
        if left_out:
            shown = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
            notes.append(f"left out of the weights, as the network has no place for it: {shown}")
        return notes


class _Fit:
    """One state dict beside a network: its tensors under the network's names, and what has no place there."""

    def __init__(self, state: StateDict, own: Mapping[str, Tensor]) -> None:
        self.state, self._own = state, own
        self._prefix, self._added = _prefixes(state.tensors, own)
        named = {
            name: tensor for theirs, tensor in state.tensors.items() if (name := self._named(theirs)) in own
        }
        self.tensors: dict[str, Tensor] = named
        self.surplus = [
            name for name in state.tensors if self._named(name) not in own and not _is_counter(name)
        ]

    def load_into(self, network: nn.Module, where: str) -> None:
        state = OrderedDict(self.tensors)
        # Modules that were changed look up the version that saved them, and some refuse to do without.
        versions = {self._named(f"{name}.")[:-1]: version for name, version in self.state.versions.items()}
        state._metadata = {**network.state_dict()._metadata, **versions}  # type: ignore[attr-defined]
        try:
            network.load_state_dict(state, strict=False)
        except Exception as error:  # the user's modules may load in ways of their own
            raise TeacherError(f"{where}: the network refused them: {one_line(error)}") from error

    def misfits(self) -> list[str]:
        """Returns what keeps the tensors from being loaded, but for a head of another class count."""
        own = self._own
        # Counters of training batches decide nothing in eval mode, and older files lack them.
        missing = [name for name in own if name not in self.tensors and not _is_counter(name)]
        # What lies in a part that the network has, and holds more than a number, would be a layer of it.
        parts = {name.partition(".")[0] for name in own}
        surplus = [
            name
            for name in self.surplus
            if self._named(name).partition(".")[0] in parts and self.state.tensors[name].numel() > 1
        ]
        shapes = [name for name, tensor in self.tensors.items() if own[name].shape != tensor.shape]
        if not missing and not surplus and all(_is_head(own[name], self.tensors[name]) for name in shapes):
            return []
        found = []
        if missing:
            found.append(f"{len(missing)} tensors missing ({missing[0]}, ...)")
        if surplus:
            found.append(f"{len(surplus)} unexpected ({surplus[0]}, ...)")
        if shapes:
            theirs, ours = tuple(self.tensors[shapes[0]].shape), tuple(own[shapes[0]].shape)
            found.append(f"{len(shapes)} of another shape ({shapes[0]} is {theirs}, not {ours})")
        return found

    def _named(self, name: str) -> str:
        """Returns the network's name for a name of the file."""
        return self._added + name.removeprefix(self._prefix)


def read_checkpoint(source: str) -> Checkpoint:
    """Returns the weights at a local path, a `file://`, any URL that storage reads, such as `s3://`, or a
    file of the web with its hash (`download`).

    Raises TeacherError: nothing there, not weights, damaged, code inside, values that are no numbers.
    """
    return parse_checkpoint(_read(source), source)


def parse_checkpoint(data: bytes, source: str) -> Checkpoint:
    """Returns the weights in a file's bytes; its first bytes tell the format, never its name."""
    state_dicts, metadata = parse(data, f"teacher.weights {source}")
    return Checkpoint(source, tuple(state_dicts), metadata)


def hash_weights(network: nn.Module) -> str:
    """Returns the sha256 (hex) of a network's state: names sorted, dtype, shape, bytes.

    The same weights give the same hash whatever file carried them; batch counters are left out.
    """
    return hash_tensors(network.state_dict())


def hash_tensors(tensors: Mapping[str, Any]) -> str:
    """Returns the sha256 (hex) of a state dict, as `hash_weights` does of a network's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if _is_counter(name) or not isinstance(tensor, Tensor):  # an `_extra_state` may be anything
            continue
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(source: str) -> bytes:
    if is_remote(source):
        return download(source)
    folder = Path(source.removeprefix("file://"))
    if folder.is_dir():
        inside = sorted(path.name for path in folder.iterdir() if path.is_file())[:5]
        raise TeacherError(
            f"teacher.weights {source} is a folder; name the weights file in it (it holds"
            f" {', '.join(inside) or 'no files'})"
        )
    try:
        return read_url(source)
    except NotFound as error:
        raise TeacherError(f"teacher.weights {source} cannot be found: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"teacher.weights {source}: {error}") from None


def _prefixes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, str]:
    """Returns what to drop from the file's names and what to put before them, so that most are the network's.

    `module.`, `_orig_mod.`, `model.` are what wrappers add; the network may be such a wrapper itself.
    """
    counts = Counter({("", ""): sum(name in own for name in tensors)})
    for few, many, dropped in ((own, tensors, True), (tensors, own, False)):
        for name in many:
            parts = name.split(".")
            for depth in range(1, len(parts)):
                if ".".join(parts[depth:]) in few:
                    prefix = ".".join(parts[:depth]) + "."
                    counts[(prefix, "") if dropped else ("", prefix)] += 1
    # Ties are settled for the shorter; the name as it is comes first of all.
    return max(counts, key=lambda pair: (counts[pair], -len(pair[0]) - len(pair[1])))


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _is_head(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors differ as the last linear layers of different class counts do."""
    return 1 <= ours.ndim == theirs.ndim <= 2 and ours.shape[1:] == theirs.shape[1:]
