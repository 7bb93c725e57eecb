"""Every command that a page, a manifest, a job or a message shows is one that its parser takes."""

import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperCommand

from nisynth.cli.verbs import VERBS, Verb, command_line
from nisynth.config import load_config
from nisynth.config_loader import load_as
from nisynth.consumers.distill import DistillConfig
from nisynth.consumers.prune import PruneConfig
from nisynth.consumers.scratch import ScratchConfig
from nisynth.errors import ConfigError
from nisynth.fitting import load_fit_config
from nisynth.series.config import load_adapt_config
from tests.cluster.kustomize import FOLDERS, rendered

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", *(path for name in ("cluster", "docs") for path in (REPO / name).rglob("*.md"))]
OTHERS = [
    *(REPO / name for name in ("Makefile", "docker/Dockerfile")),
    *(path for name in ("cluster", "nisynth") for path in (REPO / name).rglob("*.yaml")),
    *(REPO / "nisynth").rglob("*.j2"),
]
SCRIPTS = [*(REPO / "jobs").glob("*.py"), *(REPO / "nisynth").rglob("*.py")]
# nisynth's own, or a job's script, before it whatever runs it (`ray job submit ... -- `).
PROGRAM = r"(?:\$\(BIN\)/)?nisynth(?= )|python (?:/opt/nisynth/)?jobs/\w+\.py"
CONSUMERS: dict[str, Any] = {"distill": DistillConfig, "scratch": ScratchConfig, "prune": PruneConfig}
STANDS_FOR = {"N": "1", "S": "1", "E": "--embedding=x", "...": "x"}


def inline(text: str) -> Iterator[str]:
    """Yields what stands between backticks: commands that may leave arguments to the reader."""
    for found in re.findall(rf"`((?:{PROGRAM})[^`]+)`", text):
        yield " ".join(found.split())


def whole_lines(text: str) -> Iterator[str]:
    """Yields lines to be typed as they are."""
    pattern = rf"^\s*(?:ray job submit .*?-- )?((?:{PROGRAM}) .*)$"
    yield from re.findall(pattern, text.replace("\\\n", " "), re.MULTILINE)


def in_code_blocks(page: str) -> str:
    return "\n".join(re.split(r"^```.*$", page, flags=re.MULTILINE)[1::2])


def strings(source: str) -> Iterator[str]:
    """Yields the texts of a Python file, a 1 for each value that is put in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "1" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def documented() -> Iterator[tuple[str, bool, str]]:
    """Yields (file, whether it is to be typed as it is, command)."""
    for path in [*PAGES, *OTHERS, *SCRIPTS]:
        text, name = path.read_text(), str(path.relative_to(REPO))
        texts = list(strings(text)) if path.suffix == ".py" else [text]
        whole = name == "README.md"  # its tables are to be typed, too
        yield from ((name, whole, command) for part in texts for command in inline(part))
        if path in PAGES or path in OTHERS:
            typed = in_code_blocks(text) if path in PAGES else text
            yield from ((name, True, command) for command in whole_lines(typed))
    for folder in FOLDERS:
        yield folder.name, True, rendered(folder)["RayJob"]["spec"]["entrypoint"]


def arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns what nisynth's parser is given: of a job's script, what the script makes of its own."""
    words = shlex.split(command, comments=True)
    words = [STANDS_FOR.get(word, word) for word in words]
    program, *rest = [word for word in words if word]
    if program != "python":
        return rest
    script = REPO / "jobs" / Path(rest[0]).name
    monkeypatch.setattr(sys, "argv", [str(script), *rest[1:]])
    with monkeypatch.context() as patch:
        patch.setattr("nisynth.cli.main", lambda: None)
        runpy.run_path(str(script))
    return sys.argv[1:]


@cache
def verb(name: str) -> TyperCommand:
    found = command_line("").commands[name]
    assert isinstance(found, Verb)
    return found.load()


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


def refusal(words: list[str], whole: bool) -> str | None:
    """Returns why the parser does not take the words, or what is wrong with the config that they name.

    What is not whole may lack arguments; one word is a verb's name.
    """
    whole = whole and len(words) > 1
    if words[0] in ("--help", "--version", "1"):
        return None
    if words[0] not in VERBS:
        return f"unknown verb {words[0]!r}"
    try:
        context = verb(words[0]).make_context(words[0], words[1:])
    except typer.TyperException as error:
        said = error.format_message()
        return None if said.startswith("Missing ") and not whole else said
    config = str(context.params.get("config", "")).removeprefix("/etc/nisynth/")
    if not re.fullmatch("[a-z][a-z0-9_]+", config):  # not the reader's own file, not a placeholder
        return None
    if not list((REPO / "nisynth/configs").rglob(f"{config}.yaml")):
        return f"no config {config!r} ships"
    try:
        if whole:
            load(words[0], config, context.params)
    except ConfigError as error:
        return str(error)
    return None


def test_every_command_is_one_that_its_parser_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [found for found in documented() if "drain.py" not in found[2]]
    assert len(commands) > 100
    wrong = []
    for place, whole, command in commands:
        why = refusal(arguments(command, monkeypatch), whole)
        if why is not None:
            wrong.append(f"{place}: {command}: {why}")
    assert not wrong, "\n".join(wrong)


def test_every_file_that_a_page_or_manifest_names_is_there() -> None:
    folders, endings = "cluster|docker|jobs|benchmarks|docs|nisynth|tests", "yaml|py|md|json|lock"
    named = rf"(?<![\w/.-])(?:{folders})/[\w/-]+\.(?:{endings})\b"
    missing = [
        f"{path.relative_to(REPO)}: {name}"
        for path in [*PAGES, *OTHERS, *SCRIPTS]
        for name in re.findall(named, path.read_text())
        if not (REPO / name).exists()
    ]
    assert not missing, "\n".join(missing)
