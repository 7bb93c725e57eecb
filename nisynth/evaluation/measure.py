"""From a run's URL to its quality: sets and networks are opened and compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nisynth.device import default_device
from nisynth.errors import ConfigError
from nisynth.evaluation.embedding import ImageSet
from nisynth.evaluation.networks import EmbeddingNetwork, read_layers
from nisynth.evaluation.published import SHIPPED, load_embedding
from nisynth.evaluation.quality import Quality, measure_quality
from nisynth.images.real import load_real_set
from nisynth.reader import open_dataset
from nisynth.series.run import open_run
from nisynth.teachers import load_teacher

Say = Callable[[str], None]
OnImages = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What a set is measured by.

    real: a real set, as `load_real_set` reads it; split: of it. embedding, embedding_weights: the network
    whose features count, as `load_embedding` takes them. teacher_weights: the teacher's file, for its
    accuracy by class. allow_partial: take a run that is not complete.
    """

    real: str | None = None
    split: str = "test"
    embedding: str = SHIPPED
    embedding_weights: str | None = None
    teacher_weights: str | None = None
    allow_partial: bool = False


@dataclass(frozen=True, eq=False)
class Opened:
    """A run's images, the real ones, and the networks that look at both."""

    synthetic: ImageSet
    real: ImageSet | None
    network: EmbeddingNetwork
    teacher: EmbeddingNetwork | None
    teacher_sha256: str

    def measure(self, on_images: OnImages | None = None) -> Quality:
        """Returns the quality of the run's images. Raises DataError, StorageError."""
        return measure_quality(
            self.synthetic,
            self.network,
            real=self.real,
            teacher=self.teacher,
            teacher_sha256=self.teacher_sha256,
            on_images=on_images,
        )


def open_for_measuring(url: str, by: Yardstick) -> Opened:
    """Returns everything that the measuring of a run needs.

    Raises ConfigError for what cannot be used, IncompleteRun, DataError, StorageError, TeacherError.
    """
    plan = open_run(url).plan
    dataset = open_dataset(url, allow_partial=by.allow_partial)
    real = None
    if by.real is not None:
        found = load_real_set(by.real, by.split)
        found.check_fits(dataset, "run")
        real = ImageSet.of_real(found)
    network = load_embedding(by.embedding, by.embedding_weights, default_device(), plan.input_px)
    identity = plan.identity["teacher"]
    return Opened(
        ImageSet.of_run(dataset),
        real,
        network,
        _teacher(by.teacher_weights, identity),
        str(identity["weights_sha256"]),
    )


def _teacher(weights: str | None, identity: dict[str, Any]) -> EmbeddingNetwork | None:
    """Returns the run's teacher, None where its weights are not at hand: given, or those that ship.

    Raises ConfigError when the file holds other weights.
    """
    if weights is None and identity["arch"] != SHIPPED:
        return None
    names = ("arch", "kwargs", "num_classes", "input_px", "mean", "std", "classes")
    teacher = load_teacher(weights=weights, **{name: identity[name] for name in names})
    given, wanted = (str(facts["weights_sha256"])[:12] for facts in (teacher.identity, identity))
    if given != wanted and weights is None:
        return None
    if given != wanted:
        raise ConfigError(
            f"--teacher-weights {weights}: its weights' sha256 begins with {given}, that of the run's teacher"
            f" with {wanted}; name the file that the run was made with"
        )
    network = teacher.network.to(default_device())
    px = teacher.input_px
    return read_layers(str(identity["arch"]), network, teacher.normalization, px, px, teacher.classes)
