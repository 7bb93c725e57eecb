"""The README's commands: the command line parses each, and each config that a command names is loaded."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from nisynth.cli.verbs import command_line
from nisynth.config import load_config
from nisynth.config_loader import load_as, shipped_configs
from nisynth.consumers.distill import DistillConfig
from nisynth.consumers.prune import PruneConfig
from nisynth.consumers.scratch import ScratchConfig
from nisynth.fitting import load_fit_config
from nisynth.series.config import load_adapt_config

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
FENCES = re.split(r"^```.*\n", README, flags=re.MULTILINE)
LINES = [line for block in FENCES[1::2] for line in block.splitlines() if line.startswith("nisynth ")]
SPANS = [span for text in FENCES[::2] for span in re.findall(r"`(nisynth [^`]+)`", text)]
PLACES = {"N": ["0"], "...": [], "E": ["--embedding", "NAME", "--embedding-weights", "FILE"]}
CONSUMERS: dict[str, Any] = {"distill": DistillConfig, "scratch": ScratchConfig, "prune": PruneConfig}
PAPER = ["Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 8"] + [
    f"Figure {number}" for number in (2, 3, 5, 6)
]


def load(verb: str, name: str, options: dict[str, Any]) -> None:
    """Loads the config of a verb's command as the verb does."""
    overrides = list(options["set_"])
    given = {key: options[key] for key in ("data", "output", "test_set") if key in options}
    if verb in CONSUMERS:
        load_as(CONSUMERS[verb], name, overrides, kind=verb, given=given)
    elif verb == "fit":
        load_fit_config(name, overrides, {"output": given["output"]})
    else:
        {"adapt": load_adapt_config}.get(verb, load_config)(name, overrides)


@pytest.mark.parametrize("command", dict.fromkeys([*LINES, *SPANS]))
def test_every_command_parses_and_its_config_loads(command: str) -> None:
    verb, *rest = [
        part for word in shlex.split(command, comments=True)[1:] for part in PLACES.get(word, [word])
    ]
    if not rest:  # the name of a verb
        assert verb in command_line(epilog="").commands
        return
    given = command_line(epilog="").commands[verb].make_context(verb, rest).params
    name = given.get("config")
    if name and not name.endswith(".yaml") and name.islower():  # not the reader's own file, not a placeholder
        load(verb, name, given)


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
