"""Certificates for parts of a store: to whom the dealer seals them, and by whom a party believes them to be.

On machines of their own, the dealer's folder of certificates gets the certificates of the compute parties, which are no
secret: ``peers/<party>.crt``. For a trial on one machine the store itself holds keys of all parties, made for it alone.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mpc_imaging.errors import ConfigError
from mpc_imaging.randomness.sealing import PartSealer, Recipient, key_digest
from mpc_imaging.randomness.store_files import REDO, StoreError, os_errors
from mpc_imaging.transport.certificates import AUTHORITY_DAYS, CertificateError, Credentials, make_local

if TYPE_CHECKING:
    from mpc_imaging.settings import Settings

PEERS = "peers"
# In a store: the certificates and keys of all parties, for runs on one machine. With a dot, it is no party's name.
TRIAL = "certificates.trial"


def sealers(folder: Path, dealer: str, parties: Sequence[str]) -> list[PartSealer]:
    """What seals the part of each compute party, by rank, as the dealer whose certificates are in ``folder``.

    Raises `ConfigError` with all problems: of the dealer's own certificate, and of each party's that is missing,
    expired, of another name or authority, or that has another's key.
    """
    try:
        credentials = Credentials(folder, dealer)
        key = credentials.key()
    except CertificateError as error:
        raise ConfigError([f"transport.certificates: {error}"]) from None
    pem = credentials.certificate.public_bytes(serialization.Encoding.PEM).decode()
    seen = {key_digest(key.public_key()): dealer}
    parts, problems = [], []
    for party in parties:
        try:
            public = _public_key(_peer(credentials, party))
        except CertificateError as error:
            problems.append(f"transport.certificates: {error}")
            continue
        other = seen.setdefault(key_digest(public), party)
        if other != party:
            problems.append(f"transport.certificates: {party} and {other} have the same key; each makes its own")
        parts.append(PartSealer(dealer, key, pem, party, public))
    if problems:
        raise ConfigError(problems)
    return parts


def _peer(credentials: Credentials, party: str) -> x509.Certificate:
    """A compute party's certificate: among the dealer's, or where one folder has those of all parties."""
    places = (credentials.folder / PEERS / f"{party}.crt", credentials.folder.absolute().parent / party / "party.crt")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        what = f"put its party.crt (no secret; from {party}, or from the authority) at {places[0]}"
        raise CertificateError(f"there is no certificate of {party}, to seal its part to; {what}")
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from None
    return credentials.peer(pem, party, str(path))


def _public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # `Credentials.peer` has looked
    return key


@contextlib.contextmanager
def trial_sealers(root: Path, settings: Settings) -> Iterator[list[PartSealer]]:
    """As `sealers`, for a trial: certificates of all parties are made, and kept in the store, but for the dealer's key.

    root: the store's folder. An error inside removes what was made.
    """
    dealer, folder = settings.dealer(), root / TRIAL
    with os_errors("making the store's folders"):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    try:
        make_local(folder, list(settings.topology.parties), days=AUTHORITY_DAYS)
        parts = sealers(folder / dealer, dealer, settings.compute_parties())
        shutil.rmtree(folder / dealer)
        yield parts
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def trial_certificates(settings: Settings) -> Path | None:
    """The folder of certificates that `trial_sealers` made for the store of a run on one machine; None if none."""
    folder = None if settings.randomness.store is None else Path(settings.randomness.store).expanduser() / TRIAL
    return folder if folder is not None and folder.is_dir() else None


def recipient(credentials: Credentials, party: str, dealer: str) -> Recipient:
    """What opens the part of a compute party that ``dealer`` sealed to it."""

    def check(pem: bytes) -> ec.EllipticCurvePublicKey:
        try:
            return _public_key(credentials.peer(pem, dealer, f"the dealer's certificate in {party}'s store"))
        except CertificateError as error:
            raise StoreError(f"{error}; then {REDO}") from None

    return Recipient(party, credentials.key(), dealer, check)
