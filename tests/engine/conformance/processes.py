"""Parties as a foreign test-suite has them: processes that meet by gloo, and call `crypten.init` themselves."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpc_imaging import engine
from mpc_imaging.engine import compat
from mpc_imaging.engine.standalone import SimulatedDealerWarning
from tests.engine.conformance.cases import Case
from tests.engine.conformance.everything import FUNCTIONS, WHOLES
from tests.engine.parties import fork_server

crypten = compat.load()

from crypten.cryptensor import CrypTensor  # noqa: E402
from crypten.mpc.primitives import BinarySharedTensor  # noqa: E402

WAIT_S = 60.0
LOST = f"no answer: the party is gone, or waited {WAIT_S:.0f} s for its peers"


def _environment(rank: int, parties: int, rendezvous: Path) -> dict[str, str]:
    return {
        "RENDEZVOUS": f"file://{rendezvous}",
        "WORLD_SIZE": str(parties),
        "RANK": str(rank),
        "DISTRIBUTED_BACKEND": "gloo",
    }


def _party(pipe: Any, rank: int, parties: int, rendezvous: Path, names: list[str], before: bool | None) -> None:
    torch.set_num_threads(1)
    os.environ |= _environment(rank, parties, rendezvous)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SimulatedDealerWarning)
        if before:
            engine.install()
        crypten.init()
        if before is not None:
            engine.install()  # the first or, harmlessly, the second time
    for name in names:
        try:
            outcome = WHOLES[name].shared() if name in WHOLES else _outcome(FUNCTIONS[name])
            pipe.send((True, _mapped(outcome, torch.Tensor, torch.Tensor.numpy)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
    crypten.uninit()


def _mapped(value: Any, kind: Any, function: Any) -> Any:
    """The same dicts and lists with everything of a type replaced."""
    if isinstance(value, dict):
        return {key: _mapped(entry, kind, function) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(entry, kind, function) for entry in value]
    return function(value) if isinstance(value, kind) else value


def _opened(value: Any) -> Any:
    return _mapped(value, (CrypTensor, BinarySharedTensor), lambda x: x.get_plain_text())


def weights_of(result: torch.Tensor) -> torch.Tensor:
    """What the result is multiplied with before its gradient is taken: not all alike."""
    return torch.linspace(-1, 1, result.numel()).add(0.1).view(result.shape)


def _outcome(case: Case) -> dict[str, Any]:
    recorded = case.gradient or case.recorded
    inputs = {
        name: value if name.startswith("p_") else crypten.cryptensor(value, requires_grad=recorded)
        for name, value in case.inputs.items()
    }
    result = case.shared(*inputs.values())
    outcome = {"value": _opened(result)}
    if case.gradient:
        (result * weights_of(outcome["value"])).sum().backward()
        outcome |= {f"gradient of {name}": _opened(x.grad) for name, x in inputs.items() if not name.startswith("p_")}
    return outcome


def outcomes(parties: int, folder: Path, names: list[str], before: bool | None) -> Iterator[tuple[str, bool, Any]]:
    """Run cases at `parties` parties: of each its name, whether all parties got through, and the first one's outcome.

    `before`: whether the engine is installed before `crypten.init`, or None for CrypTen as it comes. If a party fails
    and its peers do not, all are ended, and new ones go on with the next case.
    """
    todo, starts = list(names), 0
    while todo:
        group = _start(parties, folder / f"rendezvous_{starts}", todo, before)
        starts += 1
        try:
            together = True
            while todo and together:
                name = todo.pop(0)
                answers = [_answer(pipe) for pipe, _ in group]
                failures = [text for good, text in answers if not good]
                together = len(failures) in (0, parties) and LOST not in failures
                yield name, not failures, "\n".join(failures) if failures else answers[0][1]
        finally:
            for pipe, process in group:
                process.join(0 if todo else 10)
                process.kill()
                pipe.close()


def _start(parties: int, rendezvous: Path, names: list[str], before: bool | None) -> list[tuple[Any, Any]]:
    server = fork_server()
    group = []
    for rank in range(parties):
        mine, theirs = server.Pipe(duplex=False)
        process = server.Process(target=_party, args=(theirs, rank, parties, rendezvous, names, before), daemon=True)
        process.start()
        theirs.close()
        group.append((mine, process))
    return group


def _answer(pipe: Any) -> tuple[bool, Any]:
    try:
        # Arrays: torch would send a handle of memory that goes with the process.
        return _mapped(pipe.recv(), np.ndarray, torch.from_numpy) if pipe.poll(WAIT_S) else (False, LOST)
    except EOFError:
        return False, LOST
