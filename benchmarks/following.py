"""Whether a student that follows a growing run ends as well as one that is distilled after it.

    python benchmarks/following.py --images cifar10-test.parquet --seeds 3

A run of 2,560 real images has two of its ten tasks when the student begins, gets more after each epoch and is
sealed before the last. The other student has the sealed run from the start, as many steps, and the same seed.
Both are measured on images that are in neither: top-1 accuracy, of each seed and the mean of the differences.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from reading import BATCH, TASKS, begin_run, commit_tasks

from nisynth.commits.seal import seal
from nisynth.consumers.distill import distill
from nisynth.images import LabelledImages
from nisynth.images.real import load_real_set
from nisynth.teachers import load_teacher

FIRST_TASKS = 2


def main() -> None:
    """Prints a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", required=True, help="a real set of 32 px, as `--test-set` takes it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    real = load_real_set(options.images)
    differences = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found = accuracies(Path(folder), real, seed, options.epochs)
        differences.append(found[0] - found[1])
        print(f"seed {seed}: follows {found[0]:.2%}, afterwards {found[1]:.2%}", flush=True)
    spread = statistics.stdev(differences) if options.seeds > 1 else 0.0
    print(f"difference {statistics.mean(differences):+.2%}, standard deviation {spread:.2%}")


def accuracies(folder: Path, real: LabelledImages, seed: int, epochs: int) -> tuple[float, float]:
    """Returns the accuracy of the student that follows, and of the one that comes afterwards."""
    run = begin_run(folder / "run", "compressed")
    commits, used = commit_tasks(run, real, "compressed"), list[int]()
    for _ in range(FIRST_TASKS):
        used += next(commits)

    def grow(line: str) -> None:
        if line.startswith("epoch"):
            for _ in range(-(-(TASKS - FIRST_TASKS) // (epochs - 1))):
                used.extend(next(commits, []))
            if len(used) == BATCH * TASKS:
                seal(run)

    def student(name: str, **changes: object) -> float:
        values = {
            "data": str(folder / "run"),
            "output": str(folder / name),
            "teacher": {"arch": "resnet20"},
            "student": {"arch": "resnet20"},
            "train": {"epochs": epochs, "batch_size": 32, "lr": 0.05, "seed": seed},
        }
        distill(values | changes, say=grow if changes else lambda line: None)
        left = torch.ones(len(real.labels), dtype=torch.bool)
        left[used] = False
        network = load_teacher(arch="resnet20", weights=str(folder / name / "student.safetensors"))
        return network.accuracy(real.pixels[left], real.labels[left])

    follows = student("follows", follow=True, follow_min_images=BATCH * FIRST_TASKS)
    assert len(used) == BATCH * TASKS, "the run was not whole in the last epoch"
    return follows, student("afterwards")


if __name__ == "__main__":
    main()
