"""Weights from a file or an object: safetensors, or what `torch.save` wrote, tensors only.

Nothing in a weights file is ever executed: pickles go through `torch.load(weights_only=True)`.
"""

import hashlib
import io
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nisynth.errors import ConfigError, TeacherError, one_line
from nisynth.storage import NotFound, read_url

NESTS = ("state_dict", "model", "net")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors by name, floating ones as float32, and a safetensors file's metadata.

    `source` is the path or URL, for messages.
    """

    source: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    def load_into(self, network: nn.Module, arch: str) -> None:
        """Copies the tensors into the network, every one of them.

        Raises TeacherError where names or shapes differ, or where the class counts do.
        """
        own = network.state_dict()
        tensors = _without_shared_prefix(self.tensors, own)
        misfits = _misfits(tensors, own)
        if misfits:
            stated = self.metadata.get("arch", arch)
            hint = f"; its metadata says {stated!r}" if stated != arch else ""
            raise TeacherError(
                f"teacher.weights {self.source} do not fit arch {arch!r}: {', '.join(misfits)}{hint}"
            )
        head = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
        if head:
            raise TeacherError(
                f"teacher.num_classes: arch {arch!r} is built with {own[head[-1]].shape[0]} classes, but "
                f"weights {self.source} have {tensors[head[-1]].shape[0]} ({head[-1]})"
            )
        network.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)


def read_checkpoint(source: str) -> Checkpoint:
    """Returns the weights at a local path, a `file://` or any URL that storage reads, such as `s3://`.

    Raises TeacherError: nothing there, not weights, damaged, code inside, values that are not finite.
    """
    return parse_checkpoint(_read(source), source)


def parse_checkpoint(data: bytes, source: str) -> Checkpoint:
    """Returns the weights in a file's bytes; its first bytes tell the format, never its name."""
    where = f"teacher.weights {source}"
    if not data:
        raise TeacherError(f"{where}: the file is empty")
    if data[:256].lstrip()[:1] == b"<":
        raise TeacherError(f"{where}: this is a web page (HTML), not weights; download the file itself")
    if data.startswith(b"version https://git-lfs"):
        raise TeacherError(f"{where}: this is a Git LFS pointer, not weights; run `git lfs pull`")
    metadata: dict[str, str] = {}
    if data[8:9] == b"{":
        tensors, metadata = _parse_safetensors(data, where)
    elif data.startswith((b"PK", b"\x80")):
        tensors = _parse_torch(data, where)
    else:
        raise TeacherError(f"{where}: neither a safetensors nor a torch.save file")
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    for name, tensor in floats.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TeacherError(f"{where}: {name} holds values that are not finite; the file is of no use")
    return Checkpoint(source, floats, metadata)


def hash_weights(network: nn.Module) -> str:
    """Returns the sha256 (hex) of a network's state: names sorted, dtype, shape, bytes.

    The same weights give the same hash whatever file carried them; batch counters are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if _is_counter(name) or not isinstance(tensor, Tensor):  # an `_extra_state` may be anything
            continue
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(source: str) -> bytes:
    try:
        return read_url(source)
    except NotFound as error:
        raise TeacherError(f"teacher.weights {source} cannot be found: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"teacher.weights {source}: {error}") from None


def _parse_safetensors(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise TeacherError(f"{where}: damaged or truncated safetensors file ({one_line(error)})") from None
    header_bytes = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + header_bytes])
    return tensors, header.get("__metadata__", {})


def _parse_torch(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # What torch only warns of, such as a foreign pickle protocol, either loads or is refused below.
            warnings.simplefilter("ignore")
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"{where}: holds Python objects beside tensors, and code in a file is never run; "
            f"save network.state_dict() alone{_refused(error)}"
        ) from None
    except Exception as error:  # a damaged archive may raise anything
        raise TeacherError(
            f"{where}: damaged, or no state dict that torch.save wrote ({one_line(error)})"
        ) from error
    for _ in NESTS:  # bounded, since a pickled mapping may hold itself
        nests = [
            key for key in NESTS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
        ]
        content = content[nests[0]] if nests else content
    if not isinstance(content, Mapping):
        raise TeacherError(f"{where}: holds a {type(content).__name__}, not a state dict")
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        keys = ", ".join(str(key) for key in list(content)[:5]) or "none"
        raise TeacherError(f"{where}: no state dict here or under {'/'.join(NESTS)}; its keys: {keys}")
    return {str(name): tensor for name, tensor in content.items()}


def _refused(error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f" (refused: {found[1]})" if found else ""


def _without_shared_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops leading parts that every name has and the network lacks: `module.`, `_orig_mod.`, `model.`"""
    names = list(tensors)
    while not any(name in own for name in names):
        heads = {name.partition(".")[0] for name in names}
        if len(heads) != 1 or not all("." in name for name in names):
            return dict(tensors)
        names = [name.partition(".")[2] for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _misfits(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Returns what keeps the tensors from being loaded, but for a head of another class count."""
    # Counters of training batches decide nothing in eval mode, and older files lack them.
    missing = [name for name in own if name not in tensors and not _is_counter(name)]
    surplus = [name for name in tensors if name not in own and not _is_counter(name)]
    shapes = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if not missing and not surplus and all(_is_head(own[name], tensors[name]) for name in shapes):
        return []
    found = []
    if missing:
        found.append(f"{len(missing)} tensors missing ({missing[0]}, ...)")
    if surplus:
        found.append(f"{len(surplus)} unexpected ({surplus[0]}, ...)")
    if shapes:
        theirs, ours = tuple(tensors[shapes[0]].shape), tuple(own[shapes[0]].shape)
        found.append(f"{len(shapes)} of another shape ({shapes[0]} is {theirs}, not {ours})")
    return found


def _is_head(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors differ as the last linear layers of different class counts do."""
    return 1 <= ours.ndim == theirs.ndim <= 2 and ours.shape[1:] == theirs.shape[1:]
