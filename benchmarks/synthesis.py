"""How fast one device synthesizes: published code, plain loop and engine, side by side in one run.

    python benchmarks/synthesis.py                                              # shipped teacher, B=32
    python benchmarks/synthesis.py --arch resnet34 --weights W --batch-size 256 --published CHECKOUT
    python benchmarks/synthesis.py --ladder                                     # what each shortcut gives

Every row runs `--repeats` tasks of `--iterations` steps, in turn with the other rows, so that whatever
else the machine does hits all of them; a task's first step is left out. `ms` is the median of the
repeats' milliseconds per iteration, with their least and most; `x` is the first row's over it: that of the
published code, where that runs, else the plain loop's. `floor` is what the iteration's
multiplications and additions (FlopCounterMode over the plain loop) would take at the best rate of a large
matrix product on this device; `% floor` is how near a row comes, and the engine may pass it, since its
rewritings need fewer operations. Images per hour are those of full tasks of `--full-iterations`. On a CPU,
`cpu ms` leaves out the time that other processes took, and `x` and `% floor` are of it.
"""

import argparse
import contextlib
import importlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from nisynth.batch import Task
from nisynth.errors import NisynthError
from nisynth.synthesis import EngineConfig, NaturalInversionConfig
from nisynth.synthesis.engine.fast import FastSynthesizer
from nisynth.synthesis.engine.shortcuts import Shortcuts
from nisynth.synthesis.inversion.method import InversionMethod
from nisynth.synthesis.inversion.plain import PlainSynthesizer
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.teachers import Teacher, load_teacher

PUBLISHED_BATCH_SIZE, PUBLISHED_ARCH, PUBLISHED_CLASSES = 256, "resnet34", 10
STEPS = (
    "folded", "identities", "statistics", "channels_last", "captured", "compiled", "activations",
    "normalization",
)  # fmt: skip


@dataclass
class Row:
    """One way to synthesize, and what was measured of it. `run(task)`: wall and CPU seconds per iteration."""

    name: str
    run: Callable[[Task], tuple[float, float]]
    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    prepare_s: float = 0.0
    memory_bytes: int = 0
    notes: list[str] = field(default_factory=list)


def main() -> None:
    """Prints the table, and with --json also writes what it was made from."""
    options = parse()
    torch.set_num_threads(options.threads)
    teacher = load_teacher(arch=options.arch, weights=options.weights, device=options.device)
    rows = [*published_row(options, teacher), *plain_row(options, teacher), *engine_rows(options, teacher)]
    labels = np.arange(options.batch_size, dtype=np.int64) % teacher.num_classes
    tasks = [Task(index=i, seed=i, labels=labels, rows=len(labels)) for i in range(options.repeats + 1)]
    for row in rows:
        prepare(row, tasks[0], teacher.device)
    for task in tasks[1:]:
        for row in rows:
            seconds, cpu_seconds = row.run(task)
            row.ms.append(1e3 * seconds)
            row.cpu_ms.append(1e3 * cpu_seconds)
    flops = flops_per_image(teacher) * options.batch_size
    rate, of = matrix_rate(teacher.device)
    print(f"{device_name(teacher.device)}, torch {torch.__version__}")
    print(f"teacher {options.arch}, B={options.batch_size}, tasks of {options.full_iterations} iterations")
    print(f"{flops / 1e12:.3f} TFLOP per iteration; {rate / 1e12:.2f} TFLOP/s in a {of} matrix product")
    show(rows, 1e3 * flops / rate, options, teacher.device)
    if options.json:
        Path(options.json).write_text(json.dumps(report(rows, flops, rate, options), indent=1))
    if options.profile:
        profile(options, teacher, tasks[0])


def parse() -> argparse.Namespace:
    """Returns the command line's options."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--weights", help="file of the teacher's weights; resnet20 has some that ship")
    parser.add_argument("--batch-size", type=int, default=256 if cuda else 32)
    parser.add_argument("--iterations", type=int, default=101 if cuda else 6, help="steps of one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--full-iterations", type=int, default=2000)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--precision", nargs="+", default=["float32", "auto"], help="each a row")
    parser.add_argument("--ladder", action="store_true", help="a row for each shortcut added")
    parser.add_argument("--compile", action="store_true", help="on a CPU too, a row with torch.compile")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--published", help="a checkout of github.com/kdst-team/NaturalInversion")
    parser.add_argument("--published-iterations", type=int, default=2000)
    parser.add_argument("--profile", action="store_true", help="the engine's costliest kernels")
    parser.add_argument("--json", help="file to write every number to")
    options = parser.parse_args()
    if options.iterations < 2:
        parser.error(f"--iterations {options.iterations}: the first step is left out, so give 2 or more")
    return options


def method(iterations: int, teacher: Teacher) -> InversionMethod:
    """Returns the published method, for so many steps."""
    return InversionMethod(NaturalInversionConfig(iterations=iterations), teacher, Renderer)


def plain_row(options: argparse.Namespace, teacher: Teacher) -> list[Row]:
    """Returns the plain loop's row."""
    if options.no_plain:
        return []
    plain = PlainSynthesizer(method(options.iterations, teacher), log_every=options.iterations)
    return [Row("plain, float32", lambda task: seconds_per_step(plain, task))]


def engine_rows(options: argparse.Namespace, teacher: Teacher) -> list[Row]:
    """Returns a row per precision, and the ladder's and the compiler's rows where they are asked for."""
    best = Shortcuts.on(teacher.device)
    rows = []
    for precision in options.precision:
        variants = {"": best}
        if options.compile and not best.compiled:
            variants[", compiled"] = replace(best, compiled=True)
            variants[", compiled, channels_last"] = replace(best, compiled=True, channels_last=True)
        if options.ladder:
            variants |= ladder(best)
        for name, shortcuts in variants.items():
            try:
                engine = FastSynthesizer(
                    method(options.iterations, teacher), EngineConfig(name="fast", precision=precision),
                    log_every=options.iterations, shortcuts=shortcuts,
                )  # fmt: skip
            except NisynthError as error:
                print(f"not measured: {error}")
                continue
            rows.append(engine_row(f"{engine.describe()}{name}", engine))
    return rows


def ladder(best: Shortcuts) -> dict[str, Shortcuts]:
    """Returns the shortcuts of each rung: nothing, then one more each time."""
    nothing = Shortcuts(**dict.fromkeys(STEPS, False))
    rungs, rung = {" | none": nothing}, nothing
    for step in STEPS:
        if getattr(best, step) or step == "channels_last":
            rung = replace(rung, **{step: True})
            rungs[f" | +{step}"] = rung
    return rungs


def engine_row(name: str, engine: FastSynthesizer) -> Row:
    """Returns the row of an engine, which notes how long it took to prepare and what it did without."""
    row = Row(name, lambda task: seconds_per_step(engine, task))
    run = row.run

    def measured(task: Task) -> tuple[float, float]:
        seconds = run(task)
        row.prepare_s, row.notes = engine.prepared_s, engine.notes
        return seconds

    row.run = measured
    return row


def published_row(options: argparse.Namespace, teacher: Teacher) -> list[Row]:
    """Returns the row of the published script's own function, unchanged, where it can run at all."""
    if options.published is None:
        return []
    fits = (options.arch, options.batch_size, teacher.num_classes, teacher.device.type) == (
        PUBLISHED_ARCH, PUBLISHED_BATCH_SIZE, PUBLISHED_CLASSES, "cuda",
    )  # fmt: skip
    if not fits:
        print("not measured: published code (it runs with resnet34, 10 classes, B=256 and a GPU only)")
        return []
    sys.path.insert(0, options.published)
    script = importlib.import_module("NaturalInversion")
    network = importlib.import_module("resnet").ResNet34()
    script.debug_output = False
    network.load_state_dict(teacher.network.state_dict())
    network.to(teacher.device).eval()

    def run(task: Task) -> tuple[float, float]:
        script.random_seed(task.seed)
        epochs = options.published_iterations
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            torch.cuda.synchronize()
            start = time.perf_counter(), time.process_time()
            script.get_images(
                network, epochs=epochs, prefix=folder, bn_reg_scale=10.0, var_scale=6e-3, l2_coeff=1.5e-5
            )
            torch.cuda.synchronize()
        torch.backends.cudnn.deterministic = False  # which the script has set
        return (time.perf_counter() - start[0]) / epochs, (time.process_time() - start[1]) / epochs

    return [Row("published code", run)]


def seconds_per_step(synthesizer: Any, task: Task) -> tuple[float, float]:
    """Returns wall and CPU seconds per iteration, from the end of the first to the end of the last."""
    stamps: list[tuple[int, float, float]] = []

    def stamp(done: int, _: Any) -> None:
        stamps.append((done, time.perf_counter(), time.process_time()))

    synthesizer.synthesize(task, stamp)
    steps, seconds, cpu_seconds = (last - first for first, last in zip(stamps[0], stamps[-1], strict=True))
    return seconds / steps, cpu_seconds / steps


def prepare(row: Row, task: Task, device: torch.device) -> None:
    """Runs a first task, whose time does not count, and notes the memory that this way takes."""
    if device.type != "cuda":
        row.run(task)
        return
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    row.run(task)
    row.memory_bytes = torch.cuda.max_memory_reserved(device) - before


def flops_per_image(teacher: Teacher) -> float:
    """Returns the floating-point operations of one iteration of the plain loop for one image."""

    def counted(iterations: int) -> int:
        task = Task(index=0, seed=0, labels=np.zeros(2, dtype=np.int64), rows=2)
        with FlopCounterMode(display=False) as counter:
            PlainSynthesizer(method(iterations, teacher)).synthesize(task)
        return counter.get_total_flops()

    return (counted(2) - counted(1)) / 2


def matrix_rate(device: torch.device) -> tuple[float, str]:
    """Returns the operations per second of a large matrix product on random numbers, and their type."""
    bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    dtype, side = (torch.bfloat16 if bfloat16 else torch.float32), (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(13):
        with stopwatch(device) as lap:
            torch.matmul(a, b)
        seconds.append(lap[0])
    return 2 * side**3 / min(seconds), str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def stopwatch(device: torch.device) -> Iterator[list[float]]:
    """Yields a list that holds the block's seconds on the device once it is left."""
    lap: list[float] = []
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield lap
        end.record()
        end.synchronize()
        lap.append(start.elapsed_time(end) / 1e3)
    else:
        began = time.process_time()
        yield lap
        lap.append(time.process_time() - began)


def show(rows: list[Row], floor_ms: float, options: argparse.Namespace, device: torch.device) -> None:
    """Prints the table; the ratio is to the first row."""
    cpu = device.type == "cpu"
    print(f"floor {floor_ms:.2f} ms per iteration")
    head = "cpu ms" if cpu else "GPU GiB"
    print(
        f"{'':44}{'ms':>9}{'least':>9}{'most':>9}{head:>9}{'x':>7}"
        f"{'images/s':>10}{'images/h':>10}{'% floor':>9}{'prepare s':>11}"
    )
    shown = [(row.cpu_ms if cpu else row.ms) for row in rows]
    for row, own in zip(rows, shown, strict=True):
        ms = statistics.median(row.ms)
        images_per_s = options.batch_size / (ms / 1e3 * options.full_iterations)
        extra = statistics.median(row.cpu_ms) if cpu else row.memory_bytes / 2**30
        print(
            f"{row.name:44}{ms:9.2f}{min(row.ms):9.2f}{max(row.ms):9.2f}{extra:9.2f}"
            f"{statistics.median(shown[0]) / statistics.median(own):7.2f}{images_per_s:10.3f}"
            f"{3600 * images_per_s:10.0f}{100 * floor_ms / statistics.median(own):9.1f}{row.prepare_s:11.1f}"
        )
        for note in row.notes:
            print(f"    {note}")


def report(rows: list[Row], flops: float, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Returns every number behind the table."""
    kept = [{key: value for key, value in asdict(row).items() if key != "run"} for row in rows]
    return {"options": vars(options), "flops_per_iteration": flops, "matrix_flops_per_s": rate, "rows": kept}


def profile(options: argparse.Namespace, teacher: Teacher, task: Task) -> None:
    """Prints the kernels that a task of the engine spends its time in."""
    config = EngineConfig(name="fast", precision=options.precision[-1])
    engine = FastSynthesizer(method(options.iterations, teacher), config, log_every=options.iterations)
    engine.synthesize(task)
    with torch.profiler.profile() as profiler:
        engine.synthesize(task)
    by = "self_cuda_time_total" if teacher.device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=80))


def device_name(device: torch.device) -> str:
    """Returns the name of the GPU, or how many threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"


if __name__ == "__main__":
    main()
