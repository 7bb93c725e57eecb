"""Every script of benchmarks/ still imports what it needs and reads its options."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (REPO / "benchmarks").glob("*.py"))
ASK_EACH_FOR_HELP = """
import runpy, sys
sys.path.insert(0, "benchmarks")  # as Python does for a script
for script in sys.argv[1:]:
    sys.argv = [f"benchmarks/{script}", "--help"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        print(f"\\n{script}: read no options")
    except SystemExit as ended:
        print(f"\\n{script}: {ended.code}")
    except Exception as error:
        print(f"\\n{script}: {type(error).__name__}: {error}")
"""


def test_every_benchmark_prints_its_help() -> None:
    """In one process of their own: each import of torch takes seconds, and some change the environment."""
    words = [sys.executable, "-c", ASK_EACH_FOR_HELP, *SCRIPTS]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=True)
    ended = [line for line in done.stdout.splitlines() if line.split(":")[0] in SCRIPTS]
    assert ended == [f"{script}: 0" for script in SCRIPTS]
