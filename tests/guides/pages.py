"""The guides as a reader follows them: their files are written, their commands and code are run."""

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tests.command_line import nisynth

GUIDES = Path(__file__).resolve().parents[2] / "docs/guides"
FILE = re.compile(r"# ([\w.]+\.(?:py|yaml))\b")
"""How a block begins that is a file: with its name."""


def blocks(guide: str, language: str) -> list[str]:
    """Returns the code blocks of a guide, or of the README, in one language."""
    page = GUIDES.parents[1] / "README.md" if guide == "README" else GUIDES / f"{guide}.md"
    text = page.read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def write_files(guide: str, folder: Path) -> None:
    """Writes every block whose first line is a comment with a file's name into that file."""
    for block in [*blocks(guide, "python"), *blocks(guide, "yaml")]:
        named = FILE.match(block)
        if named:
            (folder / named[1]).write_text(block)


def commands(guide: str) -> list[list[str]]:
    """Returns the words of every `nisynth` command of a guide, in order."""
    lines = "".join(blocks(guide, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    assert all(line[0] == "nisynth" for line in words if line), "only nisynth's commands can be run here"
    return [line[1:] for line in words if line]


def run_code(guide: str) -> dict[str, Any]:
    """Runs a guide's Python blocks that are no files, one after the other; returns the names they leave."""
    names: dict[str, Any] = {}
    for block in blocks(guide, "python"):
        if not FILE.match(block):
            exec(compile(block, f"{guide}.md", "exec"), names)
    return names


def follow(
    guide: str, tiny: Mapping[str, list[str]], places: Mapping[str, str], without: Collection[str] = ()
) -> dict[str, str]:
    """Runs a guide's commands, each of which must end with 0; returns what the last of each verb printed.

    tiny: what is added to a verb's command, so that it takes no time. places: what stands for an address.
    without: verbs that need what is not here; `tests/cli/test_documented_commands.py` parses them.
    """
    said = {}
    for words in commands(guide):
        if words[0] in without:
            continue
        placed = [_placed(word, places) for word in words]
        done = nisynth(*placed, *tiny.get(words[0], []))
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        said[words[0]] = done.stdout
    return said


def _placed(word: str, places: Mapping[str, str]) -> str:
    for written, real in places.items():
        word = word.replace(written, real)
    return word
