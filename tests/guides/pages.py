"""The guides as a reader follows them: their files are written, their commands and code are run."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from tests.command_line import nisynth

GUIDES = Path(__file__).resolve().parents[2] / "docs/guides"


def blocks(guide: str, language: str) -> list[str]:
    """Returns the code blocks of a guide in one language."""
    text = (GUIDES / f"{guide}.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def write_files(guide: str, folder: Path) -> None:
    """Writes every block whose first line is a comment with a file's name into that file."""
    for block in [*blocks(guide, "python"), *blocks(guide, "yaml")]:
        named = re.match(r"# ([\w.]+\.(?:py|yaml))\b", block)
        if named:
            (folder / named[1]).write_text(block)


def commands(guide: str) -> list[list[str]]:
    """Returns the words of every `nisynth` command of a guide, in order."""
    lines = "".join(blocks(guide, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    assert all(line[0] == "nisynth" for line in words if line), "only nisynth's commands can be run here"
    return [line[1:] for line in words if line]


def follow(guide: str, tiny: Mapping[str, list[str]], places: Mapping[str, str]) -> dict[str, str]:
    """Runs a guide's commands, each of which must end with 0; returns what the last of each verb printed.

    tiny: what is added to a verb's command, so that it takes no time. places: what stands for an address.
    """
    said = {}
    for words in commands(guide):
        placed = [_placed(word, places) for word in words]
        done = nisynth(*placed, *tiny.get(words[0], []))
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        said[words[0]] = done.stdout
    return said


def _placed(word: str, places: Mapping[str, str]) -> str:
    for written, real in places.items():
        word = word.replace(written, real)
    return word
