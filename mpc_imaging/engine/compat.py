"""Loads CrypTen on a current torch.

CrypTen imports ONNX, and parts of `torch.onnx` that torch has removed, at import time, for `crypten.nn.from_pytorch`
alone. This package converts models with torch.fx instead (`mpc_imaging.models.convert`), so stand-ins take the place of
those modules while CrypTen is imported; whatever else in the process wants the real ones gets them afterwards.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch.onnx

_STANDINS = (
    "onnx",
    "onnx.numpy_helper",
    "torch.onnx.symbolic_helper",
    "torch.onnx.utils",
    "torch.onnx.symbolic_registry",
    "torch.onnx._internal.registration",
    "tensorflow",
)
_ATTRIBUTES = ("symbolic_helper", "utils", "OperatorExportTypes")  # of torch.onnx


class _Standin(ModuleType):
    """An empty module whose use says what to do instead."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(
            f"{self.__name__} is not loaded: CrypTen's ONNX import is replaced by mpc_imaging.models.convert, "
            "which uses torch.fx"
        )


def load() -> ModuleType:
    """The `crypten` module, imported with stand-ins for ONNX. Later calls return the same module."""
    if "crypten" in sys.modules:
        return sys.modules["crypten"]
    names = [name for name in _STANDINS if name != "tensorflow"]
    saved = {name: sys.modules.get(name) for name in _STANDINS}
    attributes = {name: getattr(torch.onnx, name) for name in _ATTRIBUTES if name in torch.onnx.__dict__}
    for name in names:
        sys.modules[name] = _Standin(name)
    # None makes the import fail at once: CrypTen looks for TensorFlow, which would take seconds where it is installed.
    sys.modules["tensorflow"] = None
    sys.modules["onnx"].numpy_helper = sys.modules["onnx.numpy_helper"]
    # CrypTen decorates functions with this at import time; they are never called.
    sys.modules["torch.onnx.symbolic_helper"].parse_args = lambda *kinds: lambda function: function
    torch.onnx.symbolic_helper = sys.modules["torch.onnx.symbolic_helper"]
    torch.onnx.utils = sys.modules["torch.onnx.utils"]
    # What from_pytorch touches first: it then says what to do instead, whether or not torch still has the real one.
    torch.onnx.OperatorExportTypes = _Standin("torch.onnx.OperatorExportTypes")
    try:
        import crypten
    finally:
        for name, module in saved.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
        for name in _ATTRIBUTES:
            if name in attributes:
                setattr(torch.onnx, name, attributes[name])
            else:
                delattr(torch.onnx, name)
    return crypten
