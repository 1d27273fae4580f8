from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from mpc_imaging.errors import TransportError
from mpc_imaging.transport import certificates
from mpc_imaging.transport.certificates import (
    CertificateError,
    Credentials,
    certificate_name,
    fingerprint,
    make_authority,
    make_local,
    make_request,
    sign,
)


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    make_local(folder, ["hospital_a", "hospital_b"])
    return folder


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
        (target / path.name).chmod(0o600)
    return target


def test_local_folders_hold_what_a_party_needs_and_no_authority_key(trial):
    files = sorted(str(path.relative_to(trial)) for path in trial.rglob("*") if path.is_file())
    assert files == [
        f"{name}/{file}" for name in ("hospital_a", "hospital_b") for file in ("ca.crt", "party.crt", "party.key")
    ]
    assert load(trial / "hospital_a" / "ca.crt") == load(trial / "hospital_b" / "ca.crt")
    for name in ("hospital_a", "hospital_b"):
        assert stat.S_IMODE((trial / name / "party.key").stat().st_mode) == 0o600


def test_party_certificate_carries_the_name_and_the_two_uses(trial):
    certificate = load(trial / "hospital_a" / "party.crt")
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert certificate_name(der) == "hospital_a"
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == certificates.LOCAL_DAYS
    assert Credentials(trial / "hospital_a").expires == certificate.not_valid_after_utc


def test_keys_stay_where_they_are_made(tmp_path):
    make_authority(tmp_path / "authority")
    request = make_request(tmp_path / "a", "hospital_a")
    issued = sign(tmp_path / "authority", "hospital_a", request)
    assert sorted(path.name for path in issued.iterdir()) == ["ca.crt", "party.crt"]
    assert fingerprint(request) == fingerprint(issued / "party.crt")
    for path in issued.iterdir():
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    assert Credentials(tmp_path / "a", "hospital_a").name == "hospital_a"
    assert stat.S_IMODE((tmp_path / "authority" / "ca.key").stat().st_mode) == 0o600


def test_only_the_stated_name_is_signed(tmp_path):
    make_authority(tmp_path / "authority")
    request = make_request(tmp_path / "a", "hospital_a")
    with pytest.raises(CertificateError, match="for 'hospital_a', not 'hospital_b'"):
        sign(tmp_path / "authority", "hospital_b", request)
    assert not (tmp_path / "authority" / "issued").exists()


def test_a_name_is_signed_once_unless_forced(tmp_path):
    make_authority(tmp_path / "authority")
    request = make_request(tmp_path / "a", "hospital_a")
    issued = sign(tmp_path / "authority", "hospital_a", request)
    first = load(issued / "party.crt")
    with pytest.raises(CertificateError, match="already there.*--force"):
        sign(tmp_path / "authority", "hospital_a", request)
    assert load(issued / "party.crt") == first
    sign(tmp_path / "authority", "hospital_a", request, force=True)
    assert load(issued / "party.crt") != first


def test_weak_or_strange_requests_are_refused(tmp_path):
    make_authority(tmp_path / "authority")
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hospital_a")])
    san = x509.SubjectAlternativeName([x509.DNSName("hospital_a"), x509.DNSName("dealer")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    path = tmp_path / "party.csr"

    path.write_bytes(builder.add_extension(san, False).sign(key, SHA256()).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CertificateError, match="must carry one name"):
        sign(tmp_path / "authority", "hospital_a", path)

    san = x509.SubjectAlternativeName([x509.DNSName("hospital_a")])
    path.write_bytes(builder.add_extension(san, False).sign(key, SHA256()).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CertificateError, match="not an elliptic-curve key"):
        sign(tmp_path / "authority", "hospital_a", path)

    path.write_text("nonsense")
    with pytest.raises(CertificateError, match="not a certificate request in PEM form"):
        sign(tmp_path / "authority", "hospital_a", path)


def test_nothing_is_overwritten_without_force(tmp_path):
    make_local(tmp_path, ["hospital_a"])
    before = (tmp_path / "hospital_a" / "party.key").read_bytes()
    with pytest.raises(CertificateError, match="already there"):
        make_local(tmp_path, ["hospital_b", "hospital_a"])
    assert not (tmp_path / "hospital_b").exists()
    assert (tmp_path / "hospital_a" / "party.key").read_bytes() == before
    (tmp_path / "hospital_a" / "party.key").chmod(0o644)
    make_local(tmp_path, ["hospital_a"], force=True)
    assert (tmp_path / "hospital_a" / "party.key").read_bytes() != before
    assert stat.S_IMODE((tmp_path / "hospital_a" / "party.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", "../up", "hospital a", "a" * 64, ".hidden", "høspital"])
def test_names_that_are_no_file_and_host_names_are_refused(tmp_path, name):
    with pytest.raises(CertificateError, match="no party names"):
        make_local(tmp_path, ["fine", name])
    assert not list(tmp_path.iterdir())


def test_missing_files_are_all_named(trial, tmp_path):
    folder = copy(trial / "hospital_a", tmp_path / "a")
    (folder / "ca.crt").unlink()
    (folder / "party.key").unlink()
    with pytest.raises(CertificateError, match="no ca.crt, party.key; python -m mpc_imaging.certs") as caught:
        Credentials(folder)
    assert isinstance(caught.value, TransportError)
    assert "\n" not in str(caught.value)


def test_wrong_name(trial):
    with pytest.raises(CertificateError, match="for hospital_a, not hospital_b"):
        Credentials(trial / "hospital_a", "hospital_b")


def test_expired(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "_CLOCK_SKEW", certificates.timedelta(days=3))
    make_local(tmp_path, ["hospital_a"], days=-1)
    with pytest.raises(CertificateError, match=r"certificate of hospital_a expired on \d{4}-\d\d-\d\d; make a new one"):
        Credentials(tmp_path / "hospital_a")


def test_not_valid_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "_CLOCK_SKEW", -certificates.timedelta(hours=2))
    make_local(tmp_path, ["hospital_a"])
    with pytest.raises(CertificateError, match="not valid before .*; check this machine's clock"):
        Credentials(tmp_path / "hospital_a")


def test_another_authority(trial, tmp_path):
    folder = copy(trial / "hospital_a", tmp_path / "a")
    make_local(tmp_path, ["other"])
    (folder / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    with pytest.raises(CertificateError, match="was not issued by the authority"):
        Credentials(folder)


def test_key_of_another_party_or_encrypted(trial, tmp_path):
    folder = copy(trial / "hospital_a", tmp_path / "a")
    (folder / "party.key").write_bytes((trial / "hospital_b" / "party.key").read_bytes())
    with pytest.raises(CertificateError, match="party.key does not fit"):
        Credentials(folder)
    key = serialization.load_pem_private_key((trial / "hospital_a" / "party.key").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (folder / "party.key").write_bytes(pem)
    with pytest.raises(CertificateError, match="or is encrypted"):  # and it must not ask at the terminal
        Credentials(folder)


def test_a_key_open_to_others_is_reported(trial, tmp_path, caplog):
    folder = copy(trial / "hospital_a", tmp_path / "a")
    (folder / "party.key").chmod(0o644)
    Credentials(folder)
    assert "chmod 600" in caplog.text


def test_garbage_is_no_certificate():
    with pytest.raises(CertificateError):
        certificate_name(b"garbage")
