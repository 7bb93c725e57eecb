"""The reference of configs: it is what the code says, and says something of every field."""

import re
from pathlib import Path

from nisynth.cli.reference import reference
from tests.command_line import nisynth

PAGE = Path(__file__).resolve().parents[2] / "docs/config.md"


def section(title: str) -> str:
    return next(part for part in reference().split("\n## ") if part.startswith(f"{title}\n"))


def test_the_page_in_docs_is_what_the_verb_prints() -> None:
    told = nisynth("config")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == PAGE.read_text(), "it has changed: nisynth config > docs/config.md"


def test_a_field_has_its_type_default_and_meaning() -> None:
    row = "| `iterations` | integer | `2000` | steps of Algorithm 1's inner loop"
    assert row in section("method: naturalinversion")
    assert "| `head` | `tanh`, `sum` | `tanh` |" in section("method: naturalinversion")
    assert "| `mean` | list of 3 numbers | `null` | per channel" in section("teacher")
    assert "| `arch` | text | none: give it |" in section("teacher")
    assert "| `train` | [train](#train) | its defaults |" in section("distill")


def test_a_recipe_that_changes_defaults_of_another_shows_those_alone() -> None:
    text = section("prune: train")
    assert "As [train](#train), but for:" in text
    assert re.findall(r"^\| `(\w+)` \| \S+ .*?\| `([\w.]+)` \| ", text, re.M)[:2] == [
        ("epochs", "20"),
        ("lr", "0.001"),
    ]
    assert "momentum" not in text


def test_every_field_says_what_it_is() -> None:
    assert [line for line in reference().splitlines() if line.endswith("|  |")] == []


def test_links_lead_to_sections() -> None:
    text = reference()
    anchors = {
        re.sub(r"[^a-z0-9_ -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^## (.*)", text, re.M)
    }
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= anchors
