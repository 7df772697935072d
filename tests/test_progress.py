"""support/progress.py: a line now and then where nobody looks on, with the time that is left worked out by hand."""

import pytest

from support import progress
from support.progress import in_words, with_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved: clock.now, in seconds."""
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_every_half_minute(clock, capsys):
    seen = []
    for item in with_progress(range(200), "features of photos", "batches"):
        clock.now += 16
        seen.append(item)
    lines = capsys.readouterr().err.splitlines()
    assert seen == list(range(200)) and len(lines) == 100  # after every other batch
    assert lines[0] == "features of photos: 2 of 200 batches, 53 min left"  # 198 of 16 s
    assert lines[-2:] == ["features of photos: 198 of 200 batches, 32 s left",
                          "features of photos: 200 of 200 batches, 0 s left"]


def test_what_was_done_before_counts_but_not_for_the_speed(clock, capsys):
    for _ in with_progress(iter("ab"), "epoch 3/9", "steps", 100, done=90):
        clock.now += 31
    assert capsys.readouterr().err.splitlines() == ["epoch 3/9: 91 of 100 steps, 5 min left",
                                                    "epoch 3/9: 92 of 100 steps, 4 min left"]


def test_a_short_loop_an_untitled_one_and_another_process_say_nothing(clock, capsys, monkeypatch):
    assert list(with_progress([1, 2], "short", "photos")) == [1, 2]
    for _ in with_progress([1, 2], None, "photos"):
        clock.now += 100
    monkeypatch.setenv("RANK", "1")
    for _ in with_progress([1, 2], "not mine to say", "photos"):
        clock.now += 100
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = with_progress([1, 2], "checking photos", "photos")
    for _ in bar:
        bar.set_postfix(loss="0.123", refresh=False)
    assert "checking photos" in capsys.readouterr().err


@pytest.mark.parametrize("seconds, words", [(0, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (9000, "2.5 h")])
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words
