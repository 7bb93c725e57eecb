"""Imports go one way, and heavy libraries have one door each; read from the syntax tree."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nisynth"

# Lowest first: a module may import from its own layer's package and from layers above it in this list.
LAYERS = [
    ["errors", "determinism", "identity", "randomness"],
    ["png", "storage"],
    ["images", "testing"],
    ["batch"],
    ["teachers"],
    ["plan", "shards", "training"],
    ["synthesis", "commits"],
    ["series.plan"],
    ["series.run"],
    ["report", "reader"],
    ["execution"],
    ["config"],
    ["progress"],
    ["worker", "in_memory"],
    ["execution.schedule", "consumers"],
    ["fitting"],
    ["series.rivals", "series.pull", "series.by_url"],
    ["evaluation"],
    [
        "report.facts",
        "report.sections",
        "report.compare",
        "report.cards",
        "report.maps",
        "report.students",
        "report.page",
        "report.training_page",
        "report.build",
    ],
    ["execution.drive", "execution.local", "execution.ray", "execution.actors", "execution.virtual"],
    ["execution.simulate", "execution.metrics"],
    ["execution.run"],
    ["execution.submit", "series"],
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
    "pydantic": {"config"},
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
    """Every imported module, also those inside functions, but not those for type checkers alone."""
    names: set[str] = set()
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
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


@pytest.mark.parametrize(("name", "tree"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_go_one_way(name: str, tree: ast.Module) -> None:
    if name == "":
        return  # the package itself: its public names are loaded on first use
    own = rank(name)
    assert own is not None, f"nisynth/{name.replace('.', '/')}.py has no layer; add it to LAYERS"
    for target in imports(tree):
        if target.startswith("nisynth."):
            theirs = rank(target.removeprefix("nisynth."))
            assert theirs is None or theirs <= own, f"{name} imports {target}, which lies above it"


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
