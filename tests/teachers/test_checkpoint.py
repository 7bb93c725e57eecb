"""Weights in every wrapping that people save them in, and files that are no weights."""

import argparse
import gzip
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from torch import Tensor

from nisynth.errors import ConfigError, NisynthError, TeacherError
from nisynth.storage import open_store
from nisynth.teachers import Teacher, build_network, load_teacher

State = dict[str, Tensor]
STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "num_classes": 10}


def load(path: Path | str, **fields: object) -> Teacher:
    return load_teacher(arch="resnet20", weights=str(path), **{**STATISTICS, **fields})


@pytest.fixture(scope="module")
def state() -> State:
    """A random ResNet-20 whose values float16 holds exactly, so that every format carries the same."""
    torch.manual_seed(0)
    network = build_network("resnet20", 10)
    return {
        name: t.half().float() if t.is_floating_point() else t for name, t in network.state_dict().items()
    }


def torch_bytes(content: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def halved(state: State) -> State:
    return {name: t.half() if t.is_floating_point() else t for name, t in state.items()}


WRAPPINGS: dict[str, Callable[[State], bytes]] = {
    "bare": torch_bytes,
    "legacy": lambda s: torch_bytes(s, _use_new_zipfile_serialization=False),
    "state_dict": lambda s: torch_bytes({"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}}),
    "model": lambda s: torch_bytes({"model": s, "best_accuracy": 91.0}),
    "net": lambda s: torch_bytes({"net": s, "acc": 91, "epoch": 200}),
    "nested": lambda s: torch_bytes({"model": {"state_dict": s}}),
    "module.": lambda s: torch_bytes({"state_dict": prefixed(s, "module.")}),
    "_orig_mod.module.": lambda s: torch_bytes(prefixed(s, "_orig_mod.module.")),
    "lightning": lambda s: torch_bytes({"state_dict": prefixed(s, "model.")}),
    "float16": lambda s: torch_bytes(halved(s)),
    "float64": lambda s: torch_bytes({n: t.double() if t.is_floating_point() else t for n, t in s.items()}),
    "model_state_dict": lambda s: torch_bytes({"epoch": 3, "model_state_dict": s, "loss": 0.1}),
    "nested anywhere": lambda s: torch_bytes({"run": {"weights": {"params": s}}}),
    "beside an optimizer's": lambda s: torch_bytes(
        {"network": s, "optim": {"state": {0: {"m": torch.ones(2)}}}}
    ),
    "numpy and Namespace": lambda s: torch_bytes(
        {
            "state_dict": s,
            "best": numpy.float64(91.5),
            "curve": numpy.arange(3.0),
            "args": argparse.Namespace(lr=0.1, data=Path("data")),
        }
    ),
    "averaged": lambda s: torch_bytes({**prefixed(s, "module."), "n_averaged": torch.tensor(7)}),
    "profiled": lambda s: torch_bytes({**s, "layer1.0.total_ops": torch.zeros(1)}),
    "a loss beside": lambda s: torch_bytes(
        {"state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(10)}}
    ),
    "an epoch inside": lambda s: torch_bytes({**s, "epoch": 9, "_extra_state": {"a": 1}}),
    "sparse": lambda s: torch_bytes({**s, "linear.weight": s["linear.weight"].to_sparse()}),
    "no counters": lambda s: torch_bytes({n: t for n, t in s.items() if not n.endswith("_tracked")}),
    "parameters": lambda s: torch_bytes(
        {n: torch.nn.Parameter(t, t.is_floating_point()) for n, t in s.items()}
    ),
    "safetensors": lambda s: safetensors.torch.save(s),
    "safetensors module. float16": lambda s: safetensors.torch.save(prefixed(halved(s), "module.")),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_gives_the_same_teacher(wrapping: str, state: State, tmp_path: Path) -> None:
    reference, path = tmp_path / "reference", tmp_path / "weights"  # the name's ending says nothing
    reference.write_bytes(torch_bytes(state))
    path.write_bytes(WRAPPINGS[wrapping](state))
    teacher = load(path)
    loaded = teacher.network.state_dict()
    assert all(loaded[name].dtype in (torch.float32, torch.int64) for name in loaded)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert teacher.identity == load(reference).identity


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (
            lambda s: {**s, "aux.weight": torch.ones(5, 5)},
            "left out of the weights, as the network has no place for it: aux.weight",
        ),
        (lambda s: {**prefixed(s, "module."), "n_averaged": torch.tensor(7)}, "for it: n_averaged"),
        (lambda s: {"state_dict": {**s, "epoch": 9}}, "for it: epoch"),
        (lambda s: {"ema": s, "model": s}, "weights are of model of the file; ema fit, too"),
        (lambda s: {"state_dict": s, "epoch": 9}, None),
    ],
)
def test_what_was_left_out_is_noted(
    make: Callable[[State], dict[str, Any]], note: str | None, state: State, tmp_path: Path
) -> None:
    (tmp_path / "weights.pt").write_bytes(torch_bytes(make(state)))
    notes = load(tmp_path / "weights.pt").notes
    assert note is None or note in notes[0]
    assert len(notes) == (note is not None)


def test_the_one_that_fits_is_taken(state: State, tmp_path: Path) -> None:
    other = build_network("vgg11", 10).state_dict()
    (tmp_path / "weights.pt").write_bytes(torch_bytes({"model": other, "student": {"weights": state}}))
    teacher = load(tmp_path / "weights.pt")
    assert torch.equal(teacher.network.state_dict()["conv1.weight"], state["conv1.weight"])


def test_a_folder_is_no_file(state: State, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save(state))
    with pytest.raises(TeacherError, match=r"is a folder; name the weights file in it \(it holds model.safe"):
        load(tmp_path)


def test_the_hash_tells_weights_apart(state: State, tmp_path: Path) -> None:
    hashes = set()
    for index, change in enumerate([0.0, 1e-6]):
        path = tmp_path / str(index)
        path.write_bytes(torch_bytes({**state, "linear.bias": state["linear.bias"] + change}))
        hashes.add(load(path).identity["weights_sha256"])
    assert len(hashes) == 2


def test_weights_from_urls(state: State, tmp_path: Path) -> None:
    path = tmp_path / "my weights ü.pt"
    path.write_bytes(torch_bytes(state))
    open_store("memory://teachers").put("weights.pt", torch_bytes(state))
    teachers = [load(source) for source in (path, f"file://{path}", "memory://teachers/weights.pt")]
    assert len({teacher.identity["weights_sha256"] for teacher in teachers}) == 1


class Code:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "dump",
    [
        lambda code: torch_bytes({"state_dict": {}, "extra": code}),
        lambda code: torch_bytes({"extra": code}, _use_new_zipfile_serialization=False),
        pickle.dumps,
        lambda code: pickle.dumps(code, 0),
    ],
    ids=["torch.save", "legacy torch.save", "pickle", "text pickle"],
)
def test_code_in_a_pickle_never_runs(dump: Callable[[object], bytes], tmp_path: Path) -> None:
    data = dump(Code(tmp_path / "ran"))
    (tmp_path / "weights.pt").write_bytes(data)
    with pytest.raises(TeacherError, match=r"code in a file is never run|neither a safetensors"):
        load(tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Code(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # the trap works


def holding_itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def quantized(state: State) -> State:
    return {
        n: (t * 9).to(torch.int8) if n.endswith("weight") and t.ndim == 4 else t for n, t in state.items()
    }


def scripted_bytes() -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and in use
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), stream)
    return stream.getvalue()


def exported_bytes() -> bytes:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), stream)
    return stream.getvalue()


def npz_bytes(state: State) -> bytes:
    stream = io.BytesIO()
    numpy.savez(stream, **{name: tensor.numpy() for name, tensor in state.items()})
    return stream.getvalue()


def zip_bytes(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("weights.pt", data)
    return stream.getvalue()


BAD_FILES: list[tuple[str, Callable[[State], bytes], str]] = [
    ("empty", lambda s: b"", "the file is empty"),
    ("HTML", lambda s: b"\n  <!DOCTYPE html><html>Sign in</html>", "this is a web page (HTML), not weights"),
    ("LFS", lambda s: b"version https://git-lfs.github.com/spec/v1\noid", "this is a Git LFS pointer"),
    ("text", lambda s: b"accuracy: 91.7", "neither a safetensors nor a torch.save file"),
    ("JSON", lambda s: b'{"message": "Not Found"}', "neither a safetensors nor a torch.save file"),
    ("short", lambda s: torch_bytes(s)[:9000], "damaged, or no state dict that torch.save wrote"),
    ("short st", lambda s: safetensors.torch.save(s)[:-9], "damaged or truncated safetensors file"),
    (
        "module",
        lambda s: torch_bytes(build_network("resnet20", 10)),
        "torch.save(getattr(c, 'state_dict', lambda: c)(), 'weights.pt')",
    ),
    ("tensor", lambda s: torch_bytes(torch.zeros(3)), "holds a Tensor, not a state dict"),
    ("optimizer", lambda s: torch_bytes({"epoch": 1, "optimizer": {}}), "its keys: epoch, optimizer"),
    ("no tensors", lambda s: torch_bytes({}), "its keys: none"),
    ("itself", lambda s: torch_bytes(holding_itself()), "its keys: model"),
    (
        "NaN",
        lambda s: torch_bytes({**s, "bn1.bias": s["bn1.bias"] / 0}),
        "bn1.bias holds values that are not finite",
    ),
    (
        "vgg",
        lambda s: torch_bytes(build_network("vgg11", 10).state_dict()),
        "do not fit arch 'resnet20': 107 ",
    ),
    (
        "short of one",
        lambda s: torch_bytes({n: s[n] for n in s if n != "bn1.weight"}),
        "1 tensors missing (bn1.weight",
    ),
    (
        "one more layer",
        lambda s: torch_bytes({**s, "layer1.3.conv1.weight": torch.ones(16, 16, 3, 3)}),
        "1 unexpected (layer1.3.conv1.weight, ...)",
    ),
    (
        "int8",
        lambda s: torch_bytes(quantized(s)),
        "conv1.weight holds int8 values where the network computes",
    ),
    (
        "float8",
        lambda s: torch_bytes({**s, "conv1.weight": s["conv1.weight"].to(torch.float8_e4m3fn)}),
        "conv1.weight is quantized (torch.float8_e4m3fn)",
    ),
    (
        "infinite",
        lambda s: torch_bytes({**s, "bn1.running_var": torch.full((16,), torch.inf)}),
        "bn1.running_var holds values that are not finite",
    ),
    (
        "TorchScript",
        lambda s: scripted_bytes(),
        "torch.jit.load('{path}'); torch.save(c.state_dict(), 'weights.pt')",
    ),
    (
        "exported",
        lambda s: exported_bytes(),
        "this is an exported program (.pt2); save its weights: import torch;",
    ),
    ("npz", lambda s: npz_bytes(s), "numpy.load('{path}').items()}}, 'weights.pt')"),
    ("zip", lambda s: zip_bytes(torch_bytes(s)), "this is a zip archive; unpack it"),
    ("gzip", lambda s: gzip.compress(torch_bytes(s)), "compressed by gzip; unpack it"),
    ("tar", lambda s: b"weights.pt".ljust(257, b"\0") + b"ustar", "this is a tar archive; unpack it"),
    ("HDF5", lambda s: b"\x89HDF\r\n\x1a\n", "this is an HDF5 file (Keras)"),
    ("ONNX", lambda s: b"\x08\x08\x12\x07pytorch\x1a\x05", "this seems to be an ONNX model"),
    ("GGUF", lambda s: b"GGUF\x03\0\0\0", "this is a GGUF file of quantized weights"),
    ("TFLite", lambda s: b"\x1c\0\0\0TFL3", "this is a TensorFlow Lite model"),
    ("npy", lambda s: b"\x93NUMPY\x01\0", "this is a single NumPy array"),
    (
        "index",
        lambda s: b'{"metadata": {}, "weight_map": {}}',
        "this is the index of weights in several files",
    ),
    ("pickle", lambda s: pickle.dumps({"w": 1}), "this is a pickle that torch.save did not write"),
    ("unknown class", lambda s: torch_bytes({"state_dict": s, "x": Fraction(1, 2)}), "(fractions.Fraction)"),
    (
        "wider",
        lambda s: torch_bytes({**s, "conv1.weight": torch.ones(32, 3, 3, 3)}),
        "1 of another shape (conv1.weight is (32, 3, 3, 3), not (16, 3, 3, 3))",
    ),
    (
        "7 classes",
        lambda s: torch_bytes(build_network("resnet20", 7).state_dict()),
        "arch 'resnet20' is built with 10 classes, but weights {path} have 7 (linear.bias)",
    ),
    (
        "metadata",
        lambda s: safetensors.torch.save({"w": s["bn1.bias"]}, {"arch": "resnet32"}),
        "; its metadata says 'resnet32'",
    ),
]


@pytest.mark.parametrize(
    ("make", "message"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES]
)
def test_files_that_are_no_weights(
    make: Callable[[State], bytes], message: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(make(state))
    with pytest.raises(TeacherError) as caught:
        load(path)
    assert message.format(path=path) in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("{}/none.pt", TeacherError, "none.pt cannot be found: "),
        ("memory://teachers/none.pt", TeacherError, "memory://teachers/none.pt cannot be found: "),
        ("gopher://example.org/weights.pt", ConfigError, "unknown scheme 'gopher'"),
    ],
)
def test_weights_that_are_not_there(
    source: str, kind: type[NisynthError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        load(source.format(tmp_path))
    assert str(caught.value).startswith("teacher.weights ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("first", [0x80, 0x50])
def test_a_safetensors_file_may_begin_as_other_formats_do(first: int, tmp_path: Path) -> None:
    """Its first byte is part of the header's length: it may be that of a pickle or of an archive."""
    state = build_network("resnet20", 10).state_dict()
    made = (safetensors.torch.save(state, {"note": "x" * n}) for n in range(0, 256, 8))
    (tmp_path / "weights.safetensors").write_bytes(next(data for data in made if data[0] == first))
    load(tmp_path / "weights.safetensors")
