"""Imports go one way, and heavy libraries have one door each; read from the syntax tree."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nisynth"

# The floors of the package, lowest first: a module may import from its own floor and from those below it,
# which stand above it in this list. Where a room has a part on another floor, that part stands by its name.
LAYERS = [
    ["errors", "device", "identity", "randomness"],
    ["storage", "testing", "parquet", "png"],
    ["images"],
    ["batch"],
    ["teachers", "shards"],
    ["config_loader"],
    ["synthesis", "training"],
    ["fitting"],
    ["plan", "config"],
    ["series.plan"],
    ["commits"],
    ["series.run"],
    ["worker", "in_memory"],
    ["execution"],
    ["progress"],
    ["execution.run", "execution.submit"],
    ["reader"],
    ["report.curves"],  # what a training leaves beside its result
    ["consumers"],
    ["series.rivals", "series.pull", "series.by_url"],
    ["evaluation"],
    ["report"],
    ["series"],
    ["cli", "__main__"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

DOORS = {
    "ray": {
        "execution.ray",
        "execution.actors",
        "execution.cluster",
        "execution.jobs_api",
        "execution.metrics",
        "consumers.ray_train",
    },
    "boto3": {"storage.s3_client"},
    "botocore": {"storage.s3", "storage.s3_client"},
    "pydantic": {"config_loader"},
    "typer": {"cli"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "torch_fidelity": {"evaluation"},
    "sklearn": {"evaluation"},
    "openTSNE": {"evaluation"},
}


def modules() -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imports(tree: ast.Module) -> set[str]:
    """Every imported module, also those inside functions and for type checkers alone."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def rank(module: str) -> int | None:
    """The rank of the longest prefix of `module` that the list names."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in RANK:
            return RANK[prefix]
    return None


def climbs(name: str, tree: ast.Module) -> list[str]:
    """Returns what module `name` imports from floors above its own."""
    own = rank(name)
    assert own is not None, f"nisynth/{name.replace('.', '/')}.py has no floor; add it to LAYERS"
    ranks = {target: rank(target.removeprefix("nisynth.")) for target in imports(tree)}
    inside = {target: found for target, found in ranks.items() if target.startswith("nisynth.")}
    return sorted(target for target, found in inside.items() if found is not None and found > own)


@pytest.mark.parametrize(("name", "tree"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_go_one_way(name: str, tree: ast.Module) -> None:
    if name == "":
        return  # the package itself: its public names are loaded on first use
    assert climbs(name, tree) == [], f"{name} imports what lies above it"


@pytest.mark.parametrize(
    "climb",
    [
        "from nisynth.config import RunConfig",
        "import nisynth.config",
        "def f():\n    from nisynth import config",
        "if TYPE_CHECKING:\n    from nisynth.config import RunConfig",
    ],
)
def test_a_climb_is_found_however_it_is_hidden(climb: str) -> None:
    assert climbs("teachers.load", ast.parse(climb))
    assert climbs("worker", ast.parse(climb)) == []


def import_graph(trees: list[tuple[str, ast.Module]]) -> dict[str, set[str]]:
    """Returns what each module of the package imports of it: at its top, in functions, for type checkers.

    A name taken from a package is an import of the module that has it, where there is one, else of the
    package's own `__init__`. That importing a module also runs the `__init__` of its package does not count.
    """
    known = {f"nisynth.{name}" if name else "nisynth" for name, _ in trees}
    graph: dict[str, set[str]] = {}
    for name, tree in trees:
        own = f"nisynth.{name}" if name else "nisynth"
        found = graph.setdefault(own, set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found.update(inside & known if inside <= known else {node.module, *(inside & known)})
        graph[own] = (found & known) - {own}
    return graph


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """Returns the modules of one import cycle in their order; [] where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither at their top, nor inside functions, nor for type checkers alone."""
    assert cycle_of(import_graph(modules())) == []


@pytest.mark.parametrize(
    "back",
    [
        "from nisynth.commits.seal import seal",
        "def f():\n    from nisynth.commits import seal",
        "if TYPE_CHECKING:\n    import nisynth.commits.seal",
    ],
)
def test_a_circle_is_found_however_it_is_hidden(back: str) -> None:
    sources = {
        "commits": "",
        "commits.seal": "from nisynth.commits.records import Commit",
        "commits.records": back,
    }
    found = cycle_of(import_graph([(name, ast.parse(source)) for name, source in sources.items()]))
    assert set(found) == {"nisynth.commits.seal", "nisynth.commits.records"}


@pytest.mark.parametrize(("name", "tree"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_heavy_libraries_have_one_door(name: str, tree: ast.Module) -> None:
    for library in {target.split(".")[0] for target in imports(tree)} & set(DOORS):
        assert any(name == door or name.startswith(f"{door}.") for door in DOORS[library]), (
            f"{name} imports {library}; only {sorted(DOORS[library])} may"
        )


@pytest.mark.parametrize(
    "module", ["nisynth.synthesis", "nisynth.teachers", "nisynth.reader", "nisynth.consumers.distill"]
)
def test_a_machine_with_only_torch_can_import(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('ray', 'boto3', 'pydantic', 'datasets', 'typer'): sys.modules[name] = None\n"
        f"import {module}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
