"""The verb that prints what a config may hold: config. It is read from the dataclasses that check one."""

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from nisynth.cli.output import out

PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "section"}


def config() -> None:
    """Print what a config may hold: every section, field, type and default, as Markdown."""
    out.print(reference(), end="")


def reference() -> str:
    """Returns the reference of every config as Markdown, which docs/config.md holds."""
    sections = list(_sections())
    anchors: dict[type, str] = {}
    for title, owner in sections:
        anchors.setdefault(owner, title)
    parts = [_HEAD, *(_section(title, owner, anchors) for title, owner in sections)]
    return "\n\n".join(parts) + "\n"


_HEAD = """# What a config may hold

Printed by `nisynth config` from the code that checks a config. A config is YAML; `--set section.field=value`
changes a field on the command line. What is stated later wins: defaults, then `method.preset`, then the file,
then `--set`. An unknown key is an error that names the nearest valid one. A field without a default must be
given; `--data`, `--output` and `--test-set` give the fields of those names. `method.name` chooses which of
the sections "method: NAME" applies, or "fit: method: NAME" for `nisynth fit`."""


def _sections() -> Iterator[tuple[str, type]]:
    """Yields every section that is shown: its title and its dataclass, the file's own parts first."""
    from nisynth.config import RunConfig
    from nisynth.consumers.distill import DistillConfig, LossConfig
    from nisynth.consumers.prune import FineTuneConfig, PruneConfig
    from nisynth.consumers.scratch import ScratchConfig, ScratchTrainConfig
    from nisynth.fitting import FITS, FitConfig
    from nisynth.series.config import RivalTrainConfig, RoundsConfig
    from nisynth.synthesis import METHODS
    from nisynth.synthesis.inversion.rival import RivalConfig
    from nisynth.training import TrainConfig
    from nisynth.training.student import StudentConfig

    for field in dataclasses.fields(RunConfig):
        if field.name == "method":
            yield from ((f"method: {name}", row.config) for name, row in METHODS.items())
            yield "method.rival", RivalConfig
        elif isinstance(field.type, type):
            yield field.name, field.type
    yield from (("distill", DistillConfig), ("student", StudentConfig), ("train", TrainConfig))
    yield from (("loss", LossConfig), ("scratch", ScratchConfig), ("scratch: train", ScratchTrainConfig))
    yield from (("prune", PruneConfig), ("prune: train", FineTuneConfig), ("fit", FitConfig))
    yield from ((f"fit: method: {name}", fit.config) for name, fit in FITS.items())
    yield from (("adapt: rounds", RoundsConfig), ("adapt: train", RivalTrainConfig))


def _section(title: str, owner: Any, anchors: Mapping[type, str]) -> str:
    intro, meanings = described(owner)
    base = next((kind for kind in owner.__mro__[1:] if kind in anchors), None)
    inherited = {} if base is None else {f.name: _default(f) for f in dataclasses.fields(base)}
    rows = []
    for field in dataclasses.fields(owner):
        default = _default(field)
        if inherited.get(field.name) == default or (field.name == "name" and str(field.default) in title):
            continue
        meaning = _linked(meanings.get(field.name, ""), anchors)
        cells = (f"`{field.name}`", _type(field.type, anchors), default, meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    lines = [f"## {title}", "", _linked(intro, anchors)]
    if base is not None:
        lines += ["", f"As {_link(anchors[base])}" + (", but for:" if rows else ".")]
    if rows:
        lines += ["", "| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n".join(lines)


def described(owner: type) -> tuple[str, dict[str, str]]:
    """Returns what a dataclass's docstring says of it as a whole, and of each field, inherited ones included.

    A field's text follows `name:` or `name, name:` at the beginning of a sentence. What the class raises is
    left out: a user sees the error's line.
    """
    names = "|".join(field.name for field in dataclasses.fields(owner))
    start = re.compile(rf"(?:^|(?<=[.;] ))((?:{names})(?:, (?:{names}))*): ")
    intro = ""
    meanings: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
        text = re.sub(r"Raises ConfigError[^.]*\. ?", "", text)
        intro, *pairs = start.split(text)
        for fields, meaning in zip(pairs[::2], pairs[1::2], strict=True):
            meanings |= dict.fromkeys(fields.split(", "), meaning.strip())
    return intro.strip(), meanings


def _type(kind: Any, anchors: Mapping[type, str]) -> str:
    if kind in anchors:
        return _link(anchors[kind])
    if kind in PLAIN:
        return PLAIN[kind]
    inner = [part for part in get_args(kind) if part not in (type(None), ...)]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_type(part, anchors) for part in inner)
    if get_origin(kind) is tuple:
        number = "" if ... in get_args(kind) else f"{len(inner)} "
        return f"list of {number}{_type(inner[0], anchors)}{'s' if inner[0] is not str else ''}"
    return "names and values"


def _link(title: str) -> str:
    return f"[{title}](#{re.sub(r'[^a-z0-9_ -]', '', title.lower()).replace(' ', '-')})"


def _linked(text: str, anchors: Mapping[type, str]) -> str:
    """Returns a docstring's text with links in the place of the names of classes."""
    names = {owner.__name__: title for owner, title in anchors.items()}
    return re.sub(r"`?\b([A-Z]\w+Config)\b`?", lambda found: _link(names[found[1]]), text)


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        if not dataclasses.is_dataclass(made):
            return _value(made)
        own = {f.name: _default(f) for f in dataclasses.fields(made)}
        stated = {n: v for n, v in vars(made).items() if _value(v) != own[n]}
        return _value(stated) if stated else "its defaults"
    if field.default is dataclasses.MISSING or field.default == "":
        return "none: give it"
    return _value(field.default)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None:
        return "`null`"
    if isinstance(value, Mapping):
        return f"`{{{', '.join(f'{key}: {inner}' for key, inner in value.items())}}}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"
