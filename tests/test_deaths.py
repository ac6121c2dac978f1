"""How a process died, in words."""

import os
import signal

import pytest

from qlib.core.deaths import MEANINGS, WORDS, cause, remedy

posix = pytest.mark.skipif(os.name != "posix", reason="names of signals")


@posix
@pytest.mark.parametrize("name", MEANINGS)
def test_every_signal_is_told_however_its_code_is_written(name):
    number = int(signal.Signals[name])
    assert cause(-number) == cause(128 + number) == f"{MEANINGS[name]} ({name})"
    assert remedy(cause(-number))


@posix
def test_a_signal_without_a_meaning_of_its_own():
    assert cause(-signal.SIGUSR1) == "was ended by a signal (SIGUSR1)"


@pytest.mark.parametrize("code", [0, 1, 2, 120, 128, 255, -250])
def test_codes_that_are_no_signal(code):
    assert cause(code, "Fatal Python error: Aborted") == ""


def test_without_a_code_the_log_is_asked():
    stack = "Thread 0x1 (most recent call first):\n  File x, line 3 in y\n"
    for words, name in WORDS.items():
        assert f"({name})" in cause(None, f"begin\nFatal Python error: {words}\n\n{stack}")
    assert cause(None, "Traceback (most recent call last):\nKeyError: 3") == ""
    assert cause(None, "Fatal Python error: something new") == ""


@posix
def test_advice_fits_the_cause():
    assert "fewer images" in remedy(cause(-signal.SIGKILL))
    assert remedy(cause(-signal.SIGTERM)) == "start it again"
    assert "another method" in remedy(cause(-signal.SIGSEGV))
