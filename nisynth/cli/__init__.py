"""The verbs: parse, call, print. `main` turns what went wrong into one line and a documented exit code.

A verb's module is loaded when the verb is called (`VERBS`), and what computes is imported inside the verb's
function, so that no help, and no look at a run, waits for torch.
"""

import errno
import os
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType

import typer
from rich.console import Console

from nisynth.cli.verbs import command_line
from nisynth.errors import NisynthError, Stopped, one_line
from nisynth.progress import printable

EXIT_CODES = """Exit codes: 0 complete; 1 stored data is damaged (verify); 2 usage, config or plan mismatch;
3 partial within max_failed_tasks; 4 too many failed tasks; 5 stalled; 6 storage; 7 stopped by SIGTERM or
a limit, run again to resume; 70 a bug of nisynth; 75 try again: Ray did not start,
or the connection to a job's cluster was lost and the job goes on;
130 Ctrl-C; 141 the output was closed, or its disk full, before its end."""

INTERRUPTED = 130
OUTPUT_ENDED = 128 + signal.SIGPIPE


def main() -> None:
    """Runs the command line and exits with the code that says how it ended."""
    sys.path.append(os.getcwd())  # `arch: mynet:build` finds mynet.py in the folder one works in
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Runs one command line in this process and returns its exit code."""
    try:
        group = command_line(epilog=EXIT_CODES.replace("\n", " "))
        result = group(args=arguments or ["--help"], prog_name="nisynth", standalone_mode=False)
        if result == INTERRUPTED:  # what typer makes of Ctrl-C, in silence
            return _say("stopped by Ctrl-C; the same command goes on from there", INTERRUPTED)
        return result if isinstance(result, int) else 0
    except typer.TyperException as error:
        return _say(f"error: {error.format_message().rstrip('.')}; {_help_for(error)}", error.exit_code)
    except NisynthError as error:
        return _say(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:  # while the verbs were imported: later ones are typer's
        return _say("stopped by Ctrl-C before anything was done", INTERRUPTED)
    except SystemExit as error:
        # typer and rich turn a closed output into exit code 1, which here means damaged data.
        if not _is_of_output(error.__context__):
            raise
        return _output_ended(error.__context__)
    except Exception as error:
        if _is_of_output(error):
            return _output_ended(error)
        with suppress(OSError):
            traceback.print_exc()
        return _say("that was a bug of nisynth, please report it with the lines above; nothing is lost", 70)


def _help_for(error: typer.TyperException) -> str:
    """Returns where to read on: the help of the verb that was called, or that of all verbs."""
    context = getattr(error, "ctx", None)
    if context is None or context.parent is None:
        return "`nisynth --help` shows the verbs"
    return f"`{context.command_path} --help` shows its options"


def _say(line: str, exit_code: int) -> int:
    with suppress(OSError, SystemExit):  # nobody hears it, and the code still tells
        Console(stderr=True, soft_wrap=True).out(f"nisynth: {printable(line)}", highlight=False)
    return exit_code


def _is_of_output(error: BaseException | None) -> bool:
    """Tells whether stdout or stderr failed: what else is written to has errors of its own kind."""
    return isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EIO)


def _output_ended(error: BaseException | None) -> int:
    """Returns the code of an output that ended early: never 0, what it was about to say may not be good."""
    with suppress(OSError, ValueError):  # what is still buffered must not fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error is None or isinstance(error, BrokenPipeError):
        return OUTPUT_ENDED
    return _say(f"error: the output cannot be written: {one_line(error)}", OUTPUT_ENDED)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise Stopped("stopped by SIGTERM; run again to resume")
