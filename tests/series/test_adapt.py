"""A series from its recipe to its seal, and every reader of a run on it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import nisynth
from nisynth.cli import execute
from nisynth.commits import Run
from nisynth.commits.run import SUCCESS_KEY
from nisynth.config_loader import shipped_configs
from nisynth.errors import ConfigError, DataError, NisynthError, PlanMismatch
from nisynth.series.config import load_adapt_config
from nisynth.series.plan import round_sizes
from nisynth.storage import open_store
from tests.series.recipes import SIZES, opened, recipe, what_counts
from tests.tiny import TinyNet, tiny_config


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete series in `series`; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("world")
    nisynth.adapt(recipe(folder), str(folder / "series"))
    return folder


@pytest.fixture
def url(world: Path, tmp_path: Path) -> str:
    """A copy of the series."""
    shutil.copytree(world / "series", tmp_path / "series")
    return str(tmp_path / "series")


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = execute([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def rival_file(url: str, number: int) -> Path:
    sha256 = opened(url).rival_sha256(number)
    return Path(url) / f"rivals/{number:04d}/{sha256}.safetensors"


def spoil(path: Path) -> None:
    tensors = load_file(path)
    tensors["linear.bias"] = tensors["linear.bias"] + 1
    save_file(tensors, path)


def test_a_series_is_rounds_against_rivals_of_the_rounds_before(world: Path, tmp_path: Path) -> None:
    series = opened(str(world / "series"))
    assert series.is_sealed()
    assert [part.plan.num_tasks for part in series.rounds] == SIZES
    assert "rival" not in series.rounds[0].plan.identity["method"]
    for number in (1, 2):
        rival = series.rounds[number].plan.identity["method"]["rival"]
        trained = nisynth.load_teacher(
            arch="tests.tiny:TinyNet", weights=str(world / f"series/rivals/{number:04d}/student.safetensors")
        )
        assert rival["weights"] == trained.identity["weights_sha256"]
        commit = series.rounds[number].read(0)
        assert commit is not None
        assert 0 <= commit.figures["rival_accuracy"] <= 1
        assert commit.figures["disagreement"] > 0
    results = [json.loads(series.store.get(f"rivals/000{n}/result.json")) for n in (1, 2)]
    assert [result["num_images"] for result in results] == [12, 16]
    # one step for each batch that is new, from the weights of the rival before
    assert [result["identity"]["train"]["steps"] for result in results] == [3, 1]
    assert results[1]["identity"]["student"]["weights"] == series.rival_sha256(1)
    assert "weights" not in results[0]["identity"]["student"]


def test_run_again_a_complete_series_is_left_alone(url: str, world: Path) -> None:
    before, said = what_counts(url), list[str]()
    report = nisynth.adapt(recipe(world), url, say=said.append)
    assert (report.executed, report.tasks, report.images, report.rounds) == (0, 5, 19, 3)
    assert said == [f"{url}: complete already; nothing to do"]
    assert what_counts(url) == before
    Path(url, SUCCESS_KEY).unlink()
    assert nisynth.adapt(recipe(world), url).executed == 0
    assert opened(url).is_sealed()


def test_a_series_opens_as_one_set(world: Path) -> None:
    url = str(world / "series")
    images = nisynth.open_dataset(url)
    assert (len(images), images.complete, len(images.shards)) == (19, True, 5)
    plan = opened(url).plan
    labels = [label for task in range(5) for label in plan.labels(task)[: plan.rows(task)]]
    assert images.targets.tolist() == images.load().labels.tolist() == labels
    pixels, label = images[16]
    assert torch.equal(pixels, images.load().pixels[16])
    assert label == labels[16]
    assert sum(len(batch[1]) for batch in images.stream(4, drop_last=False)) == 19
    first = nisynth.open_dataset(url, rounds=1)
    assert len(first) == 12
    assert torch.equal(first.load().pixels, images.load().pixels[:12])
    with pytest.raises(ConfigError, match=r"rounds: 4 is not within 1\.\.3"):
        nisynth.open_dataset(url, rounds=4)
    with pytest.raises(ConfigError, match="is a run and has none"):
        nisynth.open_dataset(f"{url}/rounds/0000", rounds=1)


def test_a_series_is_followed_from_its_first_round_to_its_seal(url: str) -> None:
    """Of three rounds, the second is sealed and the third begun while a reader follows."""
    whole = nisynth.open_dataset(url).targets.tolist()
    last, seal = Path(url, "rounds/0002"), Path(url, SUCCESS_KEY)
    kept = last.rename(last.with_name("later"))
    seal_text = seal.read_text()
    seal.unlink()
    images = nisynth.open_dataset(url, follow=True)
    stream = images.stream(4, drop_last=False)
    shown = [sum(len(labels) for _, labels in stream)]
    assert (images.complete, images.targets.tolist()) == (False, whole[: shown[0]])
    kept.rename(last)
    seal.write_text(seal_text)
    shown.append(sum(len(labels) for _, labels in stream))
    assert (shown, images.complete) == ([16, 19], True)
    assert images.targets.tolist() == whole


def test_hugging_face_datasets_opens_a_series_by_its_card(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    found = datasets.load_dataset(str(world / "series"), cache_dir=str(tmp_path / "cache"))["train"]
    assert found["label"][:] == nisynth.open_dataset(str(world / "series")).targets.tolist()
    assert "`series.json` holds the whole config" in (world / "series/README.md").read_text()


def test_every_verb_of_a_run_takes_a_series(
    url: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, "verify", url, "--deep", "--complete")[0] == 0
    code, out, _ = command(capsys, "status", url)
    assert code == 0
    assert "5 of 5 tasks committed, 0 quarantined, 19 images" in out
    assert command(capsys, "preview", url, "-o", tmp_path / "preview.png", "--rows", "2")[0] == 0
    code, out, _ = command(capsys, "logs", url, "--task", "4")
    assert code == 0
    assert "task 4: committed, 3 images" in out
    assert command(capsys, "report", url, "-o", tmp_path / "report.html")[0] == 0
    assert "Doubtful" in (tmp_path / "report.html").read_text()  # an untrained teacher knows a quarter
    code, out, _ = command(capsys, "pull", url, tmp_path / "copy")
    assert code == 0, out
    assert "a whole copy" in out
    assert command(capsys, "verify", tmp_path / "copy", "--deep", "--complete")[0] == 0
    assert what_counts(url)["shards"] == {
        row.task: row.sha256 for row in nisynth.open_dataset(str(tmp_path / "copy")).shards
    }
    assert command(capsys, "pull", url, tmp_path / "copy")[0] == 0
    said = command(capsys, "gc", url)[1]
    assert said.startswith("0 losing shards")
    assert "0 losing rivals deleted" in said
    assert command(capsys, "retry", url)[1] == "no task is quarantined; nothing was changed\n"
    assert command(capsys, "preview", url, "--task", "4", "-o", tmp_path / "task.png")[0] == 0
    code, out, _ = command(capsys, "export", url, tmp_path / "out", "--format", "npz")
    assert code == 0
    assert "19 images as npz, 5 parts" in out
    code, out, _ = command(capsys, "warm", url, "--cache", tmp_path / "cache")
    assert code == 0
    assert "19 images of 5 shards in the cache" in out


@pytest.mark.slow
def test_a_series_in_s3_is_the_series_of_a_folder(
    world: Path, tmp_path: Path, s3_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nisynth.adapt(recipe(world), s3_url).executed == 5
    assert what_counts(s3_url) == what_counts(str(world / "series"))
    code, out, err = command(capsys, "pull", s3_url, tmp_path / "copy")
    assert code == 0, err
    assert "5 shards, 19 images" in out
    assert command(capsys, "verify", tmp_path / "copy", "--deep", "--complete")[0] == 0


def test_a_reader_follows_a_series_that_grows(url: str, world: Path) -> None:
    Path(url, SUCCESS_KEY).unlink()
    shutil.rmtree(Path(url) / "rounds/0002")
    images = nisynth.open_dataset(url, follow=True)
    stream = images.stream(4, drop_last=False)
    assert (sum(len(labels) for _, labels in stream), images.complete) == (16, False)
    nisynth.adapt(recipe(world), url)
    assert sum(len(labels) for _, labels in stream) == 19
    assert images.complete


def test_an_interrupted_copy_of_a_series_is_taken_up(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seal, kept = Path(url, SUCCESS_KEY), Path(url) / "rounds/0002"
    shutil.move(kept, tmp_path / "kept")
    content = seal.read_text()
    seal.unlink()
    assert command(capsys, "pull", url, tmp_path / "copy")[0] == 2
    assert command(capsys, "pull", url, tmp_path / "copy", "--allow-partial")[0] == 3
    assert len(nisynth.open_dataset(str(tmp_path / "copy"), allow_partial=True)) == 16
    shutil.move(tmp_path / "kept", kept)
    seal.write_text(content)
    code, out, _ = command(capsys, "pull", url, tmp_path / "copy")
    assert code == 0
    assert "fetched now 1 shard" in out
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "copy/rounds/0001", tmp_path / "elsewhere/0001")
    (tmp_path / "copy/rounds/0001").symlink_to(tmp_path / "elsewhere/0001")
    code, _, err = command(capsys, "pull", url, tmp_path / "copy")
    assert code == 6
    assert "rounds/0001: not a plain folder; pull follows no links" in err


def test_a_consumer_trains_on_a_series(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {
        "student": {"arch": "tests.tiny:TinyNet"},
        "train": {"epochs": 1, "batch_size": 8},
        "data": str(world / "series"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    code, _, err = command(capsys, "scratch", tmp_path / "job.yaml", "--output", tmp_path / "student")
    assert code == 0, err
    assert "19 images in 4 classes" in err


def test_status_says_round_and_step(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    def step() -> str:
        return command(capsys, "status", url)[1].splitlines()[1]

    Path(url, SUCCESS_KEY).unlink()
    assert step() == "only the seal is missing"
    shutil.rmtree(Path(url) / "rounds/0002")
    assert step() == "the rival of round 2 is being distilled"
    (Path(url) / "rounds/0001/_SUCCESS").unlink()
    shutil.rmtree(Path(url) / "rounds/0001/commits")
    assert step() == "round 1 of 0..2: 0 of 1 tasks"
    assert command(capsys, "verify", url, "--complete")[0] == 3
    assert len(nisynth.open_dataset(url, allow_partial=True)) == 12
    shutil.rmtree(Path(url) / "rounds")
    assert step() == "round 0 of 0..2 is not begun"


def test_redo_takes_a_bad_shard_of_a_round_back_and_adapt_makes_it_again(
    url: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = what_counts(url)
    shard = next((Path(url) / "rounds/0001/data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out, _ = command(capsys, "verify", url)
    assert code == 1
    assert "task 3" in out
    code, out, _ = command(capsys, "redo", url, "--bad")
    assert code == 0
    assert "removed (3); run again to make what is missing" in out
    assert not opened(url).is_sealed()
    assert nisynth.adapt(recipe(world), url).executed == 1
    assert what_counts(url) == before
    assert command(capsys, "verify", url, "--deep", "--complete")[0] == 0


def test_verify_finds_a_rival_that_is_not_the_one_its_round_names(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(rival_file(url, 1))
    code, out, _ = command(capsys, "verify", url)
    assert code == 1
    assert "the rival of round 1 was changed" in out
    rival_file(url, 1).unlink()
    assert "the rival of round 1 is missing" in command(capsys, "verify", url)[1]
    code, _, err = command(capsys, "pull", url, f"{url}-copy")
    assert code == 1
    assert "the rival of round 1 is missing" in err


def test_verify_finds_a_rival_that_was_made_from_other_images(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(url) / "rivals/0002/result.json"
    result = json.loads(path.read_text())
    result["identity"]["data"]["content_sha256"] = "0" * 64
    path.write_text(json.dumps(result))
    code, out, _ = command(capsys, "verify", url)
    assert code == 1
    assert "the rival of round 2 was made from other images than the rounds before it" in out


def test_a_rival_that_was_changed_in_the_bucket_is_refused(url: str, world: Path) -> None:
    Path(url, SUCCESS_KEY).unlink()
    for name in ("_SUCCESS", "_MANIFEST", "README.md"):
        (Path(url) / "rounds/0002" / name).unlink()
    shutil.rmtree(Path(url) / "rounds/0002/commits")
    before = rival_file(url, 2).read_bytes()
    spoil(rival_file(url, 2))
    with pytest.raises(DataError, match=r"the rival of round 2 was changed.*put the original back"):
        nisynth.adapt(recipe(world), url)
    assert opened(url).committed() == {0, 1, 2, 3}
    rival_file(url, 2).unlink()
    assert nisynth.adapt(recipe(world), url).executed == 1
    assert rival_file(url, 2).read_bytes() == before


def test_a_rivals_student_that_was_changed_is_no_rival_of_a_round_that_is_begun(
    url: str, world: Path
) -> None:
    Path(url, SUCCESS_KEY).unlink()
    (Path(url) / "rounds/0002/_SUCCESS").unlink()
    rival_file(url, 2).unlink()
    spoil(Path(url) / "rivals/0002/student.safetensors")
    with pytest.raises(DataError, match=r"names a rival of weights .* which is gone"):
        nisynth.adapt(recipe(world), url)


def test_a_round_of_another_recipe_is_refused(url: str, world: Path) -> None:
    other = nisynth.run(tiny_config(world, run={"num_images": 4, "seed": 9}), f"{url}-run")
    shutil.rmtree(Path(url) / "rounds/0002")
    shutil.copytree(other.url, Path(url) / "rounds/0002")
    Path(url, SUCCESS_KEY).unlink()
    for reading in (lambda: opened(url).rounds, lambda: nisynth.adapt(recipe(world), url)):
        with pytest.raises(DataError, match=r"rounds/0002/plan.json: not round 2 of the series: .*run.seed"):
            reading()


def test_a_run_and_a_series_do_not_share_a_url(world: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanMismatch, match=r"holds a series.*nisynth adapt"):
        nisynth.run(tiny_config(world), str(world / "series"))
    with pytest.raises(PlanMismatch, match=r"holds a run.*nisynth run"):
        nisynth.adapt(recipe(world), str(world / "series/rounds/0000"))
    rounds = recipe(world)["rounds"] | {"steps_per_batch": 2}
    with pytest.raises(PlanMismatch, match=r"series.rounds.steps_per_batch: 1 there, 2 here"):
        nisynth.adapt(recipe(world, rounds=rounds), str(world / "series"))
    run = Run.open(open_store(str(world / "series/rounds/0001")))
    assert run.is_sealed()


class ThreeClasses(TinyNet):
    """A rival that knows too little."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__(3)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("no rival", {"method": {"rival": None}}, "method.rival: missing; name the student"),
    (
        "weights",
        {"method": {"rival": {"arch": "resnet20", "weights": "x"}}},
        "method.rival.weights: adapt makes the rivals itself; leave it out",
    ),
    ("no arch", {"method": {"rival": {}}}, "method.rival.arch: missing"),
    ("rival's key", {"method": {"rival": {"arch": "resnet20", "wieght": 1}}}, "wieght: unknown key; did you"),
    ("unknown arch", {"method": {"rival": {"arch": "resnet19"}}}, "arch 'resnet19' is unknown"),
    (
        "classes",
        {"method": {"rival": {"arch": f"{__name__}:ThreeClasses"}}},
        r"method.rival.arch: .* gives logits \(2, 3\) for 2 images, but the teacher has 4 classes",
    ),
    ("a method without rival", {"method": {"name": "noise"}}, "method.*unknown key"),
    ("section", {"round": {"base": 3}}, "round: unknown key; did you mean 'rounds'"),
    ("inner key", {"rounds": {"bass": 3}}, "rounds.bass: unknown key; did you mean 'base'"),
    ("base", {"rounds": {"base": 0}}, "rounds.base: 0 is not at least 1"),
    ("growth", {"rounds": {"growth": -0.1}}, "rounds.growth: -0.1 is not a finite number, 0 or more"),
    ("steps", {"rounds": {"steps_per_batch": 0}}, "rounds.steps_per_batch: 0 is not at least 1"),
    (
        "too many rounds",
        {"rounds": {"base": 1, "growth": 0.0}, "run": {"num_images": 10**6}},
        "rounds: base 1 and growth 0 make more than 9,999 rounds of 250,000 tasks",
    ),
    ("epochs", {"train": {"epochs": 3}}, "train.epochs: 3 cannot be set in a series: rounds.steps_per_batch"),
    ("schedule", {"train": {"schedule": "cosine"}}, "train.schedule: 'cosine'.*use constant"),
    ("workers", {"rounds": {"workers": 3}}, "rounds.workers: 3 do not divide train.batch_size 8"),
    ("partial rounds", {"execution": {"max_failed_tasks": 1}}, "execution.max_failed_tasks: 1: the next"),
]


@pytest.mark.parametrize(
    ("changes", "expected"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_a_recipe_that_cannot_be_used_is_one_line_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    values = recipe(tmp_path)
    changed = recipe(tmp_path, **{name: {**values.get(name, {}), **more} for name, more in changes.items()})
    with pytest.raises(NisynthError, match=expected) as raised:
        nisynth.adapt(changed, str(tmp_path / "series"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "series").exists()


def test_an_address_needs_the_ray_executor(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the local executor joins no cluster"):
        nisynth.adapt(recipe(tmp_path), str(tmp_path / "series"), address="auto")


def test_what_ships_is_valid_and_is_the_papers_size() -> None:
    assert set(shipped_configs("adapt")) == {"demo", "cifar10_adi", "cifar10_naturalinversion_adi"}
    for name in shipped_configs("adapt"):
        found = load_adapt_config(name)
        tasks = -(-found.run.run.num_images // found.run.run.batch_size)
        sizes = round_sizes(tasks, found.rounds.base, found.rounds.growth)
        if name == "demo":
            assert len(sizes) == 3
        else:
            assert sizes == [200, 50, 62, 78, 97, 121, 152, 190, 50]
            assert (found.train.batch_size, found.train.lr, found.train.schedule) == (256, 0.1, "constant")


def test_the_command_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "series.yaml").write_text(yaml.safe_dump(recipe(world)))
    whole = ["adapt", tmp_path / "series.yaml", "--store", tmp_path / "s"]
    shorter = [*whole, "--set", "run.num_images=16"]
    code, out, err = command(capsys, *shorter, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["rounds"], report["tasks"], report["executed"]) == (2, 4, 4)
    assert "rival of round 1: 3 steps over the rounds before it" in err
    code, out, _ = command(capsys, *shorter, "-q")
    assert code == 0
    assert out.startswith("complete: 2 rounds, 4 tasks, 16 images at ")
    assert command(capsys, *whole)[0] == 2
