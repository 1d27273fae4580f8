"""Progress for people: lines in a log, a bar on a terminal, nothing where nobody asked."""

import io
import sys

import pytest

from mpc_imaging.tasks import progress
from mpc_imaging.tasks.progress import Progress


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
    assert lines[:3] == ["secure inference …", "secure inference: 3 of 10", "secure inference: 4 of 10"]
    assert lines[3].startswith("secure inference: ") and lines[3].endswith(" s")
    assert lines[4:6] == ["epoch 1 of 2 …", "epoch 1 of 2: 5 of 5"], "each stage counts from the start"


def test_lines_come_now_and_then(capsys):
    bar = Progress(shown=True)
    with bar.stage("training", 1000):
        for _ in range(1000):
            bar.advance()
    assert len(capsys.readouterr().err.splitlines()) == 2


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
