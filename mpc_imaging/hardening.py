"""What a process that holds shares, keys or images asks of the system, before it holds any: nothing of its memory is
written to disk when it crashes, and no other process of the same user may read it.

On Linux both; on other systems core dumps alone are switched off. Memory that the system swaps out is not covered:
SECURITY.md says what an operator does about that.
"""

from __future__ import annotations

import resource
import sys

_SET_DUMPABLE, _GET_DUMPABLE = 4, 3  # of prctl(2)


def harden() -> None:
    """Switch core dumps off, and on Linux reading by debuggers. Children inherit the first alone: each calls this."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _prctl(_SET_DUMPABLE, 0)


def state() -> dict[str, int | bool | None]:
    """The largest core dump of this process, in bytes, and whether it is dumpable (None where nobody can say)."""
    dumpable = bool(_prctl(_GET_DUMPABLE, 0)) if sys.platform == "linux" else None
    return {"core": resource.getrlimit(resource.RLIMIT_CORE)[1], "dumpable": dumpable}


def _prctl(option: int, argument: int) -> int:
    import ctypes

    return ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)
