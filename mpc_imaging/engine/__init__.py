"""The only package that imports CrypTen: prepares, patches and extends it; offers what tasks and models need of it.

from mpc_imaging import engine

engine.install()  # before or after crypten.init(): CrypTen computes with this package's protocols
"""

from __future__ import annotations

from typing import Any

__all__ = ["install", "uninstall"]


def __getattr__(name: str) -> Any:
    """`install` and `uninstall`, imported when they are asked for: the dealer runs without CrypTen."""
    if name in __all__:
        from mpc_imaging.engine import installation

        return getattr(installation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
