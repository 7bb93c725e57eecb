"""What stands around the verbs: version, help, completion, usage errors, silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nisynth as package
from nisynth.commits import Run
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.tiny import tiny_config, tiny_plan


def test_the_version_is_the_packages() -> None:
    told = nisynth("--version")
    assert (told.returncode, told.stdout, told.stderr) == (0, f"nisynth {package.__version__}\n", "")


def test_no_arguments_at_all_ask_for_help() -> None:
    bare = nisynth()
    assert (bare.returncode, bare.stderr) == (0, "")
    assert "Usage: nisynth [OPTIONS] COMMAND" in bare.stdout
    assert bare.stdout == nisynth("--help").stdout == nisynth("-h").stdout


def test_a_verbs_help_is_short_to_ask_for() -> None:
    told = nisynth("status", "-h")
    assert (told.returncode, told.stderr) == (0, "")
    assert "Usage: nisynth status" in told.stdout
    assert "--watch" in told.stdout


def test_a_verb_under_its_former_name_works_and_names_the_new_one() -> None:
    assert "distil " not in nisynth("--help").stdout
    told = nisynth("distil", "-h")
    assert told.returncode == 0
    assert told.stdout == nisynth("distill", "-h").stdout
    assert told.stderr == "nisynth: `distil` is now `distill`; the old name will go\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("run", "Missing argument 'CONFIG'; `nisynth run --help` shows its options"),
        ("run demo", "Missing option '--store'; `nisynth run --help` shows its options"),
        ("status --wach", "; `nisynth status --help` shows its options"),
        ("status --every x run", "; `nisynth status --help` shows its options"),
        ("verify a b", "; `nisynth verify --help` shows its options"),
        ("rum demo", "No such command 'rum'. Did you mean 'run'?; `nisynth --help` shows the verbs"),
        ("--wach", "; `nisynth --help` shows the verbs"),
    ],
)
def test_a_usage_error_points_at_the_help_that_has_it(line: str, told: str) -> None:
    ended = nisynth(*line.split())
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("nisynth: error: ")
    assert ended.stderr.endswith(f"{told}\n")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("nisynth ver", ["verify"]), ("nisynth verify --de", ["--deep"]), ("nisynth --vers", ["--version"])],
)
def test_a_shell_completes_verbs_and_options(typed: str, completed: list[str]) -> None:
    environment = {
        **os.environ,
        "_NISYNTH_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    command = [sys.executable, "-c", "from nisynth.cli import main; main()"]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert told.stdout.split() == completed


def test_quiet_leaves_the_result_alone(tmp_path: Path) -> None:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))
    report = ("report", run.store.url, "-o", tmp_path / "page.html")
    told = nisynth(*report)
    assert told.stderr
    quiet = nisynth(*report, "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (told.returncode, told.stdout, "")


def test_a_quiet_run_still_tells_notes_and_errors(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(tmp_path).to_dict()))
    run = ("run", config, "--store", tmp_path / "run", "--set", "run.num_images=14", "--quiet")
    done = nisynth(*run)
    assert done.returncode == 0
    assert "14 images" in done.stdout
    assert done.stderr.startswith("note: run.num_images 14 is not a multiple")
    assert len(done.stderr.splitlines()) == 1
    refused = nisynth(*run, "--set", "run.seed=1")
    assert refused.returncode == 2
    assert "nisynth: error: " in refused.stderr
