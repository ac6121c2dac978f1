"""Returns freed memory to the system.

Learning a unit frees large tensors around small ones that stay. The allocator of Linux's C library
keeps such gaps, and too few of the next unit's tensors fit into them: a process grows unit by unit.
"""

import ctypes
from functools import cache


def give_back() -> None:
    """Return free pages, about 20 ms for each GB; nothing happens where a system can't do this."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim():
    """glibc's `malloc_trim`, or None."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has none by this name
        return None
