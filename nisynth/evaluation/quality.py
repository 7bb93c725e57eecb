"""How good a set is, in one frozen result: figures against real images, labels, classes, copies, pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from nisynth.errors import counted
from nisynth.evaluation import frechet, manifold, scores
from nisynth.evaluation.embedding import Features, ImageSet, Labels, OnImages, embed, pick
from nisynth.evaluation.figures import METRICS, MOST_POINTS, Figure, Metric, Samples, measure_figures
from nisynth.evaluation.networks import LOGITS, POOL, EmbeddingNetwork
from nisynth.evaluation.pixels import PixelStatistics, measure_pixels

CLOSEST = 20
FAR_FROM_REAL = 100.0
"""Times its floor from which on a Frechet distance says that the images are of another kind."""
LEAST_COVERAGE = 0.05
COPIES_BELOW = -3.0
"""C_T from which on, downwards, images are too close to the real ones."""
CLASS_K = 3
PRECISION_MISLEADS = (
    "precision alone misleads: noise that a classifier maps into one small spot among real images scores"
    " above 0.9; read it with coverage and FD"
)


@dataclass(frozen=True)
class Recognition:
    """How a network agrees with the images' labels, 0..1. real: the same on the real set, if any."""

    network: str
    synthetic: scores.Calibration
    real: scores.Calibration | None


@dataclass(frozen=True)
class ClassQuality:
    """One class. n: synthetic images. Accuracies 0..1, None without that network.

    n_compared: images of each side of the figures against real ones, which lie in the pool: the diagonal
    Frechet distance, density and coverage (k = 3), each with its floor, and precision and recall; None
    where there are too few.
    """

    name: str
    n: int
    teacher_accuracy: float | None
    independent_accuracy: float | None
    n_compared: int = 0
    fd_diagonal: float | None = None
    fd_diagonal_floor: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    density_floor: float | None = None
    coverage: float | None = None
    coverage_floor: float | None = None


@dataclass(frozen=True)
class Copies:
    """Near duplicates in the pool, among n images: share that has one, and clusters left; beside real images.

    exact: images that equal an earlier one, of the whole set.
    """

    exact: int
    n: int
    near_share: float
    clusters: int
    real_near_share: float | None
    real_clusters: int | None


@dataclass(frozen=True)
class Pair:
    """A synthetic image and the real one that is nearest in the pool, by place in their sets.

    ratio: to the distance of the second nearest; small means a copy. pixel_distance: root mean square of
    the values' differences, 0..255.
    """

    synthetic: int
    real: int
    distance: float
    ratio: float
    pixel_distance: float


@dataclass(frozen=True)
class Quality:
    """Everything measured of one set. Figures carry their own numbers of images; `real` is None without one.

    independent: the embedding network is not the teacher. recognition: by role, "teacher" and "independent",
    of the networks with the set's classes. agreement: share of images for which both choose
    one class. notes: what was left out, and how to read what is here.
    """

    synthetic: str
    synthetic_split: str
    num_images: int
    embedding: str
    embedding_sha256: str
    resize: str
    independent: bool
    real: str | None
    real_split: str | None
    num_real: int
    figures: tuple[Figure, ...]
    recognition: dict[str, Recognition]
    agreement: float | None
    classes: tuple[ClassQuality, ...]
    copies: Copies
    closest: tuple[Pair, ...]
    pixels: PixelStatistics
    real_pixels: PixelStatistics | None
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        distance = self.figure("fd")
        away = "" if distance is None else f", FD {distance.value:.4g} from {self.real}"
        return f"Quality({self.synthetic}: {counted(self.num_images, 'image')}{away})"

    def figure(self, name: str, layer: str = POOL, k: int | None = None) -> Figure | None:
        """Returns one figure, None where it was not taken."""
        wanted = (name, layer, k)
        return next((f for f in self.figures if (f.name, f.layer, f.k) == wanted), None)


def measure_quality(
    synthetic: ImageSet,
    network: EmbeddingNetwork,
    *,
    real: ImageSet | None = None,
    teacher: EmbeddingNetwork | None = None,
    teacher_sha256: str = "",
    metrics: Sequence[Metric] = METRICS,
    seed: int = 0,
    folder: Path | None = None,
    on_images: OnImages | None = None,
) -> Quality:
    """Returns the quality of a set in a network's features.

    teacher: what made the set, where its weights are at hand; teacher_sha256: its hash, in any case.
    real: images of the same classes and size. folder: where features are kept. Raises StorageError, and
    what reading the images raises.
    """
    ours = embed(synthetic, network, folder=folder, on_images=on_images)
    theirs = None if real is None else embed(real, network, folder=folder, on_images=on_images)
    independent = network.sha256 != teacher_sha256
    judges: dict[str, _Judge] = {}
    if network.classes == synthetic.classes:
        judges["independent" if independent else "teacher"] = _Judge(network.name, ours, theirs)
    if teacher is not None and independent:
        answers = [
            None if images is None else embed(images, teacher, folder=folder, on_images=on_images)
            for images in (synthetic, real)
        ]
        assert answers[0] is not None
        judges["teacher"] = _Judge(teacher.name, answers[0], answers[1])
    notes: list[str] = []
    taken = [metric for metric in metrics if metric.embedding in (None, network.name)]
    figures = () if theirs is None else tuple(measure_figures(ours, theirs, taken, notes, seed))
    pixels = measure_pixels(synthetic)
    return Quality(
        synthetic=synthetic.source,
        synthetic_split=synthetic.split,
        num_images=len(synthetic),
        embedding=network.name,
        embedding_sha256=network.sha256,
        resize=network.resize,
        independent=independent,
        real=None if real is None else real.source,
        real_split=None if real is None else real.split,
        num_real=0 if real is None else len(real),
        figures=figures,
        recognition={role: judge.recognition for role, judge in judges.items()},
        agreement=float(np.mean(judges["teacher"].chosen == judges["independent"].chosen))
        if len(judges) == 2
        else None,
        classes=tuple(
            _class_quality(label, name, ours, theirs, judges, seed)
            for label, name in enumerate(synthetic.classes)
        ),
        copies=_copies(ours, theirs, pixels.duplicates, seed),
        closest=() if real is None or theirs is None else _closest(synthetic, ours, real, theirs, seed),
        pixels=pixels,
        real_pixels=None if real is None else measure_pixels(real),
        notes=(*notes, *how_to_read(figures)),
    )


@dataclass(frozen=True, eq=False)
class _Judge:
    """A network of the set's classes, and what it makes of both sets."""

    name: str
    synthetic: Features
    real: Features | None

    @cached_property
    def chosen(self) -> Labels:
        return np.asarray(self.synthetic.layers[LOGITS].argmax(axis=1), dtype=np.int64)

    @property
    def recognition(self) -> Recognition:
        real = None if self.real is None else scores.calibrate(self.real.layers[LOGITS], self.real.labels)
        synthetic = scores.calibrate(self.synthetic.layers[LOGITS], self.synthetic.labels)
        return Recognition(self.name, synthetic, real)


def _class_quality(
    label: int, name: str, ours: Features, theirs: Features | None, judges: dict[str, _Judge], seed: int
) -> ClassQuality:
    mine = np.flatnonzero(ours.labels == label)
    accuracies = {
        role: float((judge.chosen[mine] == label).mean()) for role, judge in judges.items() if len(mine)
    }
    quality = ClassQuality(name, len(mine), accuracies.get("teacher"), accuracies.get("independent"))
    if theirs is None:
        return quality
    real = np.flatnonzero(theirs.labels == label)
    samples = Samples.draw(ours.labels[mine], theirs.labels[real], seed, MOST_POINTS)
    if min(len(samples.generated), len(samples.reference)) <= CLASS_K:
        return replace(quality, n_compared=len(samples.generated))
    reference = theirs.layers[POOL][real[samples.reference]]
    generated = ours.layers[POOL][mine[samples.generated]]
    other = theirs.layers[POOL][real[samples.floors[0]]]
    found, floor = (
        manifold.compare_manifolds(part, reference, [CLASS_K])[CLASS_K] for part in (generated, other)
    )
    return replace(
        quality,
        n_compared=len(samples.generated),
        fd_diagonal=frechet.diagonal_frechet_distance(generated, reference),
        fd_diagonal_floor=frechet.diagonal_frechet_distance(other, reference),
        precision=found.precision,
        recall=found.recall,
        density=found.density,
        density_floor=floor.density,
        coverage=found.coverage,
        coverage_floor=floor.coverage,
    )


def _copies(ours: Features, theirs: Features | None, exact: int, seed: int) -> Copies:
    """Returns near duplicates within the set, and within as many real images."""
    rng = np.random.default_rng(seed)
    counts = [len(features.labels) for features in (ours, theirs) if features is not None]
    n = min(*counts, MOST_POINTS) if len(counts) > 1 else min(counts[0], MOST_POINTS)
    found, real = (
        None
        if features is None
        else manifold.near_duplicates(features.layers[POOL][rng.permutation(len(features.labels))[:n]])
        for features in (ours, theirs)
    )
    assert found is not None
    return Copies(
        exact=exact,
        n=n,
        near_share=found.near / n,
        clusters=found.clusters,
        real_near_share=None if real is None else real.near / n,
        real_clusters=None if real is None else real.clusters,
    )


def _closest(
    synthetic: ImageSet, ours: Features, real: ImageSet, theirs: Features, seed: int
) -> tuple[Pair, ...]:
    """Returns the pairs whose ratio to the second neighbour is smallest: where a copy would be."""
    rng = np.random.default_rng(seed)
    own = np.sort(rng.permutation(len(synthetic))[:MOST_POINTS])
    other = np.sort(rng.permutation(len(real))[:MOST_POINTS])
    if len(other) < 2:
        return ()
    distances, positions = manifold.nearest_neighbours(ours.layers[POOL][own], theirs.layers[POOL][other])
    ratios = distances[:, 0] / np.maximum(distances[:, 1], 1e-12)
    places = np.argsort(ratios, kind="stable")[:CLOSEST]
    pairs = [(int(own[place]), int(other[positions[place, 0]])) for place in places]
    mine = pick(synthetic, [pair[0] for pair in pairs])
    reals = pick(real, [pair[1] for pair in pairs])
    return tuple(
        Pair(
            synthetic=pair[0],
            real=pair[1],
            distance=float(distances[place, 0]),
            ratio=float(ratios[place]),
            pixel_distance=float((mine[pair[0]].float() - reals[pair[1]].float()).square().mean().sqrt()),
        )
        for place, pair in zip(places, pairs, strict=True)
    )


def how_to_read(figures: tuple[Figure, ...]) -> list[str]:
    """Returns the notes that a reader of these figures needs."""
    if not figures:
        return []
    notes = [PRECISION_MISLEADS]
    for figure in figures:
        times = figure.value / figure.floor if figure.floor and figure.floor > 0 else 0.0
        if (figure.name, figure.layer) == ("fd", POOL) and times > FAR_FROM_REAL:
            notes.append(f"FD is {times:,.0f} times its floor: these images are far from the real ones")
        if figure.name == "kid_x1000" and figure.floor is not None and figure.floor < -1.0:
            notes.append(
                "KID may be below 0: its estimator assumes images drawn at random, and here every class is"
                " drawn equally often"
            )
        if figure.name == "c_t" and figure.value < COPIES_BELOW:
            notes.append(
                f"C_T is {figure.value:.1f}: these images lie closer to the real ones than other real images"
                " do, as copies would"
            )
        if (figure.name, figure.k) == ("coverage", CLASS_K) and figure.value < LEAST_COVERAGE:
            notes.append(
                f"coverage is {figure.value:.3f}: almost no real image has a synthetic one near it"
                + ("" if figure.floor is None else f" (floor: {figure.floor:.3f})")
            )
    return notes
