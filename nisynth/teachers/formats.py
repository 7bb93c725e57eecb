"""The bytes of a weights file as tensors by name; its first bytes tell the format, never its name.

Nothing in a file is ever executed: pickles go through `torch.load(weights_only=True)`, which here also
takes what training scripts often leave beside the weights: numpy's numbers and arrays, an argparse
Namespace, paths.
"""

import _codecs
import argparse
import io
import json
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nisynth.errors import TeacherError, one_line

PREFERRED = ("state_dict", "model", "net")
"""Names under which a state dict lies most often; they are tried before others."""

DEPTH = 3
FIELD = "teacher.weights "
TORCH_PICKLE = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How pickles of torch.save begin that are no zip archive."""


@dataclass(frozen=True, eq=False)
class StateDict:
    """Tensors by name, floating ones as float32.

    place: where in the file, such as `model.state_dict`; "" for the whole of it. skipped: names of entries
    that are no tensors. versions: what `state_dict()` notes of modules' versions, by module name.
    """

    tensors: dict[str, Tensor]
    place: str = ""
    skipped: tuple[str, ...] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)


def parse(data: bytes, where: str) -> tuple[list[StateDict], dict[str, str]]:
    """Returns every state dict of a file, likeliest first, and a safetensors file's metadata.

    where: names the file in messages. Raises TeacherError: not weights, damaged, code inside, tensors that
    are quantized, values that are no numbers.
    """
    if _is_safetensors(data):  # first: its length may begin with any byte, also with those of other formats
        try:
            tensors, metadata = parse_safetensors(data)
        except safetensors.SafetensorError as error:
            damaged = f"damaged or truncated safetensors file ({one_line(error)})"
            raise TeacherError(f"{where}: {damaged}") from None
        return [_state_dict(tensors, (), where)], metadata
    _refuse_foreign(data, where)
    content = _load_torch(data, where)
    if not isinstance(content, Mapping):
        raise TeacherError(f"{where}: holds a {type(content).__name__}, not a state dict")
    places = sorted(_places(content, ()), key=lambda place: _rank(place[0]))
    if not places:
        keys = ", ".join(str(key) for key in list(content)[:5]) or "none"
        raise TeacherError(f"{where}: no state dict in it, at the top or below; its keys: {keys}")
    return [_state_dict(mapping, path, where) for path, mapping in places], {}


def _is_safetensors(data: bytes) -> bool:
    """Returns whether a file begins with the length of a header of JSON, which is under 100 MB."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 100_000_000


def _rank(path: tuple[str, ...]) -> tuple[int, ...]:
    """Orders places: those of the usual names first, then as in the file (sorting is stable)."""
    return tuple(PREFERRED.index(key) if key in PREFERRED else len(PREFERRED) for key in path)


def _places(content: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields each mapping that holds tensors, with the keys that lead to it."""
    if any(isinstance(value, Tensor) for value in content.values()):
        yield path, content
    for key, value in content.items() if len(path) < DEPTH else ():
        if isinstance(value, Mapping) and isinstance(key, str):
            yield from _places(value, (*path, key))


def _state_dict(content: Mapping[Any, Any], path: tuple[str, ...], where: str) -> StateDict:
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    skipped = tuple(str(name) for name in content if str(name) not in tensors)
    floats = {name: _as_floats(name, tensor, where) for name, tensor in tensors.items()}
    return StateDict(floats, ".".join(path), skipped, getattr(content, "_metadata", {}))


def _as_floats(name: str, tensor: Tensor, where: str) -> Tensor:
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.element_size() < 2):
        raise TeacherError(
            f"{where}: {name} is quantized ({tensor.dtype}); give the weights from before quantization"
        )
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return tensor.float() if tensor.is_floating_point() else tensor


def parse_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file. Raises SafetensorError."""
    tensors = safetensors.torch.load(data)
    header_bytes = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + header_bytes])
    return tensors, header.get("__metadata__", {})


def _load_torch(data: bytes, where: str) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            # What torch only warns of, such as a foreign pickle protocol, either loads or is refused below.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise TeacherError(
            f"{where}: holds Python objects beside tensors{f' ({found[1]})' if found else ''}, and code in a "
            "file is never run; where you trust it, save it anew: "
            + _resave(
                "torch.load({file}, weights_only=False)", "getattr(c, 'state_dict', lambda: c)()", where
            )
        ) from None
    except Exception as error:  # a damaged archive may raise anything
        raise TeacherError(
            f"{where}: damaged, or no state dict that torch.save wrote ({one_line(error)})"
        ) from error


def _harmless() -> list[Any]:
    """Returns classes and functions that a pickle may name: they hold values and run nothing."""
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    # Numpy 1 and 2 name the same functions differently in their files.
    functions = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")
    ]
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefdg"}
    return [
        *functions, np.ndarray, np.dtype, *dtypes, _codecs.encode,
        argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath,
    ]  # fmt: skip


def _resave(load: str, state: str, where: str) -> str:
    """Returns the Python line that turns a file into one that is read here."""
    file = repr(where.removeprefix(FIELD))
    return f"import torch; c = {load.format(file=file)}; torch.save({state}, 'weights.pt')"


SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not weights; run `git lfs pull`"),
    (0, b"\x89HDF", "an HDF5 file (Keras); convert its weights to a PyTorch state dict"),
    (0, b"\x93NUMPY", "a single NumPy array; save a dict of tensors by name with torch.save"),
    (0, b"GGUF", "a GGUF file of quantized weights; give the PyTorch weights it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model; give the PyTorch weights it was made from"),
    (0, b"\x1f\x8b", "compressed by gzip; unpack it"),
    (0, b"BZh", "compressed by bzip2; unpack it"),
    (0, b"\xfd7zXZ", "compressed by xz; unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive; unpack it, and name the weights file"),
    (257, b"ustar", "a tar archive; unpack it, and name the weights file"),
)


def _refuse_foreign(data: bytes, where: str) -> None:
    """Raises TeacherError for a file of another format: which one, and what to do."""
    if not data:
        raise TeacherError(f"{where}: the file is empty")
    if data[:256].lstrip()[:1] == b"<":
        raise TeacherError(f"{where}: this is a web page (HTML), not weights; download the file itself")
    for offset, signature, what in SIGNATURES:
        if (
            data[offset:].startswith(signature)
            if not offset
            else data[offset : offset + 8].startswith(signature)
        ):
            raise TeacherError(f"{where}: this is {what}")
    if data.startswith(b"PK"):
        _refuse_foreign_archive(data, where)
    elif data.startswith(b"\x80"):
        if TORCH_PICKLE not in data[:64]:
            raise TeacherError(
                f"{where}: this is a pickle that torch.save did not write, and code in a file is never run; "
                "load it where you trust it, and save a dict of tensors by name with torch.save"
            )
    elif data[:1] == b"\x08" and b"\x12" in data[1:8]:
        raise TeacherError(f"{where}: this seems to be an ONNX model; give the PyTorch weights it came from")
    elif b'"weight_map"' in data[:100_000]:
        raise TeacherError(f"{where}: this is the index of weights in several files; merge them into one")
    elif data[8:9] != b"{":
        raise TeacherError(f"{where}: neither a safetensors nor a torch.save file")


def _refuse_foreign_archive(data: bytes, where: str) -> None:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return  # torch.load says that it is damaged
    inside = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inside:
        cure = _resave("torch.jit.load({file})", "c.state_dict()", where)
        raise TeacherError(f"{where}: this is a TorchScript program; save its weights: {cure}")
    if "archive_format" in inside or "serialized_exported_program.json" in inside | set(names):
        cure = _resave("torch.export.load({file})", "dict(c.state_dict)", where)
        raise TeacherError(f"{where}: this is an exported program (.pt2); save its weights: {cure}")
    if any(name.endswith(".npy") for name in names):
        raise TeacherError(
            f"{where}: this is a NumPy archive (.npz); save it anew: import numpy, torch; torch.save("
            "{k: torch.from_numpy(v) for k, v in numpy.load("
            f"{where.removeprefix(FIELD)!r}"
            ").items()}, 'weights.pt')"
        )
    if "data.pkl" not in inside:
        raise TeacherError(f"{where}: this is a zip archive; unpack it, and name the weights file in it")
