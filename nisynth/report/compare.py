"""Several runs beside each other: their losses in one picture (Figure 5), their quality in one table."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nisynth.commits import Run
from nisynth.errors import ConfigError
from nisynth.evaluation.quality import Quality
from nisynth.report.charts import draw_bands
from nisynth.report.curves import DPI, HEIGHT_INCHES, PANEL_WIDTH_INCHES, TERM_NAMES
from nisynth.report.facts import public_name
from nisynth.report.losses import LossCurve, loss_bands

TERMS = ("ce", "r_bn")


def loss_by_run(curves: Mapping[str, Iterable[LossCurve]], terms: Sequence[str] = TERMS) -> bytes:
    """Returns Figure 5 as a PNG: a panel per term, a line per run, the median over its tasks and 10-90 %.

    Raises ConfigError when no run has such a term.
    """
    bands = {name: loss_bands(found) for name, found in curves.items()}
    shown = [term for term in terms if any(term in found for found in bands.values())]
    if not shown:
        raise ConfigError(f"compare: no run logged {' or '.join(terms)}; see execution.log_every")
    figure = Figure(figsize=(PANEL_WIDTH_INCHES * len(shown), HEIGHT_INCHES), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for place, term in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), place)
        draw_bands(axes, {name: found[term] for name, found in bands.items() if term in found})
        axes.set_title(TERM_NAMES.get(term, term), fontsize=11, loc="left")
        axes.set_xlabel("iteration")
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def curves_of(run: Run) -> Iterator[LossCurve]:
    """Yields the loss curve of every committed task that logged one. Raises DataError, StorageError."""
    for task in sorted(run.committed()):
        commit = run.read(task)
        if commit is not None and commit.curve:
            yield commit.curve


def names_of(runs: Sequence[Run]) -> list[str]:
    """Returns what tells the runs apart: method and place, and the fingerprint where these are equal."""
    names = [f"{run.plan.identity['method']['name']}, {public_name(run.store.url)}" for run in runs]
    return [
        f"{name}, {number}: {run.plan.fp12}" if names.count(name) > 1 else name
        for number, (name, run) in enumerate(zip(names, runs, strict=True), 1)
    ]


def quality_rows(found: Mapping[str, Quality]) -> list[tuple[str, list[str]]]:
    """Returns the figures that any of the runs has, a text per run each; a figure's floor in brackets."""
    keys = dict.fromkeys((f.name, f.layer, f.k) for quality in found.values() for f in quality.figures)
    rows = [("images", [f"{quality.num_images:,}" for quality in found.values()])]
    roles = dict.fromkeys(role for quality in found.values() for role in quality.recognition)
    for role in roles:
        judges = [quality.recognition.get(role) for quality in found.values()]
        rows.append(
            (f"{role} accuracy", ["" if j is None else f"{j.synthetic.accuracy:.1%}" for j in judges])
        )
    for name, layer, k in keys:
        label = f"{name}, {layer}" + (f", k={k}" if k else "")
        rows.append((label, [_cell(quality, name, layer, k) for quality in found.values()]))
    shares = [f"{quality.copies.near_share:.1%}" for quality in found.values()]
    return [*rows, ("near duplicates", shares)]


def _cell(quality: Quality, name: str, layer: str, k: int | None) -> str:
    figure = quality.figure(name, layer, k)
    if figure is None:
        return ""
    return f"{figure.value:.4g}" + ("" if figure.floor is None else f" ({figure.floor:.3g})")
