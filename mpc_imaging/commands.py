"""What the commands have in common: mistakes in one line, errors without tracebacks, pipes that nobody reads."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mpc_imaging.errors import ConfigError, MPCImagingError, unforeseen

if TYPE_CHECKING:
    from mpc_imaging.data.deidentification import Pseudonyms


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, like every other error, and not its usage first."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        cause = sys.exception()
        if isinstance(cause, OSError):  # of an @FILE; argparse passes on what Python calls it
            message = f"@{cause.filename} cannot be read: {cause.strerror}"
        self.exit(2, f"{message}; {self.prog} --help explains\n")

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """The words on a line of an @FILE; # begins a comment."""
        return arg_line.partition("#")[0].split()


def complain(error: MPCImagingError, debug: bool) -> int:
    """Print an error, a line for each problem; returns the exit code."""
    if debug:
        traceback.print_exc()
    for problem in getattr(error, "problems", [str(error)]):
        print(f"error: {problem}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else error.exit_code


def over_headers(body: Callable[[], int], debug: bool) -> int:
    """The exit code of a command over DICOM headers: what it writes is private, and no warning quotes a header."""
    os.umask(0o077)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote the header
            code = body()
        sys.stdout.flush()
    except MPCImagingError as error:
        return complain(error, debug)
    except KeyboardInterrupt:
        print("stopped by the operator", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return fall_silent()
    except OSError as error:  # its message names the file, and with it perhaps a patient
        return complain(MPCImagingError(f"{error.strerror or 'input or output failed'} ({unforeseen(error)})"), debug)
    return code


def pseudonyms(path: Path | None) -> Pseudonyms:
    """Those of the key in ``--key-file``, or without one of a key for this run. Raises `ConfigError`."""
    from mpc_imaging.data.deidentification import Pseudonyms

    return Pseudonyms(secrets.token_bytes(32)) if path is None else Pseudonyms.of_file(path, "--key-file")


def with_progress(files: list[Path], title: str) -> Iterator[Path]:
    """The files one by one, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    yield from track(files, title, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def fall_silent() -> int:
    """Let the interpreter's last flush of a broken pipe not complain; returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
