"""The table of the paper's equations, figures and tables, in the package's docstring."""

import re
from importlib import import_module

import nisynth.synthesis.naturalinversion as package

TABLE = [line for line in (package.__doc__ or "").splitlines() if line.startswith("|")]


def test_each_equation_figure_and_table_of_the_paper_has_a_place() -> None:
    cited: set[tuple[str, int]] = set()
    for kind, numbers in re.findall(r"(Eq|Figure|Table)s?\.? ([\d, ]*\d)", "\n".join(TABLE)):
        cited |= {(kind, int(number)) for number in numbers.split(", ")}
    of_the_paper = {"Eq": 8, "Figure": 7, "Table": 9}
    assert cited == {(kind, n) for kind, last in of_the_paper.items() for n in range(1, last + 1)}


def test_each_place_is_there() -> None:
    places = re.findall(
        r"`((?:synthesis|report|evaluation|consumers|fitting)[.]\S+)[.](\w+)`", "\n".join(TABLE)
    )
    assert len(places) > 20
    for module, name in places:
        assert hasattr(import_module(f"nisynth.{module}"), name), f"{module}.{name}"
