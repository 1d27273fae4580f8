"""Certificates of a consortium: one private authority, and a certificate for each party whose name is the party's name.

For parties on machines of their own, a key never leaves the machine that uses it: one machine makes the authority
(`make_authority`), each party makes its key and a request (`make_request`), and the authority signs it (`sign`).
`make_local` does all of it at once for trials on one machine. A party's folder holds ca.crt, party.crt and party.key.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mpc_imaging.errors import TransportError

AUTHORITY_DAYS = 730
PARTY_DAYS = 90
LOCAL_DAYS = 7
COMMAND = "python -m mpc_imaging.certs"

# A name is also a folder name and a DNS name in the certificate.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_CLOCK_SKEW = timedelta(hours=1)

log = logging.getLogger("mpc_imaging.transport")


class CertificateError(TransportError):
    """A certificate, key or request that cannot be used."""


def make_authority(folder: Path, *, days: int = AUTHORITY_DAYS, force: bool = False) -> Path:
    """Make the consortium's authority: ``folder``/ca.crt and ca.key. Returns the path of ca.crt."""
    key, certificate = _new_authority(days)
    _write({folder / "ca.key": _key_pem(key), folder / "ca.crt": _pem(certificate)}, force)
    return folder / "ca.crt"


def make_request(folder: Path, name: str, *, force: bool = False) -> Path:
    """Make a party's key, ``folder``/party.key, and the request for its certificate; returns the path of party.csr."""
    _check_names([name])
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(name))
    request = builder.add_extension(_san(name), critical=False).sign(key, hashes.SHA256())
    _write({folder / "party.key": _key_pem(key), folder / "party.csr": _pem(request)}, force)
    return folder / "party.csr"


def sign(authority: Path, name: str, request: Path, *, days: int = PARTY_DAYS, force: bool = False) -> Path:
    """Sign a request that must be for ``name``; returns ``authority``/issued/``name`` with party.crt and ca.crt.

    The authority's operator states the name, so no party can ask for another's. A name that has a certificate gets a
    new one only with ``force``.
    """
    _check_names([name])
    ca, ca_key = _load_authority(authority)
    csr = _parse(x509.load_pem_x509_csr, request, "certificate request")
    if not csr.is_signature_valid:
        raise CertificateError(f"{request}: the request is not signed with its own key; ask {name} to send it again")
    asked = _name_of(csr, str(request))
    if asked != name:
        raise CertificateError(f"{request}: the request is for {asked!r}, not {name!r}; sign it under its own name")
    if not isinstance(csr.public_key(), ec.EllipticCurvePublicKey):
        raise CertificateError(f"{request}: not an elliptic-curve key; make the request with {COMMAND} request")
    folder = authority / "issued" / name
    certificate = _issue(name, csr.public_key(), ca, ca_key, days)
    _write({folder / "party.crt": _pem(certificate), folder / "ca.crt": _pem(ca)}, force)
    return folder


def make_local(folder: Path, names: Sequence[str], *, days: int = LOCAL_DAYS, force: bool = False) -> None:
    """Certificates for a trial: ``folder``/<name>/{ca.crt,party.crt,party.key}; the authority's key is not written."""
    _check_names(names)
    ca_key, ca = _new_authority(days)
    files = {}
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        files[folder / name / "party.key"] = _key_pem(key)
        files[folder / name / "party.crt"] = _pem(_issue(name, key.public_key(), ca, ca_key, days))
        files[folder / name / "ca.crt"] = _pem(ca)
    _write(files, force)


def fingerprint(path: Path) -> str:
    """SHA-256 of the public key of a request or certificate: what two people compare by telephone."""
    load = x509.load_pem_x509_csr if path.suffix == ".csr" else x509.load_pem_x509_certificate
    key = _parse(load, path, "certificate").public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize().hex(" ", 4)


def certificate_name(der: bytes) -> str:
    """The party's name in a certificate: its one common name, repeated as its one subject alternative name.

    Raises `CertificateError` for anything else.
    """
    try:
        return _name_of(x509.load_der_x509_certificate(der), "the certificate")
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateError("the certificate cannot be read") from error


class Credentials:
    """A party's certificate folder, checked on loading: complete, of one authority, in its time, for ``name``.

    Raises `CertificateError`. Attributes: ``folder``, ``name``, ``expires``, ``certificate``, ``authority`` (its own).
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        paths = {file: self.folder / file for file in ("ca.crt", "party.crt", "party.key")}
        missing = [file for file, path in paths.items() if not path.is_file()]
        if missing:
            raise CertificateError(f"{self.folder}: no {', '.join(missing)}; {COMMAND} --help says how to make them")
        ca = _parse(x509.load_pem_x509_certificate, paths["ca.crt"], "certificate")
        certificate = _parse(x509.load_pem_x509_certificate, paths["party.crt"], "certificate")
        self.name = _name_of(certificate, str(paths["party.crt"]))
        if name is not None and self.name != name:
            raise CertificateError(f"{paths['party.crt']}: the certificate is for {self.name}, not {name}")
        try:
            certificate.verify_directly_issued_by(ca)
        except (ValueError, TypeError, InvalidSignature) as error:
            problem = f"{paths['party.crt']} was not issued by the authority of {paths['ca.crt']}"
            raise CertificateError(f"{problem}; take both from the answer to one request") from error
        _check_time(f"certificate of {self.name}", certificate)
        _check_time(f"authority's certificate {paths['ca.crt']}", ca)
        self.authority, self.certificate = ca, certificate
        self.expires = min(certificate.not_valid_after_utc, ca.not_valid_after_utc)
        if paths["party.key"].stat().st_mode & 0o077:
            log.warning("%s can be read by other users of this machine; chmod 600 it", paths["party.key"])
        self.context(server_side=False)

    def key(self) -> ec.EllipticCurvePrivateKey:
        """The party's private key. Raises `CertificateError` unless it is one of P-256, as `make_request` makes."""
        path = self.folder / "party.key"
        key = _parse(lambda data: serialization.load_pem_private_key(data, None), path, "private key")
        _check_curve(str(path), key)
        return key

    def peer(self, pem: bytes, name: str, where: str) -> x509.Certificate:
        """The certificate of party ``name``, by this folder's authority; ``where`` is how errors call it.

        Raises `CertificateError` for one that is of another authority, for another name, not in its time, not on P-256,
        or no certificate of a party.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            found = _name_of(certificate, where)
            party = not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.ExtensionNotFound):
            raise CertificateError(f"{where} is not a party's certificate in PEM form") from None
        if found != name or not party:
            raise CertificateError(f"{where} is for {found}, not {name}; take the party.crt of {name}")
        try:
            certificate.verify_directly_issued_by(self.authority)
        except (ValueError, TypeError, InvalidSignature):
            problem = f"{where} was not issued by the authority of {self.name}'s ca.crt"
            raise CertificateError(f"{problem}; all parties need certificates of one authority") from None
        _check_time(where, certificate)
        _check_curve(where, certificate.public_key())
        return certificate

    def context(self, server_side: bool) -> ssl.SSLContext:
        """TLS 1.3 only; the peer's certificate is demanded and checked against ca.crt (its name is checked later)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # a party's name is no host name; `certificate_name` compares it exactly
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if server_side:
            context.num_tickets = 0  # no resumption: every session proves its keys anew
        try:
            context.load_verify_locations(self.folder / "ca.crt")
            # The callback is asked only for an encrypted key; without it OpenSSL would wait for one at the terminal.
            context.load_cert_chain(self.folder / "party.crt", self.folder / "party.key", password=lambda: b"")
        except (ssl.SSLError, OSError) as error:
            problem = f"{self.folder}: party.key does not fit party.crt, or is encrypted"
            raise CertificateError(f"{problem}; make a new request with {COMMAND} request") from error
        return context


def _new_authority(days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    # A random part keeps authorities of different runs apart: OpenSSL looks for an issuer by its name.
    subject = _subject(f"mpc_imaging consortium {os.urandom(8).hex()}")
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _dated(x509.CertificateBuilder().subject_name(subject).issuer_name(subject), key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _issue(name, public_key, ca: x509.Certificate, ca_key, days: int) -> x509.Certificate:
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _dated(x509.CertificateBuilder().subject_name(_subject(name)).issuer_name(ca.subject), public_key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_san(name), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _dated(builder: x509.CertificateBuilder, public_key, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = builder.public_key(public_key).serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(now + timedelta(days=days))


def _key_usage(**wanted: bool) -> x509.KeyUsage:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement"
        " key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{usage: wanted.get(usage, False) for usage in every.split()})


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _san(name: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(name)])


def _name_of(item: x509.Certificate | x509.CertificateSigningRequest, where: str) -> str:
    common = [attribute.value for attribute in item.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        names = list(item.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        names = []
    alternative = [name.value for name in names]
    if len(common) != 1 or alternative != common or not isinstance(names[0], x509.DNSName):
        found = ", ".join(map(repr, common + alternative)) or "none"
        raise CertificateError(f"{where} must carry one name, as common and as alternative name, but has {found}")
    return common[0]


def _check_names(names: Sequence[str]) -> None:
    bad = [name for name in names if not _NAME.fullmatch(name)]
    if bad:
        raise CertificateError(f"no party names: {', '.join(map(repr, bad))}; use at most 63 letters, digits, _ and -")


def _check_curve(where: str, key: object) -> None:
    curve = getattr(key, "curve", None)
    if not isinstance(curve, ec.SECP256R1):
        raise CertificateError(f"{where}: not a key on P-256; make one with {COMMAND} request")


def _check_time(what: str, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        day = certificate.not_valid_after_utc.date()
        raise CertificateError(f"{what} expired on {day}; make a new one with {COMMAND}")
    if now < certificate.not_valid_before_utc:
        day = certificate.not_valid_before_utc.isoformat(" ", "seconds")
        raise CertificateError(f"{what} is not valid before {day}; check this machine's clock")


def _load_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    for file in ("ca.crt", "ca.key"):
        if not (folder / file).is_file():
            raise CertificateError(f"{folder}: no {file}; an authority is made with {COMMAND} ca {folder}")
    ca = _parse(x509.load_pem_x509_certificate, folder / "ca.crt", "certificate")
    key = _parse(lambda data: serialization.load_pem_private_key(data, None), folder / "ca.key", "private key")
    _check_time("the authority's certificate", ca)
    if key.public_key() != ca.public_key():
        raise CertificateError(f"{folder}: ca.key does not belong to ca.crt")
    return ca, key


def _parse(load, path: Path, what: str):
    try:
        return load(path.read_bytes())
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{path}: not a {what} in PEM form (or encrypted)") from error
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from error


def _pem(item) -> bytes:
    return item.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def _write(files: Mapping[Path, bytes], force: bool) -> None:
    """Write all files, keys readable by their owner alone; without ``force``, none if one exists."""
    existing = [str(path) for path in files if path.exists()]
    if existing and not force:
        raise CertificateError(f"already there: {', '.join(existing)}; nothing was written (--force replaces them)")
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            mode = 0o600 if path.suffix == ".key" else 0o644
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
        except OSError as error:
            raise CertificateError(f"{path}: {error.strerror}") from error
