"""How a process died, in words: which signal ended it, and what that mostly means."""

import re
import signal

SHELL = 128  # a shell, and some starters, report a signal as 128 and its number
MEANINGS = {
    "SIGKILL": "was killed, most often because the machine ran out of memory",
    "SIGSEGV": "touched memory that is not its own, which is a fault of a compiled library",
    "SIGBUS": "touched memory that is not there: a disk or a memory ran full, or a file shrank",
    "SIGABRT": "gave up inside a compiled library, often after its memory was damaged",
    "SIGILL": "met an instruction that this processor does not have",
    "SIGFPE": "divided by zero inside a compiled library",
    "SIGTERM": "was told to end",
    "SIGINT": "was interrupted",
    "SIGHUP": "lost the terminal that it was started from",
    "SIGXCPU": "used up the processor time that it was allowed",
}
# what Python's fault handler writes as a process goes down, for when nobody has its exit code
WORDS = {
    "Segmentation fault": "SIGSEGV",
    "Bus error": "SIGBUS",
    "Aborted": "SIGABRT",
    "Illegal instruction": "SIGILL",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
}


def cause(code: int | None, log: str = "") -> str:
    """What ended a process, as the rest of a sentence; "" where it was no signal.

    Args:
        code: its exit code; None where nobody knows it.
        log: the end of what it wrote; asked only where there is no code.
    """
    name = _name(code) if code is not None else _in_log(log)
    if not name:
        return ""
    return f"{MEANINGS.get(name, 'was ended by a signal')} ({name})"


def remedy(name_of_cause: str) -> str:
    """What to try after a death of `cause`."""
    if "SIGKILL" in name_of_cause:
        return "use fewer images or a smaller network, close other programs, and start it again"
    if any(name in name_of_cause for name in ("SIGTERM", "SIGINT", "SIGHUP")):
        return "start it again"
    return "keep that layer in float, or choose another method, and start it again"


def _name(code: int) -> str:
    number = -code if code < 0 else code - SHELL
    try:
        return signal.Signals(number).name if number > 0 else ""
    except ValueError:
        return ""


def _in_log(log: str) -> str:
    said = re.findall(r"Fatal Python error: ([A-Z][A-Za-z -]+)", log)
    return WORDS.get(said[-1].strip(), "") if said else ""
