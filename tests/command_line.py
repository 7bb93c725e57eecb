"""The command line, run in this process: starting one takes seconds."""

import contextlib
import io
import subprocess

from nisynth.cli import execute


def nisynth(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Returns what one command line printed, and its exit code, as `main` would give them."""
    words = [str(argument) for argument in arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        exit_code = execute(words)
    return subprocess.CompletedProcess(words, exit_code, stdout.getvalue(), stderr.getvalue())
