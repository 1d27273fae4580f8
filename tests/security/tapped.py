"""The commands as they are, with every octet written down that goes into TLS and comes out of it.

    python -m tests.security.tapped mpc_imaging ARGUMENTS            all parties
    python -m tests.security.tapped mpc_imaging.party ARGUMENTS      one

The folder is in the environment variable `TAP`: a file for each connection and direction.
"""

from __future__ import annotations

import functools
import itertools
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from mpc_imaging.transport.tls import TlsSocket

TAP = "MPC_IMAGING_TEST_TAP"


def tap(folder: Path) -> None:
    """Write what this process sends and receives into ``folder``."""
    numbers = itertools.count()
    begin, send, receive_into = TlsSocket.__init__, TlsSocket.send, TlsSocket.receive_into

    def tapped_begin(self: TlsSocket, *arguments: Any, **keywords: Any) -> None:
        begin(self, *arguments, **keywords)
        name = f"{os.getpid()}-{next(numbers)}"
        self.tapes = [(folder / f"{name}.{way}").open("wb", buffering=0) for way in ("sent", "received")]

    def tapped_send(self: TlsSocket, data: memoryview) -> int:
        taken = send(self, data)
        self.tapes[0].write(data[:taken])
        return taken

    def tapped_receive(self: TlsSocket, view: memoryview) -> int:
        size = receive_into(self, view)
        self.tapes[1].write(view[:size])
        return size

    TlsSocket.__init__, TlsSocket.send, TlsSocket.receive_into = tapped_begin, tapped_send, tapped_receive


def _command(party: str, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "tests.security.tapped", "mpc_imaging.party", f"party={party}", *options]


def main() -> None:
    """Run the module that the command line names."""
    module, sys.argv = sys.argv[1], sys.argv[1:]
    tap(Path(os.environ[TAP]))
    if module == "mpc_imaging":
        from mpc_imaging import app
        from mpc_imaging.parties.launcher import launch

        app.launch = functools.partial(launch, command=_command)
        sys.exit(app.main())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
