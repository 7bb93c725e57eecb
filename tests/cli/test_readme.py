"""The README's tables of the paper: their configs ship, and every table and figure has a command.

`tests/cli/test_documented_commands.py` parses the commands and loads the configs that they name.
"""

import re
from pathlib import Path

from nisynth.config_loader import shipped_configs

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
PAPER = ["Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 8"] + [
    f"Figure {number}" for number in (2, 3, 5, 6)
]


def test_every_config_in_the_tables_ships() -> None:
    cells = " ".join(line for line in README.splitlines() if line.startswith("| Table"))
    names = re.findall(r"`((?:cifar10|cifar100)_\w+)", cells)
    shipped = {
        name for kind in ("", "adapt", "distill", "fit", "prune", "scratch") for name in shipped_configs(kind)
    }
    assert len(names) > 10
    assert set(names) <= shipped


def test_every_table_and_figure_of_the_paper_has_a_command() -> None:
    table = README.partition("### From the paper to a command")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    for place in [*PAPER, "Figures 4, 7"]:
        assert any(f"| {place}:" in row and "`nisynth " in row for row in rows), place
