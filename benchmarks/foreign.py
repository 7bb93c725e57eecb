"""Public networks and weights files tried as teachers, and what happened, as a page for docs/.

`python benchmarks/foreign.py --checkouts FOLDER --output docs/teachers.md` tries every network that
foreign.yaml names: those of installed packages, and those of repositories whose checkouts lie in FOLDER, as
`owner+repository`. Nothing is downloaded. Each network starts with random weights, and its BatchNorms
remember a few batches of noise, since what is tried is structure: is it understood, does the fast engine
take it, and does one step of an inversion run.
"""

import argparse
import copy
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from nisynth.batch import Task
from nisynth.errors import NisynthError, one_line
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.teachers import Teacher, build_network, load_teacher

LIST = Path(__file__).with_name("foreign.yaml")
HALF = (0.5, 0.5, 0.5)
TIMEOUT_S = 3600


def try_network(arch: str, kwargs: Mapping[str, Any], input_px: int, num_classes: int) -> dict[str, str]:
    """Returns what became of one network, as the columns of a table."""
    row = {"network": arch + (f" {json.dumps(dict(kwargs))}" if kwargs else ""), "image": f"{input_px} px"}
    try:
        torch.manual_seed(0)
        network = build_network(arch, num_classes, **kwargs)
        remember_noise(network, input_px)
        teacher = load_teacher(network, num_classes=num_classes, mean=HALF, std=HALF, input_px=input_px)
        row |= {"taps": taps(teacher), "BatchNorms": teacher.describe()["BatchNorms"]}
        row |= {"logits": teacher.describe()["logits"], "notes": "; ".join(teacher.notes)}
        row["fast engine"] = one_step(teacher)
    except NisynthError as error:
        row["notes"] = f"refused: {error}"
    except Exception as error:
        row["notes"] = f"**raised {one_line(error)}**"
    return row


@torch.no_grad()
def remember_noise(network: nn.Module, input_px: int) -> None:
    """Gives BatchNorms the statistics of some noise, and the weights of layers that start at zero a value."""
    for parameter in network.parameters():
        if not bool(parameter.any()):
            parameter.normal_(0, 0.1)
    probe = copy.deepcopy(network).train()
    try:
        for _ in range(3):
            probe(torch.randn(8, 3, input_px, input_px))
    except Exception:  # some networks only run in eval mode at this size; that is what is tried
        return
    network.load_state_dict(probe.state_dict())


def taps(teacher: Teacher) -> str:
    return ", ".join(f"{tap.channels}x{tap.side_px}²" for tap in teacher.taps)


def one_step(teacher: Teacher) -> str:
    """Returns how the engine runs a step of an inversion of two images: `yes`, or why the plain loop does."""
    config = NaturalInversionConfig(iterations=1)
    synthesizer = make_synthesizer(config, EngineConfig(name="fast"), teacher)
    task = Task(index=0, seed=0, labels=np.arange(2, dtype=np.int64), rows=2)
    batch = synthesizer.synthesize(task)
    if str(batch.figures["engine"]).startswith("fast"):
        return "yes"
    return "no: " + "; ".join(note.removeprefix("engine.name fast: ") for note in synthesizer.notes)


def try_source(entry: Mapping[str, Any], folder: Path) -> Iterator[dict[str, str]]:
    """Yields the rows of one source's networks."""
    if "checkout" in entry:
        sys.path.insert(0, str(folder / entry["checkout"]))
    defaults = {
        "kwargs": {},
        "input_px": entry.get("input_px", 32),
        "num_classes": entry.get("num_classes", 10),
    }
    for network in entry["networks"]:
        yield try_network(**{**defaults, **({"arch": network} if isinstance(network, str) else network)})


def try_files() -> list[dict[str, str]]:
    """Returns what becomes of one network's weights in every wrapping and format that the tests know."""
    sys.path.append(str(LIST.parents[1]))
    from tests.teachers.test_checkpoint import BAD_FILES, WRAPPINGS

    state = build_network("resnet20", 10).state_dict()
    rows = []
    for name, make in [*WRAPPINGS.items(), *((name, make) for name, make, _ in BAD_FILES)]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "FILE"
            path.write_bytes(make(state))
            try:
                described = {"num_classes": 10, "mean": HALF, "std": HALF}
                teacher = load_teacher(arch="resnet20", weights=str(path), **described)
                result = "; ".join(["read", *teacher.notes])
            except NisynthError as error:
                result = f"refused: {error}"
        rows.append({"file": name, "what happens": result.replace(f"{folder}/", "")})
    return rows


def in_own_process(entry: Mapping[str, Any], folder: Path) -> list[dict[str, str]]:
    """Returns a source's rows, tried in a process of their own: repositories share names of modules."""
    command = [sys.executable, __file__, "--one", json.dumps(entry), "--checkouts", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True)
    rows: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def version(entry: Mapping[str, Any], folder: Path) -> str:
    """Returns a checkout's commit, or an installed package's version."""
    if "checkout" not in entry:
        return f"{entry['source']} {metadata.version(entry['source'])}"
    command = ["git", "-C", str(folder / entry["checkout"]), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f"[{entry['source']}](https://github.com/{entry['source']}) {commit}".strip()


def table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for row in rows:
        cells = [row.get(column, "").replace("|", "\\|") for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(found: Sequence[tuple[str, list[dict[str, str]]]]) -> str:
    """Returns the page: what was tried of each source."""
    rows = [row for _, rows in found for row in rows]
    taken = [row for row in rows if "taps" in row]
    fast = [row for row in taken if row.get("fast engine") == "yes"]
    parts = [
        "# Networks and weights files that were tried",
        "Written by `python benchmarks/foreign.py --checkouts FOLDER --output docs/teachers.md` with torch"
        f" {torch.__version__}, on a CPU. Weights are random, and BatchNorms remember noise: what was tried"
        " is structure. `taps` are channels and side of the feature maps that are read, `BatchNorms` how many"
        " of those that run R_BN matches; `fast engine` says whether its graph stands for the network, and,"
        " if not, why the plain loop runs its tasks.",
        f"Of {len(rows)} networks, {len(taken)} are taken as teachers, {len(fast)} of them by the fast"
        " engine.",
        "## Networks",
    ]
    columns = ["network", "image", "taps", "BatchNorms", "logits", "fast engine", "notes"]
    for title, of_source in found:
        parts += [f"### {title}", table(of_source, columns)]
    parts += [
        "## Weights files",
        "One ResNet-20's weights, as people save them, and files that are no weights of it.",
        table(try_files(), ["file", "what happens"]),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkouts", type=Path, default=Path("checkouts"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", default="", help="a part of a source's name")
    parser.add_argument("--one", help="for its own use: one source as JSON")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if options.one:
        rows = []
        for row in try_source(json.loads(options.one), options.checkouts):
            rows.append(row)
            print(
                row["network"], row.get("fast engine", ""), row.get("notes", ""), file=sys.stderr, flush=True
            )
        print(json.dumps(rows))
        return
    found = []
    for entry in yaml.safe_load(LIST.read_text()):
        here = "checkout" not in entry or (options.checkouts / entry["checkout"]).is_dir()
        if here and options.only in entry["source"]:
            found.append((version(entry, options.checkouts), in_own_process(entry, options.checkouts)))
    text = page(found)
    if options.output:
        options.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
