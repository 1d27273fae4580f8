"""Parts of a store are for their party's eyes alone, and the dealer's work: sealed to a public key, and signed.

What opens a session is sealed to the key of the party's certificate by HPKE (RFC 9180, base mode; DHKEM(P-256,
HKDF-SHA256), HKDF-SHA256, AES-256-GCM), and the result is signed with the key of the dealer's certificate (ECDSA with
SHA-256). Both bind the names and keys of dealer and party, and all that is public of what is sealed: a part opens at
its party only, and only as what the dealer made. Each session is sealed by itself, so what is left of a store in use
opens no session that was used.

One key signs and opens: what it signs in TLS begins with 64 spaces (RFC 8446, section 4.4.3), and here with a length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

SIGNATURE = 64  # bytes: r and s
OVERHEAD = 65 + 16  # bytes that sealing adds: a point of P-256 and the tag

_SUITE = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_HASH = ec.ECDSA(hashes.SHA256())


def key_digest(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of a public key (SubjectPublicKeyInfo, DER), 32 bytes."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize()


@dataclass(frozen=True)
class _Between:
    """From whom to whom: what everything that is sealed or signed is bound to."""

    dealer: str
    party: str
    dealer_key: ec.EllipticCurvePublicKey = field(repr=False)
    party_key: ec.EllipticCurvePublicKey = field(repr=False)

    def bind(self, label: str, public: bytes) -> bytes:
        texts = (f"mpc_imaging {label}", self.dealer, self.party)
        keys = (key_digest(self.dealer_key), key_digest(self.party_key))
        items = (*(text.encode() for text in texts), *keys, public)
        return b"".join(len(item).to_bytes(4, "big") + item for item in items)


class PartSealer:
    """The dealer's side of one party's part. ``certificate``: the dealer's, PEM."""

    def __init__(
        self,
        dealer: str,
        dealer_key: ec.EllipticCurvePrivateKey,
        certificate: str,
        party: str,
        party_key: ec.EllipticCurvePublicKey,
    ) -> None:
        self._key, self._between = dealer_key, _Between(dealer, party, dealer_key.public_key(), party_key)
        self.dealer, self.party, self.certificate = dealer, party, certificate
        self.sealed_to = key_digest(party_key).hex()

    def seal(self, label: str, public: bytes, secret: bytes) -> bytes:
        """``secret``, readable by the party alone and together with the same ``label`` and ``public``."""
        return _SUITE.encrypt(secret, self._between.party_key, self._between.bind(label, public))

    def sign(self, label: str, public: bytes) -> bytes:
        """The dealer's signature, `SIGNATURE` bytes."""
        r, s = decode_dss_signature(self._key.sign(self._between.bind(label, public), _HASH))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class PartOpener:
    """The party's side of its part, for the dealer whose key is ``dealer_key``."""

    def __init__(
        self,
        dealer: str,
        dealer_key: ec.EllipticCurvePublicKey,
        party: str,
        party_key: ec.EllipticCurvePrivateKey,
    ) -> None:
        self._key, self._between = party_key, _Between(dealer, party, dealer_key, party_key.public_key())
        self.dealer = dealer

    def signed(self, label: str, public: bytes, signature: bytes) -> bool:
        """Whether the dealer signed this for this party."""
        if len(signature) != SIGNATURE:
            return False
        r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        try:
            self._between.dealer_key.verify(encode_dss_signature(r, s), self._between.bind(label, public), _HASH)
        except InvalidSignature:
            return False
        return True

    def unseal(self, label: str, public: bytes, sealed: bytes) -> bytes | None:
        """What was sealed to this party with the same ``label`` and ``public``; None for anything else."""
        try:
            return _SUITE.decrypt(sealed, self._key, self._between.bind(label, public))
        except (InvalidTag, ValueError):
            return None


@dataclass(frozen=True)
class Recipient:
    """A compute party that opens parts: its private key, and how it knows the dealer.

    check: the public key of a certificate (PEM) that must be the dealer's, issued by the consortium's authority and in
    its time; raises `StoreError` for any other.
    """

    party: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    dealer: str
    check: Callable[[bytes], ec.EllipticCurvePublicKey]

    @property
    def digest(self) -> str:
        """Of this party's public key: what its parts are sealed to."""
        return key_digest(self.key.public_key()).hex()

    def opener(self, certificate: bytes) -> PartOpener:
        """For parts by the dealer whose certificate this is."""
        return PartOpener(self.dealer, self.check(certificate), self.party, self.key)
