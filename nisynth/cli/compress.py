"""The verbs that measure and shrink a network: evaluate and prune."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nisynth.cli.options import JsonOption, PartialOption, QuietOption, SetOption
from nisynth.cli.output import narrator, out
from nisynth.errors import ConfigError, counted

if TYPE_CHECKING:
    from nisynth.consumers.evaluate import Evaluation
    from nisynth.consumers.prune_report import PruneReport
    from nisynth.teachers import Teacher

MOST_CLASSES = 20

TeacherArgument = Annotated[
    str | None, typer.Argument(metavar="[CONFIG]", help="A YAML file or a shipped config, for its teacher.")
]
ArchOption = Annotated[
    str | None,
    typer.Option(help="The network: a name that `nisynth teachers` prints, or package.module:factory."),
]
WeightsOption = Annotated[str | None, typer.Option(metavar="PATH|URL", help="Its weights.")]


def evaluate_network(
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH|URL",
            help="Real images (a Parquet file, a folder with one folder per class, hf:NAME), or a run's URL.",
        ),
    ],
    config: TeacherArgument = None,
    arch: ArchOption = None,
    weights: WeightsOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ARCH@WEIGHTS", help="A second network (or a config): its accuracy, how often both agree."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Which split of a test set that has several, such as a Hugging Face data set.")
    ] = "test",
    confusion: Annotated[
        str | None, typer.Option(metavar="PNG", help="Draw the confusion matrix into this file.")
    ] = None,
    allow_partial: Annotated[bool, typer.Option(help="Take a run that is not complete yet.")] = False,
    set_: SetOption = [],  # noqa: B006  typer copies it
    as_json: JsonOption = False,
) -> None:
    """Measure a network: accuracy, by class, what it confuses, where it agrees with another one."""
    from nisynth.consumers.evaluate import evaluate, read_images

    judged = _load(_source(config, arch, weights), set_)
    other = None if against is None else _load(_named(against), [])
    images = read_images(data, judged, split=split, allow_partial=allow_partial)
    found = evaluate(judged, images, against=other)
    if confusion is not None:
        from nisynth.report.confusion import draw_confusion
        from nisynth.report.pictures import write_file

        title = f"{found.network}: accuracy {found.accuracy:.2%} on {found.measured_on}"
        write_file(confusion, draw_confusion(found.confusion, judged.classes, title))
    if as_json:
        out.print_json(json.dumps(found.to_dict()))
    else:
        _show_evaluation(found, against)


def prune_network(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]", help="A YAML file or a shipped config; without one, the paper's protocol."
        ),
    ] = None,
    arch: ArchOption = None,
    weights: WeightsOption = None,
    data: Annotated[str | None, typer.Option(metavar="URL", help="The run to fine-tune on (data).")] = None,
    output: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the networks go: a folder or s3:// (output).")
    ] = None,
    test_set: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Real images to measure on, as for evaluate (test_set)."),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(metavar="R,R,...", help="Shares of filters to remove, e.g. 0.5,0.9 (ratios)."),
    ] = None,
    allow_partial: PartialOption = None,
    set_: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prune a network by L1 norm and fine-tune it on a run's images, ratio by ratio. Run again to resume."""
    from nisynth.config_loader import load_as
    from nisynth.consumers.prune import PruneConfig, prune

    given = {
        "data": data,
        "output": output,
        "test_set": test_set,
        "allow_partial": allow_partial,
        "ratios": None if ratios is None else _numbers("--ratios", ratios),
    }
    resolved = load_as(PruneConfig, _source(config, arch, weights), set_, kind="prune", given=given)
    report = prune(resolved, say=narrator(quiet))
    if as_json:
        out.print_json(json.dumps(asdict(report)))
    else:
        _show_pruning(report)


def _source(config: str | None, arch: str | None, weights: str | None) -> str | dict[str, Any]:
    """Returns the config's name, or a config that holds nothing but the network that the options name."""
    if (config is None) == (arch is None):
        raise ConfigError("name the network once: by a config, or by --arch and --weights")
    if config is not None and weights is not None:
        raise ConfigError("--weights goes with --arch; over a config, use --set teacher.weights=...")
    return config if config is not None else {"teacher": {"arch": arch, "weights": weights}}


def _named(network: str) -> str | dict[str, Any]:
    """Returns ARCH@WEIGHTS as `_source` does; neither ":" nor "/" could part them, both stand in names."""
    if Path(network).suffix in (".yaml", ".yml") and "@" not in network:
        return network
    arch, _, weights = network.partition("@")
    return _source(None, arch, weights or None)


def _load(source: str | dict[str, Any], overrides: list[str]) -> "Teacher":
    """Returns the teacher that a config of a run, a sweep, a fit or a series names."""
    from nisynth.config import RunConfig, load_config
    from nisynth.config_loader import check_keys, read_values
    from nisynth.consumers.prune import PruneConfig
    from nisynth.device import default_device
    from nisynth.fitting import FitConfig
    from nisynth.teachers import load_teacher

    values = read_values(source, overrides, "")
    if "student" in values:
        raise ConfigError(f"config {source}: {_of_its_student(values['student'])}")
    owners = (RunConfig, PruneConfig, FitConfig)
    check_keys(values, {field.name: ... for owner in owners for field in fields(owner)} | {"rounds": ...}, "")
    teacher = {"teacher": values["teacher"]} if "teacher" in values else {}
    return load_teacher(load_config(teacher).teacher, default_device())


def _of_its_student(student: Any) -> str:
    """Returns what to write in the place of a student's config, which may name a teacher too."""
    student = student if isinstance(student, dict) else {}
    arch, kwargs = student.get("arch", "ARCH"), student.get("kwargs") or {}
    built = "".join(f" --set teacher.kwargs.{name}={value}" for name, value in kwargs.items())
    return (
        f"trains a student; to measure it: `nisynth evaluate --arch {arch}"
        f" --weights OUTPUT/student.safetensors{built} --data SET`, where OUTPUT is the folder that it was"
        " trained into; to measure its teacher, give the run's config"
    )


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: write numbers with commas between, as in 0.5,0.9") from None


def _show_evaluation(found: "Evaluation", against: str | None) -> None:
    _print(f"{found.network}: accuracy {found.accuracy:.2%} on {found.measured_on}")
    rates = [(name, rate) for name, rate in found.class_accuracy.items() if rate is not None]
    if len(rates) > MOST_CLASSES:
        rates = sorted(rates, key=lambda pair: pair[1])[: MOST_CLASSES // 2]
        _print(f"the {counted(len(rates), 'class')} with the lowest accuracy:")
    for name, rate in rates:
        _print(f"  {name:16} {rate:.1%}")
    confused = "; ".join(f"{label} as {chosen} {count:,}" for label, chosen, count in found.confused())
    if confused:
        _print(f"most confused: {confused}")
    if found.against is not None:
        other = found.against
        _print(
            f"against {against}: accuracy {other.accuracy:.2%}; both choose the same class for"
            f" {other.agreement:.2%} of the {counted(found.num_images, 'image')}"
        )


def _show_pruning(report: "PruneReport") -> None:
    partial = "" if report.complete else " (incomplete)"
    _print(
        f"{report.teacher} fine-tuned on {counted(report.num_images, 'image')} of run"
        f" {report.fingerprint[:12]}{partial}; accuracy on {report.test_split},"
        f" N={report.num_test_images:,} ({report.test_set})"
    )
    _print("  ratio    parameters             MACs    pruned    fine-tuned")
    _print(f"      0  {report.parameters:>12,}  {report.macs:>15,}  {report.accuracy:>8.2%}")
    for point in report.points:
        _print(
            f"  {point.ratio:>5g}  {point.parameters:>12,}  {point.macs:>15,}  {point.accuracy_pruned:>8.2%}"
            f"  {point.accuracy_fine_tuned:>12.2%}"
        )
    _print(f"{report.output}: pruned-*.safetensors, result.json, figure6.png")


def _print(line: str) -> None:
    out.print(line, markup=False)
