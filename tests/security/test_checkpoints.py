"""One party's shares on disk tell nothing: not encrypted, not decrypted, not beside those of another time.

The model is as regular as can be, so that anything that came through would show. The files of all parties and their
keys do tell it: that the tests can see it is tested too.
"""

import shutil

import numpy as np
import pytest
import torch

from mpc_imaging.errors import DataError, SessionError
from mpc_imaging.parties import sealed
from mpc_imaging.settings import TaskKind
from mpc_imaging.tasks import weights
from mpc_imaging.tasks.checkpoints import Checkpoints, Point, starting_point
from tests.security.test_frames import _is_uniform

COUNTS = {"a": {"train": 8}, "b": {"train": 8}}
SIZE = 30_000
PARTIES = ("a", "b")


@pytest.fixture
def run(consortium, tmp_path):
    """Makes a run of a model whose weights are all the same: checkpoints of two steps and the last shares."""

    def make(name, value=3):
        parties = consortium("two")
        parties.settings.task.kind = TaskKind.train

        def part(session):
            if session.rank is None:
                return
            folder = tmp_path / name / "parties" / session.me
            folder.mkdir(parents=True)
            checkpoints = Checkpoints(session, folder)
            checkpoints.counts = COUNTS
            for step in (1, 2):
                share = session.zero_share((SIZE,)) + (value if session.first else 0)
                checkpoints.save(Point(0, step, step), {"weights.w": share})
            weights.write_shares(session, {"w": share}, folder, 2)

        parties.all(part)
        return tmp_path / name

    return make


def _files(run, party):
    folder = run / "parties" / party
    return [*sorted((folder / "checkpoints").iterdir()), folder / weights.SHARES]


def _content(path, key_folder=None):
    folder = key_folder or next(parent for parent in path.parents if (parent / sealed.KEY_FILE).exists())
    return sealed.unseal(path, (folder / sealed.KEY_FILE).read_bytes())


def _share(path):
    (share,) = _content(path).tensors.values()
    return share


def _octets(share):
    return share.numpy().view(np.uint8)


def _resume(consortium, tmp_path, path):
    parties = consortium("two")
    parties.settings.task.kind, parties.settings.resume = TaskKind.train, True
    parties.settings.checkpoint.path = str(path)

    def part(session):
        if session.rank is None:
            return None
        folder = tmp_path / "resumed" / session.me
        folder.mkdir(parents=True, exist_ok=True)
        return starting_point(session, Checkpoints(session, folder), COUNTS)

    return parties.run(part)


def test_a_file_is_uniform_bytes_encrypted_and_decrypted(run):
    for party in PARTIES:
        for path in _files(run("one" + party), party):
            raw = path.read_bytes()
            assert len(raw) > 8 * SIZE
            assert _is_uniform(np.frombuffer(raw[-8 * SIZE :], np.uint8)), "the ciphertext"
            assert _is_uniform(_octets(_share(path))), "what its key decrypts"


def test_the_test_would_see_it(run):
    made = run("one")
    total = sum(_share(_files(made, party)[0]) for party in PARTIES)
    assert torch.equal(total, torch.full((SIZE,), 3)) and not _is_uniform(_octets(total))


def test_files_of_one_party_tell_nothing_together(run):
    """Steps, runs of the same model, and runs of other models: no two shares of a party have anything in common."""
    shares = [_share(path) for made in (run("one"), run("two"), run("three", -9)) for path in _files(made, "a")]
    del shares[2::3]  # the last shares of a run are here those of its last step
    for number, one in enumerate(shares):
        for other in shares[:number]:
            assert _is_uniform(_octets(one - other))


def test_what_is_resumed_is_shared_anew(run, consortium, tmp_path):
    made = run("one")
    one, two = (_resume(consortium, tmp_path, made) for _ in range(2))
    for party in PARTIES:
        old = _share(_files(made, party)[1])
        shares = [old, *(results[party].tensors["weights.w"] for results in (one, two))]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert _is_uniform(_octets(shares[first] - shares[second]))
    assert torch.equal(sum(one[party].tensors["weights.w"] for party in PARTIES), torch.full((SIZE,), 3))


def test_no_key_opens_the_file_of_another_party(run):
    made = run("one")
    for path in _files(made, "a"):
        with pytest.raises(DataError, match="was sealed with another key"):
            _content(path, made / "parties" / "b")


@pytest.mark.parametrize("case", ["party", "step", "run"])
def test_files_that_do_not_belong_together_are_refused(run, consortium, tmp_path, case):
    """Though they are whole, of the same model, and their keys are there."""
    made, other = run("one"), run("two")
    mine, theirs = made / "parties" / "b", {"party": made / "parties" / "a", "run": other / "parties" / "b"}
    if case == "step":
        (_files(made, "a")[0]).unlink()
        (_files(made, "b")[1]).unlink()
    else:
        mine.rename(made / "gone")
        shutil.copytree(theirs[case], mine)
    results = _resume(consortium, tmp_path, made)
    assert all(isinstance(results[party], Exception) for party in PARTIES)
    assert any(isinstance(results[party], DataError | SessionError) for party in PARTIES)
