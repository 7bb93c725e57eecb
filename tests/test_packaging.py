"""What the package says of itself: every import is declared, and every file that it reads comes with it."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "nisynth"
PROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
WITH_TORCH = {"triton"}
"""torch pins its version, where there is one for the platform."""


def imported(tree: ast.Module) -> set[str]:
    """Returns the packages that a module imports when it runs: not for type checkers alone."""
    checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for node in checked for inner in ast.walk(node)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) not in skipped and isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif id(node) not in skipped and isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"nisynth"}


def declared() -> set[str]:
    """Returns the distributions that the package needs, and those of the extras that users can ask for."""
    project = PROJECT["project"]
    extras = [
        line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines
    ]
    return {plain(re.split(r"[^\w.-]", line)[0]) for line in [*project["dependencies"], *extras]}


def plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_import_is_declared() -> None:
    homes = packages_distributions()
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))) - WITH_TORCH:
            homes_of_name = {plain(home) for home in homes.get(name, [name])}
            assert homes_of_name & declared(), f"{path.relative_to(REPO)} imports {name}: declare it"


def test_every_file_of_the_package_goes_into_a_wheel() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["nisynth"]
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_dir() or path.suffix == ".py" or "__pycache__" in path.parts:
            continue
        inside = path.relative_to(PACKAGE)
        # A pattern's * does not cross folders, so each has as many parts as the path that it matches.
        fits = [p for p in patterns if p.count("/") == len(inside.parts) - 1 and fnmatch(str(inside), p)]
        assert fits, f"{inside} matches no line of package-data"


def test_the_version_is_the_packages_own() -> None:
    import nisynth

    assert PROJECT["project"]["version"] == nisynth.__version__
