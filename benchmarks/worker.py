"""One process of a benchmark. `benchmarks.processes` starts it; it is nothing to run by hand.

Lines on standard input are numbers of repetitions, each answered with a line of JSON; results go into files beside. The
end of standard input, which is also how the death of the parent looks, ends the process at once.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from mpc_imaging.errors import MPCImagingError


def main(argv: list[str]) -> int:
    """``SIDE NAME FOLDER [LISTEN_FD]``; FOLDER/spec.json says what to run."""
    commands: queue.Queue[int] = queue.Queue()
    threading.Thread(target=_read, args=(commands,), daemon=True).start()
    # Answers alone go to the parent; whatever a library prints goes to the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        party = _party(*argv)
        answers.write(json.dumps({"ready": True}) + "\n")
        while True:
            answers.write(json.dumps(_repeat(party, Path(argv[2]), argv[1], commands.get())) + "\n")
    except MPCImagingError as error:
        traceback.print_exc()
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", file=sys.stderr, flush=True)
        return 1


def _read(commands: queue.Queue[int]) -> None:
    # Not through sys.stdin: its lock, held by this thread, would make the interpreter crash at its end.
    pending = b""
    while chunk := os.read(0, 1024):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            commands.put(int(line))
    os._exit(0)


def _party(side: str, name: str, folder: str, listen_fd: str | None = None) -> Any:
    import torch

    from benchmarks.cases import CASES

    torch.set_num_threads(1)
    spec = json.loads((Path(folder) / "spec.json").read_text())
    case = CASES[spec["case"]].sized(spec["batch"], spec["elements"])
    # Imported here: a process of ours must not hold CrypTen's patches for counting, nor the dealer CrypTen.
    if side == "crypten":
        from benchmarks.stock import StockParty

        return StockParty(Path(folder), name, case)
    from benchmarks.ours import OurParty, settings

    listener = socket.socket(fileno=int(listen_fd))
    ours = settings(spec["protocol"], spec["comparison_bits"], spec["addresses"])
    return OurParty(Path(folder), name, case, ours, listener)


def _repeat(party: Any, folder: Path, name: str, number: int) -> dict[str, Any]:
    from safetensors.torch import save_file

    cost, result = party.run()
    save_file({key: value.contiguous() for key, value in result.items()}, folder / f"{name}-{number}.safetensors")
    return {"cost": cost, "peak_rss_bytes": peak_rss_bytes()}


def peak_rss_bytes() -> int:
    """The most memory that this process has held so far."""
    if sys.platform == "linux":
        # Not getrusage: that one begins with the size of the parent, from before exec.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
