"""A run's card with what was measured, and its contact sheet: what a hub shows of the set."""

from nisynth.batch import REAL_R_BN_IN_Y
from nisynth.commits import Run
from nisynth.commits.card import Extras, write_card
from nisynth.commits.seal import read_manifest
from nisynth.commits.status import status
from nisynth.errors import counted
from nisynth.evaluation.quality import Quality
from nisynth.report.facts import public_name

FIGURES = (
    ("fd", None, "FD"),
    ("precision", 3, "precision, k = 3"),
    ("recall", 3, "recall, k = 3"),
    ("density", 3, "density, k = 3"),
    ("coverage", 3, "coverage, k = 3"),
    ("kid_x1000", None, "KID x 1000"),
)


def measured_card(run: Run, quality: Quality) -> str:
    """Returns the card of a complete run with its quality table, for a folder that has the contact sheet.

    Raises IncompleteRun, DataError, StorageError.
    """
    rows = read_manifest(run)
    extras = Extras([*_r_bn(run), *_rows(quality)], sheet=True, real_images=_real_images(quality))
    return write_card(run.plan, [row.bytes for row in rows], [row.teacher_accuracy for row in rows], extras)


def _r_bn(run: Run) -> list[tuple[str, str, str]]:
    median = status(run).r_bn_in_y
    if median is None:
        return []
    value = f"{median:.2f} Y (real images {REAL_R_BN_IN_Y})"
    return [("R_BN, median over shards", value, "decoded images; Y is what sampling noise gives")]


def _rows(quality: Quality) -> list[tuple[str, str, str]]:
    rows = []
    for role, judge in quality.recognition.items():
        text = f"{judge.synthetic.accuracy:.1%}"
        if judge.real is not None:
            text += f" (real images {judge.real.accuracy:.1%})"
        rows.append((f"accuracy of {judge.network}, {role}", text, counted(quality.num_images, "image")))
    for name, k, label in FIGURES:
        figure = quality.figure(name, k=k)
        if figure is not None:
            floor = "" if figure.floor is None else f" (floor {figure.floor:.3g})"
            counts = f"{counted(figure.n_generated, 'image')} against {figure.n_real:,} real"
            on = f"{counts}, {quality.embedding}, {figure.layer}"
            rows.append((label, f"{figure.value:.4g}{floor}", on))
    copies = quality.copies
    rows.append(
        ("near duplicates, cosine above 0.99", f"{copies.near_share:.1%}", counted(copies.n, "image"))
    )
    return rows


def _real_images(quality: Quality) -> str:
    if quality.real is None:
        return ""
    return (
        f"The figures above compare the set with {counted(quality.num_real, 'real image')}"
        f" ({public_name(quality.real)}, split {quality.real_split}); a floor is the same figure with as many"
        " other real images in the place of the synthetic ones."
    )
