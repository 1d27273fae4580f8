"""Puts this package's communicator, randomness, protocols and tensor methods into CrypTen, and takes them out again.

Every replacement is listed in `install` with its reason; nothing else in the package touches CrypTen's internals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

from mpc_imaging.engine import compat, gates, gradients
from mpc_imaging.engine.provider import CrypTenProvider
from mpc_imaging.errors import PolicyError
from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.streams import Stream

crypten = compat.load()

from crypten.common import rng  # noqa: E402
from crypten.encoder import FixedPointEncoder  # noqa: E402
from crypten.mpc import MPCTensor  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor, arithmetic, binary, converters  # noqa: E402

_MISSING = object()
_undo: list[tuple[Any, str, Any]] = []


def _replace(owner: Any, name: str, value: Any) -> None:
    _undo.append((owner, name, owner.__dict__.get(name, _MISSING)))
    setattr(owner, name, value)


def uninstall() -> None:
    """CrypTen as it came."""
    while _undo:
        owner, name, value = _undo.pop()
        if value is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, value)
    gates.set_context(None)
    gradients.unregister()


def _random_ring_element(size, ring_size=2**64, generator=None, **kwargs):
    stream = generator if generator is not None else crypten.generators["local"][torch.device("cpu")]
    values = stream.ring(size if isinstance(size, (tuple, torch.Size, list)) else (size,))
    return values if ring_size == 2**64 else values.remainder(ring_size) - ring_size // 2


def _random_bits(size, bitlength=None, generator=None, **kwargs):
    values = _random_ring_element(size, generator=generator)
    return values if bitlength in (None, 64) else values & ((1 << bitlength) - 1)


def _a2b(tensor):
    """CrypTen's `_A2B` without its handler of RuntimeError: that takes a network fault for lack of memory.

    The party with the fault would then run another protocol than its peers.
    """
    parties = gates.context().channel.parties
    shares = BinarySharedTensor.stack([BinarySharedTensor(tensor.share, src=i) for i in range(parties)])
    result = shares.sum(dim=0)
    result.encoder = tensor.encoder
    return result


def _sealed(*args, **kwargs):
    raise PolicyError(
        "values are opened by mpc_imaging.parties.reveal only, which asks the policy and writes the ledger"
    )


def _hidden(self) -> str:
    return f"{type(self).__name__}(shape={tuple(self.share.shape)}, share hidden)"


def install(
    ctx: Context, communicator: Any, streams: Mapping[str, Stream], fraction_bits: int = 16, sealed: bool = True
) -> None:
    """Make CrypTen compute with `ctx`.

    `streams` has ``prev`` and ``next``, shared with the neighbours by rank, ``local``, known to this party alone, and
    ``global``, known to all. `sealed` (off in tests of CrypTen's own API) makes `get_plain_text` and `reveal` of
    tensors raise `PolicyError`.
    """
    uninstall()
    gates.set_context(ctx)
    # Our mesh instead of gloo, which has no encryption and checks nobody's identity.
    _replace(crypten.communicator, "get", lambda: communicator)
    _replace(crypten.communicator, "is_initialized", lambda: True)
    # torch's generator keeps 32 bits of a seed: every mask falls to 2**32 guesses. Streams take the generators' place.
    device = torch.device("cpu")
    _replace(crypten, "generators", {name: {device: stream} for name, stream in streams.items()})
    for module in (rng, arithmetic):
        _replace(module, "generate_random_ring_element", _random_ring_element)
    for module in (rng, binary):
        _replace(module, "generate_kbit_random_tensor", _random_bits)
    provider = CrypTenProvider(ctx)
    _replace(crypten.mpc, "get_default_provider", lambda: provider)
    # Products through protocols.bilinear; CrypTen looks its protocol up by name in this module.
    _replace(arithmetic, "beaver", gates)
    _replace(converters, "_A2B", _a2b)
    # Truncation that cannot fail, where CrypTen's ruins an element with probability |x| / 2**64 (two parties).
    _replace(ArithmeticSharedTensor, "div_", gates.div_)
    _replace(FixedPointEncoder, "encode", gates.encode)
    _replace(FixedPointEncoder, "decode", gates.decode)
    # Comparisons by tables instead of 64-bit adder circuits: a seventeenth of the bytes (python -m benchmarks W4_relu).
    methods = {
        "_ltz": gates._ltz,
        "eq": gates.eq,
        "relu": gates.relu,
        "abs": gates.abs_,
        "max": gates.maximum,
        "argmax": gates.argmax,
        "max_pool2d": gates.max_pool2d,
    }
    for name, method in methods.items():
        _replace(MPCTensor, name, method)
    gradients.register()
    # Shares never print their contents.
    for kind in (MPCTensor, ArithmeticSharedTensor, BinarySharedTensor):
        _replace(kind, "__repr__", _hidden)
    if sealed:
        # All other ways lead through these. `BinarySharedTensor.reveal` stays: CrypTen's circuits open masked bits so.
        _replace(MPCTensor, "reveal", _sealed)
        _replace(ArithmeticSharedTensor, "reveal", _sealed)
        _replace(ArithmeticSharedTensor, "reveal_batch", staticmethod(_sealed))
        _replace(BinarySharedTensor, "get_plain_text", _sealed)
    _replace(crypten.cfg, "config", OmegaConf.merge(crypten.cfg.config, {"encoder": {"precision_bits": fraction_bits}}))
