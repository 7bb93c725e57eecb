"""YAML plus `--set` overrides become one frozen, validated `RunConfig`.

Each part keeps its own Config, a frozen standard-library dataclass, beside its owner; this file alone
composes them and lets pydantic check the types. Precedence: defaults < preset < file < overrides.
Unknown keys are errors with the nearest valid name. Secrets have no place here: stores take theirs
from the standard credential chain.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, get_args

import pydantic
import yaml

from nisynth.errors import ConfigError, one_line
from nisynth.execution import ExecutionConfig
from nisynth.plan import MAX_BATCH, MAX_TASKS
from nisynth.shards import OutputConfig
from nisynth.synthesis import METHODS, EngineConfig, Method
from nisynth.synthesis.naturalinversion.exchange import check_exchange
from nisynth.teachers import TeacherConfig
from nisynth.teachers.registry import REGISTRY

Owner = TypeVar("Owner")
MAX_DEPTH, MAX_VALUES, MAX_INT_BITS = 50, 100_000, 128
"""What a config may hold, aliases written out: far more than any needs, far less than a machine's memory."""


class MethodChoice(Protocol):
    """What a table of methods says of one: its config, and fields of it by preset."""

    @property
    def config(self) -> type[Any]: ...
    @property
    def presets(self) -> Mapping[str, Mapping[str, Any]]: ...


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """The target set: so many images, in batches, from one seed.

    num_images: images of the whole set; 256,000 are the paper's 256k. batch_size: images of one task,
    which are synthesized together and become one shard. seed: of all randomness, 0..2^63-1; another seed
    gives another set.
    """

    num_images: int = 256_000
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ConfigError(f"run.num_images: {self.num_images} is not at least 1")
        if self.batch_size < 2:
            raise ConfigError(
                f"run.batch_size: {self.batch_size} is not at least 2 (BatchNorm needs a batch);"
                " the paper's is 256"
            )
        if self.batch_size > MAX_BATCH:
            raise ConfigError(f"run.batch_size: {self.batch_size} is above {MAX_BATCH}")
        if self.num_images > MAX_TASKS * self.batch_size:
            raise ConfigError(
                f"run.num_images: {self.num_images} in batches of {self.batch_size} are more than"
                f" {MAX_TASKS} tasks; raise run.batch_size, or make several runs"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"run.seed: {self.seed} is not within 0..2^63-1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a run, and how it is executed."""

    run: TargetConfig = field(default_factory=TargetConfig)
    teacher: TeacherConfig
    method: Method
    output: OutputConfig = field(default_factory=OutputConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        check_exchange(self.run.batch_size, getattr(self.method, "exchange", 0))

    def to_dict(self) -> dict[str, Any]:
        """Returns the resolved config as plain JSON types; `load_config` takes it back."""
        resolved: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return resolved


def shipped_configs(kind: str = "") -> tuple[str, ...]:
    """Returns the names of the configs that come with the package; kind: a consumer's, such as `distill`."""
    folder = resources.files("nisynth") / "configs" / kind
    if not folder.is_dir():
        return ()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the RunConfig of a file, a shipped config's name, or a mapping, with `a.b=c` overrides.

    Raises ConfigError: one line that names the field, the value and what would be right.
    """
    return _validated(_with_preset(read_values(source, overrides, ""), METHODS, _default_preset))


def load_consumer_config(
    owner: type[Owner],
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    kind: str,
    given: Mapping[str, Any] | None = None,
    methods: "Mapping[str, MethodChoice] | None" = None,
) -> Owner:
    """Returns a consumer's config, the frozen dataclass `owner`, as `load_config` does a run's.

    kind: the folder of configs/ with those that ship. given: top-level values that beat the file's where
    they are not None, from options of the command line. methods: what `method.name` chooses from, for an
    owner whose `method` is a section of its own kind. Raises ConfigError.
    """
    values = read_values(source, overrides, kind)
    values.update({key: value for key, value in (given or {}).items() if value is not None})
    stated = {key: value for key, value in values.items() if value is not None}
    if methods is None:
        return cast(Owner, _section("", stated, owner))
    chosen = _with_preset(stated, methods)
    method = _section("method", chosen["method"], _method_of(chosen, methods).config)
    resolved: Any = _section("", chosen, owner)
    return cast(Owner, dataclasses.replace(resolved, method=method))


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
                f"{name}: {type(value).__name__} is no type of a config; write text or a number"
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


def _default_preset(method: Mapping[str, Any]) -> str | None:
    """Returns the preset of a run's `method` section that names none."""
    return METHODS[method["name"]].default_preset(method) if method["name"] in METHODS else None


def _with_preset(
    values: dict[str, Any],
    methods: Mapping[str, MethodChoice],
    default: Callable[[Mapping[str, Any]], str | None] = lambda method: None,
) -> dict[str, Any]:
    """Returns values whose method has the fields of its preset below its own; `default` names one for it."""
    stated = values.get("method") or {}
    if not isinstance(stated, dict):
        raise ConfigError(f"method: {stated!r} is not a section; write `method: {{name: {stated}}}`")
    method = {"name": next(iter(methods)), **stated}
    for key in ("name", "preset"):
        if not isinstance(method.get(key, ""), str):
            raise ConfigError(f"method.{key}: {method[key]!r} should be a name")
    preset = method.pop("preset", None)
    if preset is None:
        preset = default(method)
    if preset is not None:
        name = method["name"]
        presets = methods[name].presets if name in methods else {}
        if preset not in presets:
            raise ConfigError(
                f"method.preset: unknown preset {preset!r} of {name}{_nearest(str(preset), presets)}"
            )
        method = {**presets[preset], **method}
    return {**values, "method": method}


def _method_of(values: Mapping[str, Any], methods: Mapping[str, MethodChoice]) -> MethodChoice:
    name = values["method"]["name"]
    if name not in methods:
        raise ConfigError(f"method.name: unknown method {name!r}{_nearest(str(name), methods)}")
    return methods[name]


def _validated(values: dict[str, Any]) -> RunConfig:
    sections = {f.name: f.type for f in dataclasses.fields(RunConfig)}
    sections |= {"method": _method_of(values, METHODS).config}
    check_keys(values, sections, "")
    if "teacher" not in values:
        raise ConfigError(
            "teacher: missing; name the network, as in `teacher: {arch: resnet34, weights: path}`"
        )
    parts = {
        key: _section(key, values.get(key) or {}, owner)
        for key, owner in sections.items()
        if isinstance(owner, type)
    }
    return RunConfig(**parts)


def _section(name: str, values: Any, owner: type) -> Any:
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
    check_keys(values, inner | ({"preset": str} if prefix == "method." else {}), prefix)
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
