"""CrypTen's public API, with the engine installed and a simulated dealer over gloo, gives the right answers.

Parties are processes that call `crypten.init` themselves, as CrypTen's own tests do. Each case is compared with torch:
values, and gradients where it has them (`tests/engine/conformance`). Every documented signature of CrypTen has a case,
or a reason here why not.
"""

from __future__ import annotations

import re

import pytest
import torch

from mpc_imaging.engine import compat
from mpc_imaging.errors import PolicyError
from tests.engine.alone import alone
from tests.engine.conformance import cases, completions, edges, modules, signatures, training
from tests.engine.conformance.cases import CASES
from tests.engine.conformance.compare import problems, refused
from tests.engine.conformance.completions import COMPLETIONS
from tests.engine.conformance.edges import EDGES
from tests.engine.conformance.everything import FUNCTIONS
from tests.engine.conformance.processes import LOST, outcomes
from tests.engine.conformance.training import TRAINING

crypten = compat.load()

# Signatures without a case, and why.
NO_CASE = {
    "backward.top_node": "CrypTen's own recursion gives it",
    "cuda": "shares stay on the processor",
    "var.unbiased": "has the opposite meaning: see `LEFT`",
    "GroupNorm": "its constructor raises NotImplementedError",
    "Module": "the base of all others",
    "_Loss": "the base of all losses",
    "manual_seed": "refused: see `LEFT`",
    "init_thread": "refused: see test_standalone",
} | dict.fromkeys(
    (
        "bernoulli.cryptensor_type", "get_cryptensor_type", "get_default_cryptensor_type", "register_cryptensor",
        "set_default_cryptensor_type", "init", "uninit", "print", "log.dst", "log.in_order",
        "print_communication_stats", "reset_communication_stats", "fill_cache", "trace", "trace_once",
        "load.load_closure", "load_from_party.load_closure", "load_from_party.model_class", "save.save_closure",
        "save_from_party.save_closure",
    ),
    "about processes, files, kinds of tensors and their providers, not values; the engine leaves it as it is",
)  # fmt: skip

LEFT = {
    "var(unbiased=...) has the opposite meaning, which CrypTen's batch-norm relies on": lambda x: (
        _close(x.var(unbiased=True), x.get_plain_text().var(unbiased=False)),
        _close(x.var(), x.get_plain_text().var()),
    ),
    "var(dim=0) ignores a dimension that is given by name; var(0) works": lambda x: _close(
        x.var(dim=0), x.get_plain_text().var()
    ),
    "avg_pool2d has no ceil_mode": lambda x: (
        _raises(NotImplementedError, x.view(1, 1, 3, 4).avg_pool2d, 2, ceil_mode=True),
        _raises(NotImplementedError, x.detach().view(1, 1, 3, 4).avg_pool2d, 2, ceil_mode=True),
    ),
    "from_pytorch needs torch's removed ONNX export; models.convert takes its place": lambda x: _raises(
        NotImplementedError, crypten.nn.from_pytorch, torch.nn.Linear(2, 2), torch.ones(1, 2)
    ),
    "manual_seed: keystreams have fresh keys": lambda x: _raises(PolicyError, crypten.manual_seed, 1, 2, 3),
    "inv_sqrt and cossin have no gradients, and cannot be called where some are recorded": lambda x: (
        _raises(RuntimeError, x.inv_sqrt),
        _raises(RuntimeError, x.cossin),
    ),
    "expand, repeat, unfold, prod and global pooling end the graph": lambda x: _unrecorded(
        x.expand(2, 3, 4), x.repeat(2, 1), x.unfold(1, 2, 1), x.prod(0),
        crypten.nn.GlobalAveragePool().encrypt()(x.view(1, 3, 4)),
    ),
    "the gradient's `pad` takes the value before the mode": lambda x: _close(
        x.pad((1, 1), 2.0), torch.nn.functional.pad(x.get_plain_text(), (1, 1), value=2.0)
    ),
}  # fmt: skip


def _close(ours, theirs):
    assert torch.allclose(ours.get_plain_text(), theirs, atol=1e-3)


def _raises(error, function, *args, **kwargs):
    with pytest.raises(error):
        function(*args, **kwargs)


def _unrecorded(*results):
    assert not any(x.requires_grad for x in results)


@pytest.mark.parametrize("name", LEFT)
def test_left_as_in_crypten(name):
    """What CrypTen as it comes gets wrong or lacks, and we leave so; and what we refuse."""
    with alone():
        LEFT[name](crypten.cryptensor(torch.tensor([[1.0, 2, 4, 8], [3, 5, 7, 9], [0, 1, 0, 1]]), requires_grad=True))


def test_every_documented_signature_has_a_case():
    called = signatures.calls(cases, completions, edges, modules, training)
    called["SGD"] += called["_steps"]  # which hands all on to it
    documented = [signatures.methods(), signatures.functions(), signatures.modules(), signatures.optimisers()]
    assert [len(names) > least for names, least in zip(documented, (100, 25, 60, 0), strict=True)] == [True] * 4
    lacking = set().union(*(signatures.lacking(names, called) for names in documented))
    lacking -= {name for name in lacking if name.split(".")[0] in NO_CASE}
    assert lacking - NO_CASE.keys() == set(), "signatures without a case"


def test_initialisers_have_a_case():
    assert set(crypten.nn.init.__all__) == modules.INITIALISERS.keys()


def test_what_has_a_case_needs_no_reason():
    called = signatures.calls(cases, completions, edges, modules, training)
    documented = signatures.methods() | signatures.functions() | signatures.modules()
    lacking = signatures.lacking(documented, called)
    named = {name.split(".")[0] for name in lacking} | lacking
    assert NO_CASE.keys() - named == set()


def _found(parties, folder, names, before):
    found = []
    for name, good, outcome in outcomes(parties, folder, names, before):
        if not refused(name):
            found += problems(name, outcome) if good else [f"{name}: {outcome}"]
        elif good or LOST in outcome:
            found.append(f"{name}: {'an answer' if good else LOST}, where torch refuses")
    assert not found, f"{len(found)} problems:\n" + "\n".join(found)


# Of the edges those of scalars, and ties; all of them take longer.
FEW = [name for name in EDGES if name.startswith("tie") or name.endswith(": scalar")]


@pytest.mark.parametrize(("parties", "before"), [(2, True), pytest.param(3, False, marks=pytest.mark.slow)])
def test_public_api(parties, before, tmp_path):
    """All at once, since starting the parties takes longer than most cases."""
    more = FEW + [*COMPLETIONS, *modules.MODULES] if parties == 2 else []
    _found(parties, tmp_path, [*CASES, *TRAINING, *more], before)


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3])
def test_public_api_at_its_edges(parties, tmp_path):
    names = [*EDGES, *COMPLETIONS, *modules.MODULES] if parties == 3 else [*EDGES]
    _found(parties, tmp_path, names, True)


def test_edges_are_refused_for_what_they_are():
    """Each function has an answer for another shape, so that a mistake in a case does not pass for an edge."""
    by_function = {}
    for name in EDGES:
        function = re.sub(r" -?\d", "", name.rsplit(": ", 1)[0])
        by_function.setdefault(function, []).append(refused(name))
    assert len(by_function) > 90
    assert not [function for function, outcomes_of in by_function.items() if all(outcomes_of)]
    assert sum(map(sum, by_function.values())) < len(EDGES) / 5
    others = {name for name in FUNCTIONS.keys() - EDGES.keys() if refused(name)}
    assert others == {f"refused: {name}" for name in completions.REFUSED}
