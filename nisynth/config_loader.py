"""YAML, a mapping or a shipped config's name, with `a.b=c` overrides, becomes a frozen, validated dataclass.

It knows no config's fields, but for the hint to one who gives an arch in a config's place. Each part keeps
its own Config, a frozen standard-library dataclass, beside its owner; pydantic checks the types here alone.
Precedence: defaults < preset < file < overrides. Unknown keys are errors with the nearest valid name.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, get_args

import pydantic
import yaml

from nisynth.errors import ConfigError, one_line
from nisynth.teachers.registry import REGISTRY

Owner = TypeVar("Owner")
MAX_DEPTH, MAX_VALUES, MAX_INT_BITS = 50, 100_000, 128
"""What a config may hold, aliases written out: far more than any needs, far less than a machine's memory."""


class Choice(Protocol):
    """A row of a table that a section chooses from by its `name`: its config, and fields of it by preset."""

    @property
    def config(self) -> type[Any]: ...
    @property
    def presets(self) -> Mapping[str, Mapping[str, Any]]: ...


def shipped_configs(kind: str = "") -> tuple[str, ...]:
    """Returns the names of the configs that come with the package; kind: a consumer's, such as `distill`."""
    folder = resources.files("nisynth") / "configs" / kind
    if not folder.is_dir():
        return ()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_as(
    owner: type[Owner],
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    kind: str,
    given: Mapping[str, Any] | None = None,
    choices: Mapping[str, Mapping[str, Choice]] | None = None,
) -> Owner:
    """Returns the config of type `owner`, a frozen dataclass, from a file, a shipped name, or a mapping.

    overrides: `a.b=c`. kind: the folder of configs/ with those that ship. given: top-level values that beat
    the file's where they are not None, from options of the command line. choices: the tables that sections
    choose from by their `name`, by section. Raises ConfigError: one line that names the field, the value and
    what would be right.
    """
    values = read_values(source, overrides, kind)
    values.update({key: value for key, value in (given or {}).items() if value is not None})
    stated = {key: value for key, value in values.items() if value is not None}
    chosen: dict[str, Any] = {}
    for name, table in (choices or {}).items():
        config, stated[name] = choose(name, stated.get(name), table)
        chosen[name] = section(name, stated[name], config)
    resolved: Any = section("", stated, owner)
    return cast(Owner, dataclasses.replace(resolved, **chosen))


def read_values(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str], kind: str
) -> dict[str, Any]:
    """Returns the values of a file, a shipped config's name, or a mapping, with `a.b=c` overrides; unchecked.

    kind: the folder of configs/ with those that ship. Raises ConfigError.
    """
    values = dict(source) if isinstance(source, Mapping) else _read(str(source), kind)
    _check_size(values)
    copied: dict[str, Any] = json.loads(json.dumps(values))
    for override in overrides:
        _override(copied, override)
    return copied


def choose(
    field: str,
    stated: Any,
    table: Mapping[str, Choice],
    default_preset: Callable[[Mapping[str, Any]], str | None] = lambda values: None,
) -> tuple[type[Any], dict[str, Any]]:
    """Returns the config that the `name` of a section chooses, and its values with its preset written out.

    stated: the section as read; the first row of the table is the default. default_preset: names the preset
    of a section that states none. Raises ConfigError.
    """
    stated = stated or {}
    if not isinstance(stated, dict):
        raise ConfigError(f"{field}: {stated!r} is not a section; write `{field}: {{name: {stated}}}`")
    values = {"name": next(iter(table)), **stated}
    for key in ("name", "preset"):
        if not isinstance(values.get(key, ""), str):
            raise ConfigError(f"{field}.{key}: {values[key]!r} should be a name")
    name, preset = values["name"], values.pop("preset", None)
    if name not in table:
        raise ConfigError(f"{field}.name: unknown {field} {name!r}{_nearest(name, table)}")
    config, presets = table[name].config, table[name].presets
    check_keys(stated, {"preset": str} | {f.name: f.type for f in dataclasses.fields(config)}, f"{field}.")
    if preset is None:
        preset = default_preset(values)
    if preset is None:
        return config, values
    if preset not in presets:
        raise ConfigError(f"{field}.preset: unknown preset {preset!r} of {name}{_nearest(preset, presets)}")
    return config, {**presets[preset], **values}


def section(name: str, values: Any, owner: type) -> Any:
    """Returns the values as an `owner`, a frozen dataclass, all its types checked. name: `` for a whole file.

    Raises ConfigError.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: {values!r} is not a section of keys and values")
    _check_nested(values, owner, f"{name}." if name else "")
    try:
        # JSON mode: strict about types (no "256" for 256), yet a list may fill a tuple.
        return pydantic.TypeAdapter(owner).validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        lines = dict.fromkeys(_describe(name, e) for e in error.errors())
        raise ConfigError("; ".join(list(lines)[:3])) from None


def _check_nested(values: Mapping[str, Any], owner: type, prefix: str) -> None:
    """Checks the keys of a section and of the sections inside it; pydantic ignores a surplus key."""
    inner = {f.name: f.type for f in dataclasses.fields(owner)}
    check_keys(values, inner, prefix)
    for key, value in values.items():
        for kind in get_args(inner.get(key)) or (inner.get(key),):  # of `Config | None`, the Config
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
                _check_nested(value, kind, f"{prefix}{key}.")


def _describe(section: str, error: Any) -> str:
    parts = [*([section] if section else []), *error["loc"]]
    place = ".".join(map(str, parts))
    if error["type"] == "missing" and isinstance(parts[-1], int):  # the second of three numbers, say
        return f"{'.'.join(map(str, parts[:-1]))}: {_shown(error['input'])} has too few values"
    if error["type"] == "missing":
        return f"{place}: missing"
    expected = "write true or false" if error["type"] == "bool_type" else error["msg"].removeprefix("Input ")
    return f"{place}: {_shown(error['input'])}: {expected}"


def check_keys(values: Mapping[str, Any], valid: Mapping[str, Any], prefix: str) -> None:
    """Raises ConfigError for a key that is not valid, with the nearest that is. prefix: such as `run.`."""
    for key in values:
        if key not in valid:
            raise ConfigError(f"{prefix}{key}: unknown key{_nearest(str(key), valid)}")


def _nearest(name: str, valid: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, valid, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(sorted(valid))}"


class _Loader(yaml.SafeLoader):
    """Values as YAML 1.2 reads them: `1e-3` is a number, `1:30` is not 90, nor `010` 8, nor `no` false."""


# Dates stay strings: no field is one, and a string gets the field's own message.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("timestamp", "int", "float", "bool")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^([-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+|[-+]?(\d[\d_]*\.\d*|\.\d+|\.inf|\.Inf)|\.nan|\.NaN)$"
    ),
    list("-+0123456789."),
)


def _read(source: str, kind: str) -> dict[str, Any]:
    path = Path(source)
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
    elif source in shipped_configs(kind):
        text = (resources.files("nisynth") / "configs" / kind / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(f"config {source!r}: {_not_a_config(source, kind)}")
    try:
        values = yaml.load(text, Loader=_Loader)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config {source}: {_unreadable(error)}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where is not None else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"config {source}:{line} {problem}; expected sections such as `run:`") from None
    if not isinstance(values, dict):
        held = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ConfigError(f"config {source}: {held}; expected sections such as `run:`")
    return values


def _not_a_config(source: str, kind: str) -> str:
    shipped = f"shipped: {', '.join(shipped_configs(kind))}"
    if source not in REGISTRY:
        return f"no such file, and no shipped config of that name; {shipped}"
    section = "student" if kind in ("distill", "scratch") else "teacher"
    return (
        f"the name of an arch, not of a config; write `{section}: {{arch: {source}}}` into a YAML file, or"
        f" take a shipped config with --set {section}.arch={source}; {shipped}"
    )


def _unreadable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested deeper than {MAX_DEPTH} levels"
    return f"a value cannot be read ({one_line(error)[:120]})"


def _shown(value: Any) -> str:
    """Returns a value as an error's line shows it: the beginning of a long one."""
    shown = repr(value)
    return shown if len(shown) <= 120 else f"{shown[:100]}... ({len(shown):,} characters)"


def _check_size(values: Any, field: str = "") -> None:
    """Raises ConfigError for what JSON cannot hold, and for what a few aliases unfold into.

    field: the dotted name of the values, which the message begins with.
    """
    open_, num_values = [iter([(field, values)])], 0
    while open_:
        name, value = next(open_[-1], (None, None))
        if name is None:
            open_.pop()
            continue
        num_values += 1
        if num_values > MAX_VALUES or len(open_) > MAX_DEPTH:
            most = f"more than {MAX_VALUES:,} values, or deeper than {MAX_DEPTH} levels"
            raise ConfigError(f"{field or 'config'}: holds {most}, its aliases (*name) written out")
        if isinstance(value, Mapping):
            prefix = f"{name}." if name else ""
            open_.append(iter([(f"{prefix}{_key(key)}", inner) for key, inner in value.items()]))
        elif isinstance(value, list | tuple):
            open_.append(iter([(name, inner) for inner in value]))
        elif isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise ConfigError(f"{name}: a number of {value.bit_length()} bits is too large for any field")
        elif value is not None and not isinstance(value, str | int | float | bool):
            raise ConfigError(
                f"{name}: {type(value).__name__} cannot stand in a config; write text or a number"
            )


def _key(key: Any) -> str:
    if not isinstance(key, str | int | float | bool | None):
        raise ConfigError(f"config: the key {_shown(key)} is not a name")
    return str(key)


def _override(values: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override!r}: write section.key=value, as in run.num_images=1024")
    try:
        value = yaml.load(text, Loader=_Loader)
        _check_size(value, dotted.strip())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--set {_shown(override)}: {_unreadable(error)}") from None
    except yaml.YAMLError:
        raise ConfigError(f"--set {_shown(override)}: the value is not YAML; quote it") from None
    section = values
    for key in keys[:-1]:
        inner = section.setdefault(key, {})
        if inner is None:
            inner = section[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {key} is a value, not a section")
        section = inner
    section[keys[-1]] = value
