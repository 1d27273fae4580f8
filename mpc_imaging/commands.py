"""What the commands have in common: mistakes in one line, errors without tracebacks, pipes that nobody reads."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import NoReturn

from mpc_imaging.errors import ConfigError, MPCImagingError


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, like every other error, and not its usage first."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{message}; {self.prog} --help explains\n")


def complain(error: MPCImagingError, debug: bool) -> int:
    """Print an error, a line for each problem; returns the exit code."""
    if debug:
        traceback.print_exc()
    for problem in getattr(error, "problems", [str(error)]):
        print(f"error: {problem}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else error.exit_code


def fall_silent() -> int:
    """Let the interpreter's last flush of a broken pipe not complain; returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
