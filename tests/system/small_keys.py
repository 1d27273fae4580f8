"""The commands as they are, with TLS keys that are worn after a few kilobytes.

    python -m tests.system.small_keys mpc_imaging ARGUMENTS            all parties
    python -m tests.system.small_keys mpc_imaging.party ARGUMENTS      one

The folder in the environment variable `SWITCHES` gets a file for each process, a line for each new key.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys
from pathlib import Path

from mpc_imaging.transport import renewal, tls

SWITCHES = "MPC_IMAGING_TEST_SWITCHES"
SPARES = "MPC_IMAGING_TEST_SPARES"
KEY_OCTETS = 1 << 15


def shrink(folder: Path) -> None:
    """Small keys, and a file that tells how often this process moved to a new one."""
    tls.KEY_OCTETS = KEY_OCTETS
    renewal.MAX_SPARES = int(os.environ.get(SPARES, "5000"))
    switch = tls.TlsSocket.switch_sending

    def counted(self: tls.TlsSocket) -> None:
        switch(self)
        with (folder / str(os.getpid())).open("a") as file:
            file.write(f"{id(self)}\n")

    tls.TlsSocket.switch_sending = counted


def _command(party: str, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "tests.system.small_keys", "mpc_imaging.party", f"party={party}", *options]


def main() -> None:
    """Run the module that the command line names."""
    module, sys.argv = sys.argv[1], sys.argv[1:]
    shrink(Path(os.environ[SWITCHES]))
    if module == "mpc_imaging":
        from mpc_imaging import app
        from mpc_imaging.parties.launcher import launch

        app.launch = functools.partial(launch, command=_command)
        sys.exit(app.main())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
