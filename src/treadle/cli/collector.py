"""The garbage collector of processes that are Treadle's own."""

from __future__ import annotations

import gc
from typing import Final

# Objects that come, less those that go, until what is young is looked at. CPython has 700, or 2,000.
_YOUNG: Final = 10_000


def look_less_often() -> None:
    """Let the collector look at what is young less often: runs that wait hold many objects, and none is garbage.

    For programs that work on a store that lasts, before a user's module is imported: what that sets stands. A library
    leaves the collector to its program.
    """
    young, *older = gc.get_threshold()
    # 0 means that it is off.
    if 0 < young < _YOUNG:
        gc.set_threshold(_YOUNG, *older)
