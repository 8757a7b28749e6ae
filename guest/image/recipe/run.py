"""Running the programs that do the work, with their output kept for the error message."""

import os
import subprocess

# All timestamps that a build makes are this one, so that the same inputs give the same bytes: 2026-01-01 00:00 UTC.
SOURCE_DATE_EPOCH = 1767225600

# The last lines of a failed program's output that an error shows.
_TAIL_LINES = 15


class ProgramError(Exception):
    """A program failed or is missing; the message holds its command and the end of its output."""


def run(arguments, cwd=None):
    """Runs a program in a small, fixed environment and returns what it wrote to stdout."""
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "HOME": "/nonexistent",
        "DEBIAN_FRONTEND": "noninteractive",
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH),
    }
    # What an operator may have set for a machine behind a proxy or with a larger scratch disk.
    environment |= {key: os.environ[key] for key in ("http_proxy", "https_proxy", "no_proxy", "TMPDIR") if key in os.environ}
    try:
        done = subprocess.run(
            [str(argument) for argument in arguments], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise ProgramError(f"{arguments[0]} is not installed; scripts/quickstart and scripts/test install what is missing") from error
    if done.returncode != 0:
        tail = (done.stdout + done.stderr).decode(errors="replace").splitlines()[-_TAIL_LINES:]
        raise ProgramError(f"{arguments[0]} ended with status {done.returncode}:\n  " + "\n  ".join(tail))
    return done.stdout.decode(errors="replace")
