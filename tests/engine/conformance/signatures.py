"""CrypTen's documented signatures, found by introspection, and what of them the cases call, found in their source.

A method is documented by the parameters of the class's function and of its gradient's forward pass, which often differ;
where those say no more than ``*args``, CrypTen hands them on to torch, whose parameters are listed here.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from mpc_imaging.engine import compat

crypten = compat.load()

from crypten.cryptensor import CrypTensor  # noqa: E402
from crypten.gradients import FUNCTION_REGISTRY  # noqa: E402
from crypten.mpc import MPCTensor  # noqa: E402

# Parameters that CrypTen hands on to torch, or to its own sharing.
HANDED_ON: dict[str, tuple[str, ...]] = {
    "add": ("y",), "sub": ("y",), "mul": ("y",), "matmul": ("y",), "sum": ("dim", "keepdim"),
    "mean": ("dim", "keepdim"), "var": ("dim", "unbiased", "keepdim"), "max": ("dim", "keepdim", "one_hot"),
    "min": ("dim", "keepdim", "one_hot"),
    "cumsum": ("dim",), "squeeze": ("dim",), "transpose": ("dim0", "dim1"), "permute": ("dims",), "view": ("shape",),
    "reshape": ("shape",), "flatten": ("start_dim", "end_dim"), "expand": ("sizes",), "repeat": ("repeats",),
    "narrow": ("dim", "start", "length"), "gather": ("dim", "index"), "index_select": ("dim", "index"),
    "flip": ("dims",), "roll": ("shifts", "dims"), "unfold": ("dimension", "size", "step"), "unsqueeze": ("dim",),
    "size": ("dim",), "cat": ("tensors", "dim"), "stack": ("tensors", "dim"), "rand": ("sizes",), "randn": ("sizes",),
    "conv1d": ("kernel", "stride", "padding", "dilation", "groups"),
    "conv2d": ("kernel", "stride", "padding", "dilation", "groups"),
    "conv_transpose1d": ("kernel", "stride", "padding", "output_padding", "groups", "dilation"),
    "conv_transpose2d": ("kernel", "stride", "padding", "output_padding", "groups", "dilation"),
    "avg_pool2d": ("kernel_size", "stride", "padding"), "square": (), "neg": (), "numel": (), "nelement": (), "dim": (),
    "t": (), "trace": (), "softmax": ("dim",), "log_softmax": ("dim",), "new": ("tensor",),
    "to": ("ptype", "precision", "bits"), "set": ("enc_tensor",),
}  # fmt: skip
# What a method's function and its gradient call by two names; the case may use either.
ALIASES = {
    "other": "y", "tensor": "y", "min_value": "min_val", "max_value": "max_val", "padding of pad": "pad", "p": "power",
    "dim of take": "dimension",
}  # fmt: skip


def methods() -> dict[str, tuple[str, ...]]:
    """The public methods of CrypTen's tensors, and their parameters but the tensor itself."""
    names = {name for kind in (CrypTensor, MPCTensor) for name in vars(kind)}
    names |= {name for name, function in FUNCTION_REGISTRY.items() if _own(function)}
    return {name: _parameters_of(name) for name in sorted(names) if name[0] != "_" and callable(_found(name))}


def _found(name: str) -> Any:
    function = inspect.getattr_static(MPCTensor, name, None) or FUNCTION_REGISTRY.get(name)
    return function.__func__ if isinstance(function, (staticmethod, classmethod)) else function


def _parameters_of(name: str) -> tuple[str, ...]:
    if name in HANDED_ON:
        return HANDED_ON[name]
    found: list[str] = []
    static = isinstance(inspect.getattr_static(MPCTensor, name, None), staticmethod)
    if inspect.getattr_static(MPCTensor, name, None) is not None:
        found += _names(_found(name), 0 if static else 1)
    if name in FUNCTION_REGISTRY:
        found += _names(FUNCTION_REGISTRY[name].forward, 2)
    alike = [ALIASES.get(f"{parameter} of {name}", ALIASES.get(parameter, parameter)) for parameter in found]
    return tuple(dict.fromkeys(alike))


def _names(function: Any, skipped: int) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind not in kinds][skipped:]


def functions() -> dict[str, tuple[str, ...]]:
    """The public functions of the module `crypten` itself."""
    found = {name: f for name, f in vars(crypten).items() if inspect.isfunction(f) and name[0] != "_"}
    return {name: HANDED_ON.get(name) or tuple(_names(f, 0)) for name, f in sorted(found.items()) if _own(f)}


def _own(function: Any) -> bool:
    return function.__module__.startswith("crypten")


def modules() -> dict[str, tuple[str, ...]]:
    """The classes of `crypten.nn`, and the parameters of their constructors."""
    found = {name: getattr(crypten.nn, name) for name in crypten.nn.__all__}
    return {name: tuple(_names(kind.__init__, 1)) for name, kind in sorted(found.items()) if inspect.isclass(kind)}


def optimisers() -> dict[str, tuple[str, ...]]:
    """`SGD`, CrypTen's only optimiser, and the parameters of its constructor."""
    return {"SGD": tuple(_names(crypten.optim.SGD.__init__, 1))}


# What the cases call


def calls(*sources: ModuleType) -> dict[str, list[tuple[int, set[str]]]]:
    """By name: of each call the number of its positional arguments, and the names of the others.

    Of functions that stand side by side the first is on CrypTen's tensors, the others on torch's, and not looked at;
    nor are those whose parameters are annotated as torch's tensors.
    """
    found: dict[str, list[tuple[int, set[str]]]] = {}
    for source in sources:
        for call in _shared_calls(ast.parse(inspect.getsource(source))):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            given = {keyword.arg for keyword in call.keywords if keyword.arg}
            # ``*sizes`` is one argument or more.
            found.setdefault(name, []).append((len(call.args), given))
    return found


def _shared_calls(node: ast.AST) -> Iterator[ast.Call]:
    for child in _shared_children(node):
        if isinstance(child, ast.Call) and not _is_of_torch(child.func):
            yield child
        yield from _shared_calls(child)


def _shared_children(node: ast.AST) -> Iterator[ast.AST]:
    lambdas = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and "torch.Tensor" in [
            ast.unparse(a.annotation) for a in child.args.args if a.annotation
        ]:
            continue
        lambdas += isinstance(child, ast.Lambda)
        if not isinstance(child, ast.Lambda) or lambdas == 1:
            yield child


def _is_of_torch(function: ast.expr) -> bool:
    while isinstance(function, ast.Attribute):
        function = function.value
    return isinstance(function, ast.Name) and function.id in ("torch", "F", "nn")


def lacking(documented: dict[str, tuple[str, ...]], called: dict[str, list[tuple[int, set[str]]]]) -> set[str]:
    """Names that no case calls, and ``name.parameter`` that no call gives."""
    found = {name for name in documented if name not in called}
    for name in documented.keys() - found:
        for place, parameter in enumerate(documented[name]):
            names = {parameter} | {alias for alias, target in ALIASES.items() if target == parameter}
            names |= {alias.split(" of ")[0] for alias in names}
            if not any(count > place or given & names for count, given in called[name]):
                found.add(f"{name}.{parameter}")
    return found
