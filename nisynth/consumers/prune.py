"""Pruning without real data (Figure 6): filters out, then fine-tuning on the synthetic images.

In every layer that can lose filters (`filters.py` says which) the share `ratio` of smallest L1 norm goes;
what is left is fine-tuned with the paper's 20 epochs of SGD at 0.001 (momentum, weight decay, batch and
augmentation are ours), by the labels or, as the variant, by the unpruned teacher's answers. Every ratio
starts from the unpruned teacher.

What is left at the output URL: `pruned-<percent>.safetensors`, which `nisynth.load_teacher` opens with the
teacher's arch and plain torch; `result.json`, which grows by a point a ratio; `figure6.png`. Run again, a
sweep makes what is missing, and goes on with an interrupted fine-tuning from its last checkpoint.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from nisynth.consumers.config import ConsumerConfig
from nisynth.consumers.distill import LossConfig, check_teacher, distillation_loss
from nisynth.consumers.filters import Cost, cost, prunable_layers, remove_filters, widths
from nisynth.consumers.job import Source, config_of
from nisynth.consumers.prune_report import (
    PrunePoint,
    PruneReport,
    draw_figure,
    point_name,
    store_report,
    stored_points,
)
from nisynth.consumers.streamed import source_of
from nisynth.consumers.training_log import Say, TrainingLog, silent
from nisynth.device import default_device, device_name
from nisynth.errors import ConfigError, counted
from nisynth.identity import counted_fields, versions
from nisynth.images import LabelledImages
from nisynth.images.real import load_real_set
from nisynth.reader import SyntheticDataset, open_dataset
from nisynth.storage import Store, open_store
from nisynth.teachers import Teacher, TeacherConfig, load_teacher
from nisynth.teachers.narrow import PRUNED
from nisynth.teachers.predict import accuracy
from nisynth.teachers.save import network_bytes
from nisynth.training import Loss, TrainConfig, hard_label_loss, train
from nisynth.training.checkpoints import Checkpoints

FIGURE_KEY = "figure6.png"


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(TrainConfig):
    """TrainConfig with the defaults of this recipe."""

    epochs: int = 20
    lr: float = 0.001
    schedule: Literal["steps", "cosine", "constant"] = "constant"


@dataclass(frozen=True, kw_only=True)
class PruneConfig(ConsumerConfig):
    """A sweep over pruning ratios.

    teacher: the network to prune. test_set: real images to measure on; nothing is ever selected by them.
    ratios: shares of filters to remove. layers: shell patterns such as `layer*.conv1` for the layers to
    prune; none: all that can be. loss: fine-tune by the `labels`, or by the unpruned `teacher`'s answers.
    temperature: of those answers. train: how each pruned network is fine-tuned.
    """

    teacher: TeacherConfig
    test_set: str = ""
    ratios: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    layers: tuple[str, ...] = ()
    loss: Literal["labels", "teacher"] = "labels"
    temperature: float = 20.0
    train: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.test_set:
            raise ConfigError("test_set: missing; give real images, in the config or with --test-set")
        if not self.ratios or not all(0.0 < ratio < 1.0 for ratio in self.ratios):
            raise ConfigError(f"ratios: {list(self.ratios)} are not shares of filters such as [0.5, 0.9]")
        if len({point_name(ratio) for ratio in self.ratios}) < len(self.ratios):
            raise ConfigError(f"ratios: {list(self.ratios)} contain one twice")
        if not self.temperature > 0:
            raise ConfigError(f"temperature: {self.temperature} is not above 0")
        if self.loss == "labels" and self.train.mixes:
            raise ConfigError(
                "train.mixup, train.cutmix: a mixture has no label; use them with loss: teacher"
            )


def prune(config: PruneConfig | Source, *, say: Say = silent) -> PruneReport:
    """Returns the report of a sweep, whose networks lie at the output URL; resumes what was begun there.

    config: a PruneConfig, a file, a shipped config's name, or a mapping.
    Raises ConfigError, TeacherError, IncompleteRun, PlanMismatch (another config's result or checkpoint
    lies there), DataError (a damaged shard, test set, result or checkpoint), StorageError.
    """
    return _Sweep(config_of(PruneConfig, config, "prune"), say).run()


class _Sweep:
    """A validated sweep, ready to run; holds what every ratio needs."""

    def __init__(self, config: PruneConfig, say: Say) -> None:
        self.say = say
        self.store: Store = open_store(config.output)
        self.dataset: SyntheticDataset = open_dataset(config.data, allow_partial=config.allow_partial)
        self.teacher: Teacher = load_teacher(config.teacher, default_device())
        check_teacher(self.teacher, self.dataset)
        self.config = replace(config, train=config.train.padded_as(self.teacher.padding))
        self.test: LabelledImages = load_real_set(config.test_set)
        self.test.check_fits(self.teacher)
        self.network = self.teacher.network
        self.layers = prunable_layers(self.network, self.teacher.input_px, config.layers)
        self.identity: dict[str, Any] = json.loads(json.dumps(self._identity()))
        self.points = stored_points(self.store, self.identity)

    def run(self) -> PruneReport:
        """Makes what is missing, ratio by ratio, and stores the result after each."""
        before = self._accuracy(self.network)
        self.say(f"not pruned: accuracy {before:.2%} on {self.test.split}, N={len(self.test):,}")
        report = self._report(before)
        for ratio in sorted(self.config.ratios):
            if ratio in self.points:
                self.say(f"{point_name(ratio)}: done already")
                continue
            self.points[ratio] = self._point(ratio)
            report = self._report(before)
            store_report(self.store, report)
        self.store.put(FIGURE_KEY, draw_figure(report))
        return report

    def _point(self, ratio: float) -> PrunePoint:
        name, config = point_name(ratio), self.config
        pruned = remove_filters(self.network, ratio, self.layers, self.teacher.input_px)
        left, narrowed = cost(pruned, self.teacher.input_px), widths(pruned, self.layers)
        accuracy_pruned = self._accuracy(pruned)
        self.say(
            f"{name}: {left.parameters:,} parameters, {left.macs:,} MACs, accuracy {accuracy_pruned:.2%};"
            f" fine-tuning on {counted(len(self.dataset), 'image')}"
        )
        history = self._fine_tune(pruned, ratio)
        data = network_bytes(
            pruned,
            arch=config.teacher.arch,
            normalization=self.teacher.normalization,
            classes=self.teacher.classes,
            input_px=self.teacher.input_px,
            more={
                PRUNED: json.dumps({"ratio": ratio, "widths": narrowed}),
                "trained_on": self.dataset.fingerprint,
            },
        )
        weights = f"{name}.safetensors"
        self.store.put(weights, data)
        # Taps stay out: the user may have named some, and nothing here reads features.
        stored = replace(config.teacher, weights=f"{self.store.url}/{weights}", taps=None)
        accuracy_fine_tuned = self._accuracy(load_teacher(stored, self.teacher.device).network)
        self.say(f"{name}: accuracy {accuracy_fine_tuned:.2%} fine-tuned")
        self._checkpoints(ratio).clear()
        return PrunePoint(
            ratio=ratio,
            widths=narrowed,
            parameters=left.parameters,
            macs=left.macs,
            accuracy_pruned=accuracy_pruned,
            accuracy_fine_tuned=accuracy_fine_tuned,
            weights=weights,
            history=history,
        )

    def _fine_tune(self, pruned: nn.Module, ratio: float) -> list[dict[str, float]]:
        config = self.config.train
        source = source_of(self.dataset, config, self.teacher.device, self.say)
        log = TrainingLog(self.say, config.epochs, min(config.batch_size, len(self.dataset)))

        def on_epoch(record: Mapping[str, float], network: nn.Module) -> dict[str, float]:
            log.on_epoch(record)
            return {}

        if config.compile or self.teacher.device.type == "cuda":
            # Every ratio is another network of one class, and torch.compile keeps only a few of those.
            torch.compiler.reset()
        trained = train(
            pruned.requires_grad_(True),
            source,
            self._loss(),
            config,
            num_classes=self.teacher.num_classes,
            device=self.teacher.device,
            on_epoch=on_epoch,
            on_step=log.on_step,
            checkpoints=self._checkpoints(ratio),
        )
        return list(trained.history)

    def _loss(self) -> Loss:
        if self.config.loss == "labels":
            return hard_label_loss
        return distillation_loss(self.teacher, LossConfig(temperature=self.config.temperature))

    def _checkpoints(self, ratio: float) -> Checkpoints:
        key = f"{point_name(ratio)}.checkpoint.safetensors"
        identity = {**self.identity, "ratio": ratio}
        return Checkpoints(self.store, identity, every_s=60.0 * self.config.checkpoint_minutes, key=key)

    def _accuracy(self, network: nn.Module) -> float:
        teacher = self.teacher
        return accuracy(
            network, self.test.pixels, self.test.labels, teacher.normalization, teacher.num_classes
        )

    def _identity(self) -> dict[str, Any]:
        by_teacher = self.config.loss == "teacher"
        tested = hashlib.sha256(self.test.pixels.numpy().tobytes() + self.test.labels.numpy().tobytes())
        return {
            "kind": "prune",
            "data": {
                "fingerprint": self.dataset.fingerprint,
                "content_sha256": self.dataset.content_sha256,
            },
            "teacher": {**self.teacher.identity, "taps": []},
            "layers": list(self.layers),
            "loss": {
                "of": self.config.loss,
                **({"temperature": self.config.temperature} if by_teacher else {}),
            },
            "train": counted_fields(self.config.train),
            "test_set": {"sha256": tested.hexdigest(), "num_images": len(self.test)},
        }

    def _report(self, before: float) -> PruneReport:
        whole: Cost = cost(self.network, self.teacher.input_px)
        return PruneReport(
            output=self.config.output,
            fingerprint=self.dataset.fingerprint,
            num_images=len(self.dataset),
            complete=self.dataset.complete,
            teacher=self.config.teacher.arch,
            parameters=whole.parameters,
            macs=whole.macs,
            accuracy=before,
            test_set=self.test.source,
            test_split=self.test.split,
            num_test_images=len(self.test),
            points=[self.points[ratio] for ratio in sorted(self.points)],
            device=device_name(),
            versions=versions(),
            identity=self.identity,
            config=asdict(self.config),
        )
