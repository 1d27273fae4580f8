"""What a careful operator meets with real certificates, and what a part that is not as the dealer made it meets."""

import json
import shutil
from datetime import timedelta

import pytest
from cryptography import x509

from mpc_imaging.errors import ConfigError
from mpc_imaging.parties.parts import recipient, sealers
from mpc_imaging.randomness.store import Store, StoreError, StoreWriter
from mpc_imaging.randomness.store_files import read_sealed, write_sealed
from mpc_imaging.transport import certificates
from mpc_imaging.transport.certificates import Credentials, make_authority, make_request, sign

PARTIES = ("a", "b")
PLAN, OTHER_PLAN = "5e" * 32, "ab" * 32
SECRET = b"a comparison key of this session"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A consortium whose keys were made where they are used: folders of all, and the authority's."""
    root = tmp_path_factory.mktemp("consortium")
    make_authority(root / "authority")
    for name in ("a", "b", "dealer", "other"):
        machine = root / f"machine_{name}" / "certificates"
        folder = sign(root / "authority", name, make_request(machine, name))
        for file in ("party.crt", "ca.crt"):
            shutil.copy(folder / file, machine)
    return root


@pytest.fixture
def place(made, tmp_path):
    """Copies, with the certificates of a and b at the dealer; the certificate folder of a party."""
    root = shutil.copytree(made, tmp_path / "consortium")

    def folder(name):
        return root / f"machine_{name}" / "certificates"

    for dealer in ("dealer", "other"):
        (folder(dealer) / "peers").mkdir()
        for party in PARTIES:
            shutil.copy(root / "authority" / "issued" / party / "party.crt", folder(dealer) / "peers" / f"{party}.crt")
    return folder


def write(root, folder, dealer="dealer", parties=PARTIES):
    with StoreWriter(root, sealers(folder(dealer), dealer, parties), PLAN, 2) as writer:
        for number in range(2):
            with writer.session(number) as session:
                for rank in range(len(parties)):
                    session.write(rank, [SECRET])
        writer.finish()


def take(root, folder, party="a", dealer="dealer", credentials=None, plan=PLAN):
    """A message of the first session, as a party whose peer goes along, and the session's key."""
    mine = recipient(Credentials(credentials or folder(party)), party, dealer)
    with Store.open(root / party, mine, PARTIES, plan) as store:
        (peer,) = set(PARTIES) - {party}
        theirs = {**store.hello(), "party": peer, "witness": {party: 0}}
        index = store.claim({peer: theirs})
        with store.confirm({peer: {**theirs, "next": index + 1}}) as session:
            return bytes(session.read(len(SECRET))), session.key


def test_each_party_opens_its_own_part_and_no_other(place, tmp_path):
    write(tmp_path / "STORE", place)
    copy = shutil.copytree(tmp_path / "STORE", tmp_path / "copy")
    (first, key_a), (second, key_b) = (take(tmp_path / "STORE", place, party) for party in PARTIES)
    assert first == second == SECRET and key_a != key_b
    for path in copy.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET not in content and key_a not in content and key_b not in content
    # Whoever gets hold of b's part is no b, whatever they say.
    with pytest.raises(StoreError, match="this is not a's folder of the store; give it STORE/a"):
        shutil.rmtree(copy / "a")
        shutil.copytree(copy / "b", copy / "a")
        take(copy, place, "a")
    with pytest.raises(StoreError, match="b's store is sealed to another key than b's: it was written for another"):
        take(copy, place, "b", credentials=place("a"))


def test_what_a_used_store_and_the_key_give_away(place, tmp_path):
    """The file of a used session is gone, and nothing else opens it, though the party's key is there for ever."""
    write(tmp_path / "STORE", place)
    _, key = take(tmp_path / "STORE", place)
    assert [path.name for path in (tmp_path / "STORE/a/sessions").iterdir()] == ["000001.bin"]
    _, later = take(tmp_path / "STORE", place)
    assert later != key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "peers/b.crt").unlink(),
            "there is no certificate of b, to seal its part to; put its party.crt",
        ),
        (
            lambda f: shutil.rmtree(f / "peers"),
            "2 configuration problems: .* no certificate of a.* no certificate of b",
        ),
        (
            lambda f: shutil.copy(f / "peers/a.crt", f / "peers/b.crt"),
            "peers/b.crt is for a, not b; take the party.crt",
        ),
        (lambda f: (f / "peers/b.crt").write_text("x"), "peers/b.crt is not a party's certificate in PEM form"),
        (lambda f: shutil.copy(f / "ca.crt", f / "peers/b.crt"), "peers/b.crt"),
        (lambda f: (f / "party.key").unlink(), "transport.certificates: .* no party.key"),
        (lambda f: shutil.copy(f / "../../machine_a/certificates/party.key", f), "party.key does not fit party.crt"),
    ],
)
def test_what_the_dealer_lacks_is_told_at_once(place, change, message):
    change(place("dealer"))
    with pytest.raises(ConfigError, match=message) as caught:
        sealers(place("dealer"), "dealer", PARTIES)
    assert "\n" not in str(caught.value)


def test_a_dealer_of_another_name(place):
    with pytest.raises(ConfigError, match="the certificate is for other, not dealer"):
        sealers(place("other"), "dealer", PARTIES)


def test_certificates_of_another_authority_expired(place, tmp_path, monkeypatch):
    make_authority(tmp_path / "elsewhere")
    stranger = sign(tmp_path / "elsewhere", "b", place("b") / "party.csr")
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_CLOCK_SKEW", timedelta(days=3))
        old = sign(place("a").parents[1] / "authority", "a", place("a") / "party.csr", days=-1, force=True)
    peers = place("dealer") / "peers"
    shutil.copy(stranger / "party.crt", peers / "b.crt")
    shutil.copy(old / "party.crt", peers / "a.crt")
    with pytest.raises(ConfigError) as caught:
        sealers(place("dealer"), "dealer", PARTIES)
    first, second = caught.value.problems
    assert "a.crt expired on" in first and "was not issued by the authority of dealer's ca.crt" in second


def test_two_parties_with_one_key(place, monkeypatch):
    """One that would open the parts of both."""
    key = Credentials(place("a")).key()
    monkeypatch.setattr(certificates.ec, "generate_private_key", lambda curve: key)
    request = make_request(place("b"), "b", force=True)
    folder = sign(place("a").parents[1] / "authority", "b", request, force=True)
    shutil.copy(folder / "party.crt", place("dealer") / "peers" / "b.crt")
    with pytest.raises(ConfigError, match="b and a have the same key; each makes its own"):
        sealers(place("dealer"), "dealer", PARTIES)


def test_a_store_of_another_dealer(place, tmp_path):
    write(tmp_path / "STORE", place, "other")
    with pytest.raises(StoreError, match="the dealer's certificate in a's store is for other, not dealer"):
        take(tmp_path / "STORE", place)
    # A party of the consortium cannot say that it is the dealer either.
    path = tmp_path / "STORE" / "a" / "store.json"
    facts = read_sealed(path, "a", "absent")
    write_sealed(path, {**facts, "dealer": "dealer", "certificate": (place("dealer") / "party.crt").read_text()})
    with pytest.raises(StoreError, match="store.json in a's store is damaged, or not what dealer wrote"):
        take(tmp_path / "STORE", place)


def test_a_dealer_of_another_authority_or_whose_time_is_over(place, tmp_path, monkeypatch):
    write(tmp_path / "STORE", place)
    make_authority(tmp_path / "elsewhere")
    folder = sign(tmp_path / "elsewhere", "a", place("a") / "party.csr")
    shutil.copy(place("a") / "party.key", folder)
    with pytest.raises(StoreError, match="was not issued by the authority of a's ca.crt; all parties need"):
        take(tmp_path / "STORE", place, credentials=folder)

    real = certificates._check_time

    def late(what, certificate):
        if what.startswith("the dealer's"):
            certificate = certificate_of_yesterday(place, monkeypatch)
        real(what, certificate)

    monkeypatch.setattr(certificates, "_check_time", late)
    with pytest.raises(StoreError, match="the dealer's certificate in a's store expired on .* run python -m mpc_imag"):
        take(tmp_path / "STORE", place)


def certificate_of_yesterday(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_CLOCK_SKEW", timedelta(days=3))
        patch.setattr(certificates, "_check_time", lambda what, certificate: None)
        folder = sign(place("a").parents[1] / "authority", "dealer", place("dealer") / "party.csr", days=-1, force=True)
    return x509.load_pem_x509_certificate((folder / "party.crt").read_bytes())


def test_another_plan(place, tmp_path):
    write(tmp_path / "STORE", place)
    with pytest.raises(StoreError, match="a's store is for another plan: settings have changed since"):
        take(tmp_path / "STORE", place, plan=OTHER_PLAN)


def test_a_session_of_another_store_for_the_same_party(place, tmp_path):
    """The dealer signed it for this party, but not here."""
    write(tmp_path / "STORE", place)
    write(tmp_path / "second", place)
    shutil.copy(tmp_path / "second/a/sessions/000000.bin", tmp_path / "STORE/a/sessions")
    with pytest.raises(StoreError, match="is the file of another store, party or session"):
        take(tmp_path / "STORE", place)


def test_a_part_that_was_never_sealed(place, tmp_path):
    """As version 0.1.0 wrote it."""
    write(tmp_path / "STORE", place)
    path = tmp_path / "STORE" / "a" / "store.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "version": 1}))
    with pytest.raises(
        StoreError, match="was written by version 0.1.0 of mpc_imaging, which did not seal .* again, and"
    ):
        take(tmp_path / "STORE", place)
