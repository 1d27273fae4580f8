"""Progress for people: lines in a log, a bar on a terminal, nothing where nobody asked."""

import io
import sys

import pytest

from mpc_imaging.tasks import progress
from mpc_imaging.tasks.progress import Progress
from mpc_imaging.transport.frames import Kind
from mpc_imaging.transport.traffic import Traffic


def test_nobody_asked(capsys):
    bar = Progress(shown=False)
    with bar.stage("secure inference", 10):
        bar.advance(3)
    assert capsys.readouterr() == ("", "")


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    bar = Progress(shown=True)
    with bar.stage("secure inference", 10):
        bar.advance(3)
        bar.advance()
    with bar.stage("epoch 1 of 2", 5):
        bar.advance(5)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "", "progress is no output"
    assert lines[:3] == [
        "secure inference …",
        "secure inference: 3 of 10, 0 s left",
        "secure inference: 4 of 10, 0 s left",
    ]
    assert lines[3].startswith("secure inference: ") and lines[3].endswith(" s")
    assert lines[4:6] == ["epoch 1 of 2 …", "epoch 1 of 2: 5 of 5, 0 s left"], "each stage counts from the start"


def test_lines_come_now_and_then(capsys):
    bar = Progress(shown=True)
    with bar.stage("training", 1000):
        for _ in range(1000):
            bar.advance()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_rounds_bytes_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    clock = iter(range(0, 10_000, 30))  # each look at it takes 30 s
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    traffic = Traffic()
    traffic.sent("b", Kind.OPENING, 7_000_000)
    bar = Progress(shown=True, traffic=traffic)
    traffic.sent("b", Kind.OPENING, 2_500_000)
    traffic.round(Kind.OPENING, ["b"])
    with bar.stage("epoch 2 of 3", 10, unit="step", more=10):
        bar.skip(4)
        bar.advance()
    first, second = (line for line in capsys.readouterr().err.splitlines() if " of 10" in line)
    assert first == "epoch 2 of 3: step 4 of 10, 1 rounds, 2.5 MB sent", "nothing is known of the time yet"
    assert second.startswith("epoch 2 of 3: step 5 of 10, ") and second.endswith(" min left, 1 rounds, 2.5 MB sent")


def test_notes_of_what_was_opened_here(capsys):
    bar = Progress(shown=True)
    with bar.stage("epoch 1 of 2", 1):
        bar.advance()
    bar.note(loss=0.43219, accuracy=None)
    bar.note(loss=None)
    assert capsys.readouterr().err.splitlines()[2:] == ["epoch 1 of 2: loss 0.4322"]
    Progress(shown=False).note(loss=1.0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (89, "89 s"), (200, "3 min"), (4830, "1 h 20 min")])
def test_durations(seconds, text):
    assert progress._duration(seconds) == text


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = Progress(shown=True)
    with bar.stage("secure inference", 4):
        bar.advance(4)
    assert "secure inference" in terminal.getvalue() and "4/4" in terminal.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_an_error_inside_goes_on(shown, capsys):
    bar = Progress(shown)
    with pytest.raises(ValueError, match="inside"), bar.stage("training", 4):
        raise ValueError("inside")
    assert capsys.readouterr().err == ("training …\n" if shown else ""), "no stage is said to be done that is not"
