"""Table 3 at the scale of one machine: every method's images, and what a student learns from them.

    python benchmarks/methods.py WORK --test cifar10-test.parquet --real cifar10-train-10k.parquet
    python benchmarks/methods.py WORK --scale night --judge vgg11=cifar10_vgg11.safetensors ...

Every row has equally many images, inverted from the shipped ResNet-20 (or --teacher ARCH=FILE), and one
student per seed, a network of the teacher's architecture distilled in equally many steps. `--image-seeds 3`
makes three sets a row, each with its students. WORK keeps a run (WORK/images/ROW/IMAGE_SEED) and the students
(WORK/students/ROW/IMAGE_SEED/SEED) of each set; the same command again continues where the last one ended,
and writes WORK/methods.md after each student. `--only ROW ...` makes some rows.

`--real` adds the line to beat, as many real images in the place of the synthetic ones, and the row of
WGAN-GP, which is fitted to all of them.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

import nisynth
from nisynth.consumers.distill import LossConfig, distillation_loss
from nisynth.device import default_device, device_name
from nisynth.fitting import FITS, fit, load_fit_config
from nisynth.fitting.fit import GENERATOR_KEY, STUDENT_KEY
from nisynth.images import LabelledImages
from nisynth.images.real import load_real_set
from nisynth.randomness import permutation, torch_seed
from nisynth.storage import open_store
from nisynth.synthesis.methods import METHODS
from nisynth.teachers import Teacher, TeacherConfig, build_network, load_teacher
from nisynth.teachers.predict import accuracy
from nisynth.teachers.save import network_bytes
from nisynth.training import TrainConfig, WholeSet, train
from nisynth.training.checkpoints import Checkpoints


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything. preset: of naturalinversion. steps, student_batch: of a student's training.

    test_images: how many of the test set, from its start; 0 is all of it.
    """

    images: int
    batch_size: int
    iterations: int
    steps: int
    student_batch: int
    test_images: int = 0
    preset: str = "short"


SCALES = {
    "seconds": Scale(images=20, batch_size=10, iterations=2, steps=2, student_batch=10, test_images=100),
    "minutes": Scale(images=64, batch_size=32, iterations=150, steps=120, student_batch=32, test_images=2000),
    "hours": Scale(images=256, batch_size=64, iterations=150, steps=600, student_batch=64),
    "night": Scale(images=512, batch_size=128, iterations=300, steps=1500, student_batch=64),
    "paper": Scale(
        images=50_000,
        batch_size=256,
        iterations=2000,
        steps=78_000,
        student_batch=128,
        preset="cifar10",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    source: where its images come from: a `run` of the method, a run that samples a generator fitted before
    (`fit`, by that method of `nisynth fit`), `rounds` (half of the images of row `of`, then a run against a
    student of that half), row `of` as it is (`same`), or the `real` set. needs_real: whether the method reads
    that set. paper: Table 3's accuracy of a student, in percent. student: fields of its TrainConfig.
    """

    title: str
    source: Literal["run", "fit", "rounds", "same", "real"] = "run"
    of: str = ""
    method: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    student: Mapping[str, Any] = field(default_factory=dict)
    needs_real: bool = False


GENERATOR_ALONE = {"name": "naturalinversion", "pyramid": False, "scaling": False}
ROWS: dict[str, Row] = {
    "real": Row(title="real images: the line to beat", source="real"),
    "noise": Row(title="noise: the floor", method={"name": "noise"}),
    "deepinversion": Row(title="DeepInversion", method={"name": "deepinversion"}, paper="42.22"),
    "one_to_many": Row(
        title="one-to-many: one generator for all images",
        source="fit",
        method={"name": "one_to_many"},
        paper="19.96",
    ),
    "dafl": Row(title="DAFL", source="fit", method={"name": "dafl"}),
    "dfad": Row(title="DFAD", source="fit", method={"name": "dfad"}),
    "wgan_gp": Row(
        title="WGAN-GP (DCGAN, conditional) on all images of `--real`",
        source="fit",
        method={"name": "wgan_gp", "preset": "dcgan", "conditional": True},
        needs_real=True,
    ),
    "o2o": Row(title="one-to-one (O2O)", method=GENERATOR_ALONE, paper="56.69"),
    "o2o_ftp": Row(
        title="O2O + pyramid (FTP)", method={"name": "naturalinversion", "scaling": False}, paper="58.61"
    ),
    "o2o_acs": Row(
        title="O2O + scaling (ACS)", method={"name": "naturalinversion", "pyramid": False}, paper="59.42"
    ),
    "naturalinversion": Row(title="NaturalInversion", method={"name": "naturalinversion"}, paper="60.57"),
    "adi": Row(
        title="DeepInversion, second half against a rival (ADI)",
        source="rounds",
        of="deepinversion",
        method={"name": "deepinversion"},
    ),
    "naturalinversion_adi": Row(
        title="NaturalInversion, second half against a rival",
        source="rounds",
        of="naturalinversion",
        method={"name": "naturalinversion"},
    ),
    "bn_slack": Row(
        title="lever: `method.bn_slack: 0.3`", method={"name": "naturalinversion", "bn_slack": 0.3}
    ),
    "exchange": Row(
        title="lever: `method.exchange: 1`, half as many inverted",
        method={"name": "naturalinversion", "exchange": 1},
    ),
    "zero": Row(
        title="lever undone: `train.padding: zero`",
        source="same",
        of="naturalinversion",
        student={"padding": "zero"},
    ),
    "mixup": Row(
        title="lever: `train.mixup: 1`", source="same", of="naturalinversion", student={"mixup": 1.0}
    ),
    "cutmix": Row(
        title="lever: `train.cutmix: 1`", source="same", of="naturalinversion", student={"cutmix": 1.0}
    ),
}
"""Every row, by its name in WORK. Rows come after those whose images they take."""

SECOND_HALF = 1000
"""Between the seeds of the images of a row and of its second half, made against a rival."""

CLAIMS = (
    ("naturalinversion", "deepinversion"),
    ("o2o", "one_to_many"),
    ("naturalinversion", "dafl"),
    ("naturalinversion", "dfad"),
    ("adi", "deepinversion"),
    ("naturalinversion_adi", "naturalinversion"),
    ("bn_slack", "naturalinversion"),
    ("exchange", "naturalinversion"),
    ("naturalinversion", "zero"),
    ("mixup", "naturalinversion"),
    ("cutmix", "naturalinversion"),
    ("real", "naturalinversion"),
)
"""Pairs of rows of which the paper, or the reason for a lever, expects the first to be the better."""


class Benchmark:
    """The rows of one work folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        numbers: Any = {name: int(value) for name, _, value in (w.partition("=") for w in options.set)}
        self.work, self.seeds = Path(options.work), range(options.seeds)
        self.draws, self.real_path = range(options.image_seeds), options.real
        self.scale = replace(SCALES[options.scale], **numbers)
        arch, _, weights = options.teacher.partition("=")
        self.of_teacher = {"arch": arch, "weights": weights or None}
        self.teacher: Teacher = load_teacher(TeacherConfig(**self.of_teacher), default_device())
        self._known: dict[tuple[str, int], tuple[float | None, ...]] = {}
        self.judge: Teacher | None = None
        if options.judge:
            arch, _, weights = options.judge.partition("=")
            self.judge = load_teacher(arch=arch, weights=weights, device=default_device())
        test = load_real_set(options.test)
        self.test = test[: self.scale.test_images or len(test)]
        self.real = load_real_set(options.real) if options.real else None
        self._keep_apart({"scale": asdict(self.scale), "teacher": self.teacher.identity})

    def make(self, names: Sequence[str]) -> None:
        """Makes what the rows lack: of all rows a set and its first student, then the others."""
        for draw, seed in itertools.product(self.draws, self.seeds):
            for name in names:
                images = self.images(name, draw)
                if images is None:
                    continue
                found = self.student(images, ROWS[name].student, seed, f"students/{name}/{draw}/{seed}")
                print(f"{name}, images {draw}, seed {seed}: {found:.2%}", flush=True)
                (self.work / "methods.md").write_text(self.table())

    def images(self, name: str, draw: int) -> LabelledImages | None:
        """Returns a set of a row, made where it is missing; None where it needs a real set and has none.

        draw: its image seed.
        """
        row, scale = ROWS[name], self.scale
        if row.source == "same":
            return self.images(row.of, draw)
        if self.real is None and (row.source == "real" or row.needs_real):
            return None
        if row.source == "real":
            assert self.real is not None
            return balanced(self.real, scale.images, draw)
        made = self.work / "images" / name / str(draw)
        if row.source == "rounds":
            base = self.images(row.of, draw)
            assert base is not None
            half = base[: scale.images // 2]
            self.student(half, {}, 0, f"rivals/{name}/{draw}")
            rival = {"weights": str(self.work / f"rivals/{name}/{draw}/student.safetensors")}
            method = self._options(row.method) | {"rival": {**rival, "arch": self.of_teacher["arch"]}}
            return joined(half, self._run(made, method, scale.images - len(half), seed=SECOND_HALF + draw))
        if row.source == "fit":
            method = self._fitted(self.work / "fits" / name / str(draw), row, draw)
            return self._run(made, method, scale.images, seed=draw)
        return self._run(made, self._options(row.method), scale.images, seed=draw)

    def student(self, images: LabelledImages, options: Mapping[str, Any], seed: int, place: str) -> float:
        """Returns the accuracy, 0..1, of a student on the test set; trained where it is not there yet."""
        folder, scale = self.work / place, self.scale
        if (folder / "result.json").exists():
            return float(json.loads((folder / "result.json").read_text())["test_accuracy"])
        batch_size = min(scale.student_batch, len(images))
        epochs = max(1, scale.steps // (len(images) // batch_size))
        config = TrainConfig(epochs=epochs, batch_size=batch_size, lr=0.05, seed=seed, **options)
        config = config.padded_as(self.teacher.padding)
        with torch.random.fork_rng([]):
            torch.manual_seed(torch_seed(seed, "init"))
            network = build_network(self.of_teacher["arch"], self.teacher.num_classes)
        pixels = hashlib.sha256(images.pixels.numpy().tobytes()).hexdigest()
        store = open_store(str(folder))
        checkpoints = Checkpoints(store, {"images": pixels, "train": asdict(config)}, every_s=60.0)
        normalization = self.teacher.normalization
        with self._costs(folder):
            loss = distillation_loss(self.teacher, LossConfig())
            train(
                network,
                WholeSet(images, normalization),
                loss,
                config,
                num_classes=self.teacher.num_classes,
                checkpoints=checkpoints,
            )
        found = accuracy(network, self.test.pixels, self.test.labels, normalization, self.teacher.num_classes)
        data = network_bytes(
            network,
            arch=self.of_teacher["arch"],
            normalization=normalization,
            classes=self.teacher.classes,
            input_px=self.teacher.input_px,
        )
        store.put("student.safetensors", data)
        store.put("result.json", json.dumps({"test_accuracy": found, "train": asdict(config)}).encode())
        checkpoints.clear()
        return found

    def table(self) -> str:
        """Returns what is there so far, as Markdown."""
        scale, machine = self.scale, f"{device_name()}, {platform.system()}, torch {torch.__version__}"
        lines = [
            f"{scale.images} images a row in batches of {scale.batch_size}, {scale.iterations} iterations;"
            f" students: {self.of_teacher['arch']}, {scale.steps} steps of {scale.student_batch},"
            f" on {len(self.test):,} real test images. {machine}, {os.cpu_count()} cores,"
            f" {torch.get_num_threads()} thread.",
            "",
            "| row | teacher % | independent % | students % | mean | CPU h, images | CPU h, students"
            " | paper, Table 3 |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        means: dict[str, tuple[float, float]] = {}
        for name in ROWS:
            found = {draw: self._found(name, draw) for draw in self.draws}
            sets = {draw: accuracies for draw, accuracies in found.items() if accuracies}
            if sets:
                means[name] = _mean_and_range(list(itertools.chain.from_iterable(sets.values())))
                lines.append(self._line(name, sets, means[name][0]))
        return "\n".join([*lines, "", *self._own_students(), *_claims(means), ""])

    def _line(self, name: str, sets: Mapping[int, Sequence[float]], mean: float) -> str:
        row = ROWS[name]
        students = "; ".join(" / ".join(f"{100 * one:.1f}" for one in found) for found in sets.values())
        made = sum(
            self._spent(f"{kind}/{name}/{draw}") for kind in ("images", "fits", "rivals") for draw in sets
        )
        if row.source == "rounds":
            made += sum(self._spent(f"images/{row.of}/{draw}") for draw in sets) / 2
        trained = sum(self._spent(f"students/{name}/{draw}/{seed}") for draw in sets for seed in self.seeds)
        costs = "" if row.source in ("same", "real") else f"{made / len(sets) / 3600:.3f}"
        return (
            f"| {row.title} | {' | '.join(self._judged(name, sets))} | {students} | {100 * mean:.1f}"
            f" | {costs} | {trained / len(sets) / 3600:.3f} | {row.paper} |"
        )

    def _own_students(self) -> Iterator[str]:
        """Yields a line for each fit that trained a student of its own: Table 5's, at this scale."""
        for name in ROWS:
            files = [self.work / "fits" / name / str(draw) / STUDENT_KEY for draw in self.draws]
            found = [
                load_teacher(arch=self.of_teacher["arch"], weights=str(path)).accuracy(
                    self.test.pixels, self.test.labels
                )
                for path in files
                if path.exists()
            ]
            if found:
                shown = " / ".join(f"{100 * one:.1f}" for one in found)
                yield f"- the student that {name} trained with its generator: {shown} %"

    def _options(self, method: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the section of a run's config, at this scale."""
        presets = METHODS[method["name"]].presets
        preset = self.scale.preset if self.scale.preset in presets else next(iter(presets), None)
        if preset is None:
            return dict(method)
        return {"iterations": self.scale.iterations, "preset": preset, **method}

    def _run(self, folder: Path, method: Mapping[str, Any], num_images: int, *, seed: int) -> LabelledImages:
        config = {
            "run": {"num_images": num_images, "batch_size": self.scale.batch_size, "seed": seed},
            "teacher": self.of_teacher,
            "method": dict(method),
            "engine": {"name": "fast"},
            "execution": {"quality_gate": 0.0, "cpu_threads": torch.get_num_threads()},
        }
        with self._costs(folder):
            nisynth.run(config, str(folder))
        return nisynth.open_dataset(str(folder)).load()

    def _fitted(self, folder: Path, row: Row, seed: int) -> dict[str, Any]:
        """Returns the section of a run that samples a generator, fitted for as long as one batch is."""
        scale, method = self.scale, dict(row.method)
        presets = FITS[method["name"]].presets
        preset = scale.preset if scale.preset in presets else next(iter(presets))
        method = {"preset": preset, **method, "iterations": scale.iterations}
        if row.needs_real:
            method["data"] = self.real_path
        elif method["name"] != "one_to_many":
            method["student"] = {"arch": self.of_teacher["arch"]}
        values = {"teacher": self.of_teacher, "method": method, "batch_size": scale.batch_size, "seed": seed}
        with self._costs(folder):
            fit(load_fit_config({**values, "output": str(folder)}))
        return {"name": "sampling", "generator": str(folder / GENERATOR_KEY)}

    def _found(self, name: str, draw: int) -> list[float]:
        results = [self.work / f"students/{name}/{draw}/{seed}/result.json" for seed in self.seeds]
        return [json.loads(path.read_text())["test_accuracy"] for path in results if path.exists()]

    def _judged(self, name: str, draws: Iterable[int]) -> tuple[str, str]:
        """Returns what teacher and independent network recognize of a row's images, in percent."""
        found = [self._judged_set(name, draw) for draw in draws]
        first, second = (
            " / ".join("" if one is None else f"{100 * one:.0f}" for one in column)
            for column in zip(*found, strict=True)
        )
        return first, second

    def _judged_set(self, name: str, draw: int) -> tuple[float | None, ...]:
        if (name, draw) not in self._known:
            images = self.images(name, draw)
            assert images is not None
            self._known[name, draw] = tuple(
                None if network is None else network.accuracy(images.pixels, images.labels)
                for network in (self.teacher, self.judge)
            )
        return self._known[name, draw]

    @contextmanager
    def _costs(self, folder: Path) -> Iterator[None]:
        """Adds the CPU seconds of what is done within to those of a folder; a kill -9 loses them."""
        place = str(folder.relative_to(self.work))
        began_s = time.process_time()
        try:
            yield
        finally:
            path = self._cost_file(place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._spent(place) + time.process_time() - began_s))

    def _spent(self, place: str) -> float:
        path = self._cost_file(place)
        return float(json.loads(path.read_text())) if path.exists() else 0.0

    def _cost_file(self, place: str) -> Path:
        return self.work / "cpu_s" / f"{place.replace('/', '-')}.json"

    def _keep_apart(self, identity: Mapping[str, Any]) -> None:
        path = self.work / "benchmark.json"
        if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(identity)):
            raise SystemExit(f"{path}: of another scale or teacher; give another WORK")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(identity))


def balanced(images: LabelledImages, count: int, draw: int) -> LabelledImages:
    """Returns `count` of the images, every class as often as any other. draw: which of many such sets."""
    order = torch.from_numpy(permutation(len(images), "real", draw))
    labels = images.labels[order]
    number = torch.zeros_like(labels)
    for label in range(int(labels.max()) + 1):
        of_class = labels == label
        number[of_class] = torch.arange(int(of_class.sum()))
    chosen = order[torch.argsort(number, stable=True)[:count]]
    return replace(images, pixels=images.pixels[chosen], labels=images.labels[chosen])


def joined(one: LabelledImages, other: LabelledImages) -> LabelledImages:
    """Returns both sets as one."""
    pixels, labels = torch.cat([one.pixels, other.pixels]), torch.cat([one.labels, other.labels])
    return replace(one, pixels=pixels, labels=labels)


def _mean_and_range(values: Sequence[float]) -> tuple[float, float]:
    return sum(values) / len(values), max(values) - min(values)


def _claims(means: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """Yields a line for each pair of rows, with the spread that the difference must be read beside."""
    for better, worse in CLAIMS:
        if better in means and worse in means:
            gain = 100 * (means[better][0] - means[worse][0])
            spread = 100 * max(means[better][1], means[worse][1])
            yield f"- {better} - {worse}: {gain:+.1f} points (between students of a row: up to {spread:.1f})"


def main() -> None:
    """Makes the rows, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", metavar="WORK")
    parser.add_argument("--test", required=True, metavar="REAL_SET")
    parser.add_argument("--real", metavar="REAL_SET")
    parser.add_argument("--scale", choices=SCALES, default="minutes")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=NUMBER", help="of the scale")
    parser.add_argument("--image-seeds", type=int, default=1, help="sets of images a row")
    parser.add_argument("--seeds", type=int, default=2, help="students a set")
    parser.add_argument("--teacher", default="resnet20", metavar="ARCH[=FILE]")
    parser.add_argument("--judge", metavar="ARCH=FILE", help="an independent network")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    options = parser.parse_args()
    benchmark = Benchmark(options)
    benchmark.make(options.only)
    print(benchmark.table())


if __name__ == "__main__":
    main()
