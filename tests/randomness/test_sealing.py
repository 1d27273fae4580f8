"""A part opens at its party alone, and only as what the dealer made of it."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mpc_imaging.randomness.sealing import OVERHEAD, SIGNATURE, PartOpener, PartSealer, key_digest

KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("dealer", "a", "b")}
SECRET = bytes(range(64))


def sealer(dealer="dealer", party="a", dealer_key="dealer", party_key="a"):
    return PartSealer(dealer, KEYS[dealer_key], "certificate", party, KEYS[party_key].public_key())


def opener(dealer="dealer", party="a", dealer_key="dealer", party_key="a"):
    return PartOpener(dealer, KEYS[dealer_key].public_key(), party, KEYS[party_key])


def test_the_party_reads_what_the_dealer_sealed_and_signed():
    sealed, signature = sealer().seal("x", b"public", SECRET), sealer().sign("x", b"public")
    assert (len(sealed), len(signature)) == (len(SECRET) + OVERHEAD, SIGNATURE)
    assert opener().unseal("x", b"public", sealed) == SECRET and opener().signed("x", b"public", signature)
    assert SECRET not in sealed and sealer().seal("x", b"public", SECRET) != sealed
    assert sealer().sealed_to == key_digest(KEYS["a"].public_key()).hex()


@pytest.mark.parametrize(
    "change",
    [{"dealer": "b"}, {"party": "b"}, {"dealer_key": "b"}, {"party_key": "b"}, {"dealer": "deale", "party": "ra"}],
    ids=str,
)
def test_names_and_keys_of_both_are_bound(change):
    for one, other in ((sealer(**change), opener()), (sealer(), opener(**change))):
        assert other.unseal("x", b"public", one.seal("x", b"public", SECRET)) is None
        assert not other.signed("x", b"public", one.sign("x", b"public"))


def test_every_byte_counts():
    sealed, signature = sealer().seal("x", b"public", SECRET), sealer().sign("x", b"public")
    for label, public in (("y", b"public"), ("x", b"publid"), ("x", b""), ("xpublic", b"")):
        assert opener().unseal(label, public, sealed) is None and not opener().signed(label, public, signature)
    for text, read in (
        (sealed, lambda text: opener().unseal("x", b"public", text) is None),
        (signature, lambda text: not opener().signed("x", b"public", text)),
    ):
        spoiled = [text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :] for at in range(len(text))]
        for changed in (*spoiled, b"", text[:-1], text + b"\0", bytes(len(text)), b"\xff" * len(text)):
            assert read(changed)
