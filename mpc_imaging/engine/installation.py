"""Puts this package's communicator, randomness, protocols and tensor methods into CrypTen, and takes them out again.

Every replacement is listed here with its reason; nothing else in the package touches CrypTen's internals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mpc_imaging.engine import (
    approximations,
    compat,
    config,
    corrected_gradients,
    corrections,
    encoder,
    gates,
    gradients,
    lean,
    standalone,
)
from mpc_imaging.engine.provider import CrypTenProvider
from mpc_imaging.errors import ConfigError, PolicyError
from mpc_imaging.protocols.context import Context
from mpc_imaging.randomness.streams import Stream

crypten = compat.load()

import crypten.gradients as stock  # noqa: E402
from crypten.common import rng  # noqa: E402
from crypten.cryptensor import CrypTensor  # noqa: E402
from crypten.encoder import FixedPointEncoder  # noqa: E402
from crypten.mpc import MPCTensor  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor, arithmetic, binary, converters  # noqa: E402

_MISSING = object()
_undo: list[Callable[[], None]] = []
_alone = False  # installed without a session, on CrypTen's own communicator


def _replace(owner: Any, name: str, value: Any) -> None:
    before = owner.__dict__.get(name, _MISSING)
    _undo.append(lambda: delattr(owner, name) if before is _MISSING else setattr(owner, name, before))
    setattr(owner, name, value)


def install(
    ctx: Context | None = None,
    communicator: Any = None,
    streams: Mapping[str, Stream] | None = None,
    fraction_bits: int | None = None,
    sealed: bool | None = None,
) -> None:
    """Make CrypTen compute with this package's protocols.

    In a session: with `ctx`, over `communicator`. `streams` has ``prev`` and ``next``, shared with the neighbours by
    rank, ``local``, known to this party alone, and ``global``, known to all. `fraction_bits` is 16 unless given.
    `sealed` (off only in tests of CrypTen's own API) makes `get_plain_text` and `reveal` raise `PolicyError`.

    Without arguments, for other people's tests and measurements on one machine: over CrypTen's own communicator, with a
    simulated dealer and nothing sealed, before or after `crypten.init`, which all parties call; again does nothing
    more. The precision is then CrypTen's setting unless given. Warns `SimulatedDealerWarning`; raises `ConfigError`,
    here or in `crypten.init`, if the parties are not all on this machine.
    """
    if ctx is None:
        _install_alone(fraction_bits, bool(sealed))
        return
    uninstall()
    _patch(sealed is not False)
    # Our mesh instead of gloo, which has no encryption and checks nobody's identity.
    _replace(crypten.communicator, "get", lambda: communicator)
    _replace(crypten.communicator, "is_initialized", lambda: True)
    _use(ctx, streams)
    crypten.cfg.encoder.precision_bits = 16 if fraction_bits is None else fraction_bits


def uninstall() -> None:
    """CrypTen as it came."""
    global _alone
    while _undo:
        _undo.pop()()
    gates.set_context(None)
    gradients.unregister()
    _alone = False


def _use(ctx: Context, streams: Mapping[str, Stream]) -> None:
    """Compute with `ctx` from now on, and draw the masks of CrypTen's own protocols from `streams`."""
    gates.set_context(ctx)
    device = torch.device("cpu")
    crypten.generators = {name: {device: stream} for name, stream in streams.items()}
    # Dropout calls torch with this one. What it drops is public, so that 32 bits of seed do no harm.
    seed = int(streams["global"].words(1)[0] >> 1)
    crypten.generators["global"] = {device: torch.Generator(device).manual_seed(seed)}
    provider = CrypTenProvider(ctx)
    crypten.mpc.get_default_provider = lambda: provider


# Without a session


def _install_alone(fraction_bits: int | None, sealed: bool) -> None:
    global _alone
    if not _alone:
        uninstall()
        standalone.warn()
        _patch(sealed)
        # `crypten.init` calls this once its communicator stands, however the caller has got hold of `crypten.init`.
        _replace(crypten, "_setup_prng", _connect)
        _replace(crypten, "init_thread", _no_threads)
        _replace(crypten.communicator, "uninit", _uninitialiser(crypten.communicator.uninit))
        _alone = True
        if crypten.communicator.is_initialized():
            _connect()
    if fraction_bits is not None:
        crypten.cfg.encoder.precision_bits = fraction_bits


def _connect() -> None:
    _use(*standalone.connect(crypten.communicator.get()))


def _uninitialiser(stock: Callable[[], None]) -> Callable[[], None]:
    def uninit() -> None:
        gates.set_context(None)
        stock()

    return uninit


def _no_threads(*args: Any, **kwargs: Any) -> None:
    raise ConfigError(["parties are processes here: one process holds one party's masks; call crypten.init in each"])


# What is replaced


def _random_ring_element(size, ring_size=2**64, generator=None, **kwargs):
    stream = generator if generator is not None else crypten.generators["local"][torch.device("cpu")]
    values = stream.ring(size if isinstance(size, (tuple, torch.Size, list)) else (size,))
    return values if ring_size == 2**64 else values.remainder(ring_size) - ring_size // 2


def _random_bits(size, bitlength=None, generator=None, **kwargs):
    values = _random_ring_element(size, generator=generator)
    return values if bitlength in (None, 64) else values & ((1 << bitlength) - 1)


def _no_seeds(*args: Any, **kwargs: Any) -> None:
    raise PolicyError("masks come from keystreams with fresh keys; crypten.manual_seed cannot repeat them")


def _a2b(tensor):
    """CrypTen's `_A2B` without its handler of RuntimeError: that takes a network fault for lack of memory.

    The party with the fault would then run another protocol than its peers.
    """
    parties = gates.context().channel.parties
    shares = BinarySharedTensor.stack([BinarySharedTensor(tensor.share, src=i) for i in range(parties)])
    result = shares.sum(dim=0)
    result.encoder = tensor.encoder
    return result


def _sealed(*args: Any, **kwargs: Any) -> None:
    raise PolicyError(
        "values are opened by mpc_imaging.parties.reveal only, which asks the policy and writes the ledger"
    )


def _hidden(self) -> str:
    return f"{type(self).__name__}(shape={tuple(self.share.shape)}, share hidden)"


def _patch(sealed: bool) -> None:
    """All replacements but those of the communicator."""
    # Look-ups of settings take a quarter of the time of a small inference: see `config`.
    _undo.append(config.flatten(crypten.cfg))
    _patch_randomness()
    _patch_protocols()
    _patch_overheads()
    # Shares never print their contents.
    for kind in (MPCTensor, ArithmeticSharedTensor, BinarySharedTensor):
        _replace(kind, "__repr__", _hidden)
    if sealed:
        # All other ways lead through these. `BinarySharedTensor.reveal` stays: CrypTen's circuits open masked bits so.
        _replace(MPCTensor, "reveal", _sealed)
        _replace(ArithmeticSharedTensor, "reveal", _sealed)
        _replace(ArithmeticSharedTensor, "reveal_batch", staticmethod(_sealed))
        _replace(BinarySharedTensor, "get_plain_text", _sealed)


def _patch_randomness() -> None:
    # torch's generator keeps 32 bits of a seed: every mask falls to 2**32 guesses. Streams take the generators' place.
    _replace(crypten, "generators", {name: {} for name in crypten.generators})
    for module in (rng, arithmetic):
        _replace(module, "generate_random_ring_element", _random_ring_element)
    for module in (rng, binary):
        _replace(module, "generate_kbit_random_tensor", _random_bits)
    _replace(crypten, "manual_seed", _no_seeds)
    _replace(crypten.mpc, "get_default_provider", gates.context)  # `_use` puts one there


def _patch_protocols() -> None:
    # Products through protocols.bilinear: those of `lean`, and what still looks CrypTen's protocols up by name in this
    # module. Its replicated multiplication sends shares that are not re-randomised (its issue 518).
    _replace(arithmetic, "beaver", gates)
    _replace(arithmetic, "replicated", gates)
    _replace(converters, "_A2B", _a2b)
    # Truncation that cannot fail, where CrypTen's ruins an element with probability |x| / 2**64 (two parties).
    _replace(ArithmeticSharedTensor, "div_", gates.div_)
    # Rounded once and decoded exactly.
    _replace(FixedPointEncoder, "encode", encoder.encode)
    _replace(FixedPointEncoder, "decode", encoder.decode)
    # Comparisons by keys or tables instead of 64-bit adder circuits: 29 or 17 times fewer bytes sent (python -m
    # benchmarks W4_relu).
    methods = {
        "_ltz": gates._ltz,
        "eq": gates.eq,
        "relu": gates.relu,
        "hardtanh": gates.hardtanh,
        "abs": gates.abs_,
        "max": gates.maximum,
        "argmax": gates.argmax,
        "max_pool2d": gates.max_pool2d,
    }
    # CrypTen's come from its exponential and logarithm, which are a few percent off: see `approximations`.
    for name in ("softmax", "log_softmax"):
        methods[name] = corrections.public(name, getattr(MPCTensor, name), getattr(approximations, name))
    # What crashes or is wrong at the edges of its domain: see each in `corrections` and `corrected_gradients`.
    methods |= corrections.METHODS
    _replace(stock, "_inverse_broadcast", corrected_gradients.inverse_broadcast)
    _replace(ArithmeticSharedTensor, "pad", corrections.pad)
    _replace(crypten, "cat", corrections.cat)
    for name, method in methods.items():
        _replace(MPCTensor, name, method)
    gradients.register()


def _patch_overheads() -> None:
    # What they save and set right: see each in `lean`.
    _replace(CrypTensor, "__getattribute__", lean.attribute)
    _replace(MPCTensor, "__init__", lean.initialise)
    _replace(MPCTensor, "from_shares", staticmethod(lean.from_shares))
    _replace(MPCTensor, "clone", lean.clone)
    _replace(MPCTensor, "shallow_copy", lean.shallow_copy)
    _replace(MPCTensor, "detach", lean.detach)
    _replace(MPCTensor, "div", lean.divide)
    _replace(MPCTensor, "__getitem__", lean.item)
    _replace(FixedPointEncoder, "__init__", lean.initialise_encoder)
    _replace(ArithmeticSharedTensor, "__init__", lean.share)
    _replace(ArithmeticSharedTensor, "_arithmetic_function", lean.arithmetic)
    _replace(ArithmeticSharedTensor, "mul", lean.mul)
    _replace(ArithmeticSharedTensor, "neg", lean.neg)
    _replace(ArithmeticSharedTensor, "square", lean.square)
    _replace(ArithmeticSharedTensor, "data", lean.data)
