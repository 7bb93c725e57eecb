"""Weights in every wrapping that people save them in, and files that are no weights."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

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


def holding_itself() -> dict[str, object]:
    content: dict[str, object] = {}
    content["model"] = content
    return content


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
        "refused: nisynth.teachers.resnet.ResNet",
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
    ("one more", lambda s: torch_bytes({**s, "aux.weight": s["bn1.bias"]}), "1 unexpected (aux.weight, ...)"),
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
        ("{}", TeacherError, "cannot be found: "),
        ("memory://teachers/none.pt", TeacherError, "memory://teachers/none.pt cannot be found: "),
        ("https://example.org/weights.pt", ConfigError, "unknown scheme 'https'"),
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
