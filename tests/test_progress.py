"""Progress lines: what they say, when they speak, and on which kind of screen."""

from __future__ import annotations

import io
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedbed.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def plain(clock: Clock) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress(stream=stream, clock=clock), stream


def test_plain_lines_at_the_start_every_ten_seconds_and_at_the_end(clock: Clock) -> None:
    progress, stream = plain(clock)
    with progress.stage("maps RIB", total=100) as line:
        for _ in range(100):
            clock.now += 0.5
            line.advance()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "maps RIB           100 pictures"
    assert lines[1] == "maps RIB           20 of 100 pictures, 2.0/s, 40 s left"
    assert lines[-1] == "maps RIB           100 pictures in 50 s, 2.0/s"
    assert len(lines) == 2 + 5


def test_what_was_found_has_no_part_in_the_rate(clock: Clock) -> None:
    progress, stream = plain(clock)
    with progress.stage("maps CAM", total=1000, done=900) as line:
        clock.now += 20
        line.advance(10)
        assert line.rate() == pytest.approx(0.5)
        assert line.left() == pytest.approx(180)
        line.advance(90)
    assert "900 found from before" in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].endswith("1,000 pictures, 100 of them in 20 s, 5.0/s")


def test_pictures_set_aside_are_settled_but_not_done(clock: Clock) -> None:
    progress, stream = plain(clock)
    with progress.stage("maps", total=4) as line:
        clock.now += 1
        line.advance(3, set_aside=1)
        assert (line.done, line.set_aside, line.left()) == (3, 1, 0.0)
    assert stream.getvalue().splitlines()[-1].endswith("3 pictures in 1.0 s, 4.0/s, 1 set aside")


def test_the_rate_follows_the_last_minute(clock: Clock) -> None:
    progress, _ = plain(clock)
    with progress.stage("maps", total=10_000) as line:
        for _ in range(100):
            clock.now += 1
            line.advance(10)
        for _ in range(120):
            clock.now += 1
            line.advance(1)
        assert line.rate() == pytest.approx(1.0, rel=0.05)


def test_a_whole_stage_is_one_line(clock: Clock) -> None:
    progress, stream = plain(clock)
    with progress.stage("seeds", total=7, done=7):
        pass
    assert stream.getvalue() == "seeds              all 7 pictures found\n"


@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt, "stopped"), (ValueError, "failed")])
def test_an_error_is_passed_on_and_said(clock: Clock, error: type[BaseException], word: str) -> None:
    progress, stream = plain(clock)
    with pytest.raises(error), progress.stage("maps", total=9) as line:
        line.advance(2)
        raise error
    assert f"{word} at 2 of 9 pictures" in stream.getvalue().splitlines()[-1]


def test_training_says_step_terms_and_validation(clock: Clock) -> None:
    progress, stream = plain(clock)
    with progress.training("classifier", 200) as line:
        line.report({"steps": 200, "facts": {}})
        clock.now += 30
        line.report({"step": 100, "steps": 200, "terms": {"bce": 0.5}, "lr": 0.1, "seconds": 30.0, "eta": 30.0})
        line.report({"set_aside": {"id": "a", "reason": "truncated"}})
        clock.now += 20
        line.report({"step": 150, "steps": 200, "terms": {"bce": 0.25}, "lr": 0.1})
        clock.now += 20
        line.report({"step": 200, "steps": 200, "terms": {"bce": 0.125}, "lr": 0.1})
        line.report({"step": 200, "val/loss": 0.0625, "val/mAP": 97.5})
    lines = stream.getvalue().splitlines()
    assert any("100 of 200 steps" in said and "bce 0.5000" in said for said in lines)
    assert any("150 of 200 steps, 2.5/s, 20 s left, bce 0.2500, 1 picture set aside" in said for said in lines)
    last = lines[-1]
    assert "200 steps" in last and "bce 0.1250" in last and "val/mAP 97.5" in last and "in 1:10" in last


def test_a_resumed_training_does_not_count_what_it_found(clock: Clock) -> None:
    progress, _ = plain(clock)
    with progress.training("classifier", 1000) as line:
        clock.now += 5
        line.report({"step": 910, "terms": {"bce": 0.1}})
        clock.now += 10
        line.report({"step": 920, "terms": {"bce": 0.1}})
        assert line.rate() == pytest.approx(1.0)
        assert line.left() == pytest.approx(80)


def test_many_threads_lose_nothing(clock: Clock) -> None:
    progress, _ = plain(clock)
    with progress.stage("maps", total=8000) as line:
        threads = [threading.Thread(target=lambda: [line.advance() for _ in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert line.done == 8000


@pytest.mark.parametrize("name", ["CI", "NO_COLOR"])
def test_plain_where_it_is_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CI", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Progress(stream=Screen()).mode == "rich"
    assert Progress(stream=io.StringIO()).mode == "plain"
    monkeypatch.setenv(name, "1")
    assert Progress(stream=Screen()).mode == "plain"


def test_plain_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CI", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert Progress(stream=Screen()).mode == "plain"


def test_off_is_silent(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("off", stream=stream, clock=clock).stage("maps", total=2) as line:
        line.advance(2)
    assert stream.getvalue() == ""


def test_live_lines_stay_when_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages at once, one that fails; both closing lines are on the screen and the live part is gone."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    progress = Progress("rich", stream=screen)
    with progress.stage("maps CAM", total=3) as outer:
        with pytest.raises(ValueError), progress.stage("maps RIB", total=5) as inner:
            inner.advance(2, set_aside=1)
            raise ValueError
        outer.advance(3)
    text = screen.getvalue()
    assert "✓ " in text and "✗ " in text and "failed at 3 of 5 pictures" in text and "3 pictures in" in text
    assert progress._live is None and not progress._tasks


@given(st.floats(0, 10**6))
def test_durations_are_right_to_their_last_digit(seconds: float) -> None:
    text = duration(seconds)
    if text.endswith(" s"):
        value, step = float(text[:-2]), 0.1 if "." in text else 1
    else:
        value, step = sum(int(part) * 60**i for i, part in enumerate(reversed(text.split(":")))), 1
    assert abs(value - seconds) <= step / 2 + 1e-9
