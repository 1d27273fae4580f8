"""One case, measured: ours and stock CrypTen by turns in processes that stay, and what their numbers come to."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, Job, workload
from benchmarks.ours import BITS
from benchmarks.processes import DEALER, PARTIES, RANKS, Processes
from mpc_imaging.engine.encoding import decode
from mpc_imaging.errors import ConfigError
from mpc_imaging.settings import ProtocolSettings
from mpc_imaging.transport.certificates import make_local

SECONDS = ("online_s", "offline_s", "setup_s", "triples_s")
COUNTS = ("rounds", "sent_bytes", "setup_bytes", "dealer_bytes")
# What a width chosen by the values in plaintext must leave unused (DESIGN section 5).
MARGIN_BITS = 3
# The worst of all repetitions instead of their median.
WORST = ("peak_rss_bytes", "max_error")

Sample = dict[str, float]


def measure(
    case: Case,
    protocol: str,
    repeats: int,
    timeout_s: float,
    progress: Callable[[int], None] = lambda done: None,
    comparison_bits: int | None = None,
) -> dict[str, Any]:
    """The record of a case, as ``--json`` writes it. ``progress`` is told each repetition (0: the warm-up) before it.

    comparison_bits: width of comparisons (fss), None for all bits. timeout_s: how long one system may take for one
    repetition. Raises `BenchmarkError` if a process fails or takes longer. No process is left when this returns or
    raises.
    """
    load = os.getloadavg()[0]
    _check_width(case, comparison_bits)
    reference = workload(case).reference()
    samples: dict[str, list[Sample]] = {"ours": [], "crypten": []}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark_")))
        sides = {
            "ours": stack.enter_context(_ours(folder / "ours", case, protocol, comparison_bits, timeout_s)),
            "crypten": stack.enter_context(_crypten(folder / "crypten", case, timeout_s)),
        }
        for number in range(repeats + 1):
            progress(number)
            for side, processes in sides.items():
                answers = processes.repeat(number)
                sample = _sample(answers)
                sample["max_error"] = _error(_results(folder / side, side, number), reference)
                if number:  # 0 is the warm-up
                    samples[side].append(sample)
    summaries = {side: summarise(taken) for side, taken in samples.items()}
    return {
        "case": case.name,
        "batch": case.batch,
        "elements": case.elements,
        "protocol": protocol,
        "comparison_bits": comparison_bits,
        "repeats": repeats,
        "machine": {
            "cpus": os.cpu_count(),
            "load": load,
            "torch": torch.__version__,
            "crypten": version("crypten"),
        },
        **summaries,
        "ratio": ratios(summaries["ours"], summaries["crypten"]),
    }


def _check_width(case: Case, bits: int | None) -> None:
    """Refuse comparisons that the values of the case, known here in plaintext, do not fit with `MARGIN_BITS` to spare.

    Max-pools compare differences, which may be twice as large.
    """
    largest = 2 * workload(case).largest() * 2.0 ** ProtocolSettings().fraction_bits
    if bits is not None and case.job is not Job.matmul and largest >= 2.0 ** (bits - 1 - MARGIN_BITS):
        raise ConfigError([f"--comparison-bits {bits}: {case.title} needs {math.ceil(math.log2(largest)) + 4} or more"])


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """Medians over the repetitions; of memory and error the largest."""
    summary: dict[str, float] = {name: statistics.median(sample[name] for sample in samples) for name in SECONDS}
    summary |= {name: statistics.median_high(sample[name] for sample in samples) for name in COUNTS}
    return summary | {name: max(sample[name] for sample in samples) for name in WORST}


def total_s(summary: Mapping[str, float]) -> float:
    """Set-up, offline and online together."""
    return sum(summary[name] for name in ("online_s", "offline_s", "setup_s"))


def ratios(ours: Mapping[str, float], crypten: Mapping[str, float]) -> dict[str, float]:
    """How many times as much stock CrypTen needs; ``without_triples``: online, had it its triples for nothing."""
    return {
        "online": crypten["online_s"] / ours["online_s"],
        "without_triples": (crypten["online_s"] - crypten["triples_s"]) / ours["online_s"],
        "total": total_s(crypten) / total_s(ours),
        "bytes": crypten["sent_bytes"] / ours["sent_bytes"],
        "rounds": crypten["rounds"] / ours["rounds"],
    }


def _sample(answers: Mapping[str, Any]) -> Sample:
    """One repetition of one system: the slowest or busiest compute party.

    ``dealer_bytes`` adds up what the dealer sent to each; memory is that of the largest process, the dealer's included.
    """
    costs = [answer["cost"] for answer in answers.values() if answer["cost"]]
    setup_s, setup_wait_s = _seconds([cost["setup"] for cost in costs])
    online_s, wait_s = _seconds([cost["compute"] for cost in costs])
    return {
        "online_s": online_s,
        "offline_s": setup_wait_s + wait_s,
        "setup_s": setup_s,
        "triples_s": max(cost["compute"].get("triples_s", 0.0) for cost in costs),
        "rounds": max(cost["compute"]["rounds"] for cost in costs),
        "sent_bytes": max(cost["compute"]["sent_bytes"] for cost in costs),
        "setup_bytes": max(cost["setup"]["sent_bytes"] for cost in costs),
        "dealer_bytes": sum(phase["dealer_bytes"] for cost in costs for phase in cost.values()),
        "peak_rss_bytes": max(answer["peak_rss_bytes"] for answer in answers.values()),
    }


def _seconds(phases: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Seconds of computing and of waiting for the dealer (at CrypTen: of making triples).

    A party that waits for the other, which waits for the dealer, counts that time as its own: so the first is the
    longest elapsed time less the longest wait.
    """
    wait_s = max(phase["offline_s"] for phase in phases)
    return max(phase["online_s"] + phase["offline_s"] for phase in phases) - wait_s, wait_s


def _results(folder: Path, side: str, number: int) -> dict[str, torch.Tensor]:
    """The results of a repetition in float64: the sum of our parties' shares, or what CrypTen opened."""
    from safetensors.torch import load_file

    files = [folder / f"{name}-{number}.safetensors" for name in (PARTIES if side == "ours" else RANKS[:1])]
    parts = [load_file(file) for file in files]
    for file in folder.glob(f"*-{number}.safetensors"):
        file.unlink()
    if side == "crypten":
        return parts[0]
    first, second = parts
    names = [name for name in first if not name.endswith(BITS)]
    return {name: decode(first[name] + second[name], int(first[name + BITS])) for name in names}


def _error(results: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> float:
    """The largest absolute difference from plaintext."""
    return max(float((results[name] - value).abs().max()) for name, value in reference.items())


@contextlib.contextmanager
def _ours(folder: Path, case: Case, protocol: str, comparison_bits: int | None, timeout_s: float):
    names = (*PARTIES, DEALER)
    make_local(folder, names)
    with contextlib.ExitStack() as stack:
        # Open sockets, so that a free port cannot be lost between choosing and using it.
        listeners = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in names}
        addresses = {name: "{}:{}".format(*listener.getsockname()) for name, listener in listeners.items()}
        spec = _spec(case) | {"protocol": protocol, "comparison_bits": comparison_bits, "addresses": addresses}
        processes = stack.enter_context(Processes("ours", folder, spec, timeout_s))
        processes.start(names, listeners)
        yield processes


@contextlib.contextmanager
def _crypten(folder: Path, case: Case, timeout_s: float):
    folder.mkdir()
    with Processes("crypten", folder, _spec(case), timeout_s) as processes:
        processes.start(RANKS, {})
        yield processes


def _spec(case: Case) -> dict[str, Any]:
    return {"case": case.name, "batch": case.batch, "elements": case.elements}
