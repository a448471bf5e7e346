import io
import logging

import pytest

from loopcoder_train.training import progress
from loopcoder_train.training.progress import (
    Eta,
    PlainConsole,
    duration,
    fit_width,
    logging_above,
    open_console,
    scaled,
)

VALUES = {"loss": 3.25, "tokens_per_second": 12345.0, "model_flops_per_second": 2.5e12, "lr": 4e-4, "grad_norm": 1.5}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_thin_out_over_10000_steps(clock):
    stream = io.StringIO()
    console = open_console(0, stream)
    for step in range(1, 10_001):
        clock[0] += 1.0
        console.progress(step, 10_000, VALUES, force=step == 10_000)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step 1/10000 | loss 3.2500 | 12.3k tokens/s")
    assert lines[-1].startswith("step 10000/10000")
    assert 50 < len(lines) < 300
    assert isinstance(console, PlainConsole)


def test_terminal_line_fits_is_redrawn_and_notes_scroll_above(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    console = open_console(0, stream)
    console.progress(1, 10, VALUES)
    console.progress(2, 10, VALUES)  # too soon
    clock[0] = 5.0
    console.progress(3, 10, VALUES)
    console.note("saved")
    console.close()
    text = stream.getvalue()
    assert "step 2/10" not in text
    drawn = [line.rstrip() for line in text.replace("\n", "\r").split("\r") if line.strip()]
    assert max(map(len, drawn)) <= 59
    assert drawn[-2:] == ["saved", drawn[1]] and text.endswith("\n")


def test_other_ranks_are_silent(capsys):
    console = open_console(1)
    console.progress(1, 2, VALUES, force=True)
    console.note("x")
    assert capsys.readouterr().out == ""


def test_eta():
    eta = Eta()
    assert eta.seconds(10) is None
    for step in range(1, 5):
        eta.add(step, step * 2.0)
    assert eta.seconds(10) == pytest.approx(12.0)


def test_formats():
    assert [scaled(value) for value in (0, 999, 12345, 2.5e12)] == ["0", "999", "12.3k", "2.5T"]
    assert [duration(value) for value in (9.2, 247, 11100, 183600)] == ["9s", "4m 07s", "3h 05m", "2d 03h"]
    assert fit_width(["step 1/10", "loss 3.2", "lr 1"], 21) == "step 1/10 | loss 3.2"
    assert fit_width(["step 1/10"], 4) == "step"


def test_log_lines_scroll_above_the_live_line(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    console = open_console(0, stream)
    clock[0] = 1.0
    console.progress(1, 10, VALUES)
    with logging_above(console):
        logging.getLogger("x").warning("careful")
    live = stream.getvalue().split("\r")[1]
    assert stream.getvalue().endswith("\rcareful\n\r" + live)
    assert handler.stream is stream
