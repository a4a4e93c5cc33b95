"""The real clock and ids; the only module that reads the machine's time and randomness."""

from __future__ import annotations

import os
import random
import secrets
import time


class SystemClock:
    """The machine's clocks."""

    # Seconds since the epoch; seconds on the machine's monotonic clock.
    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class RandomIds:
    """Ids from a generator seeded by the operating system's randomness, which is too slow to be asked per step."""

    def __init__(self) -> None:
        self._random = random.Random(secrets.randbits(256))  # noqa: S311 - keys must be unique, not secret
        self._pid = os.getpid()

    def _bits(self, count: int) -> int:
        if os.getpid() != self._pid:
            # After a fork both processes would give the same ids.
            self.__init__()  # type: ignore[misc]  # a new seed is a new start
        return self._random.getrandbits(count)

    def key(self) -> str:
        """A new UUIDv7 (RFC 9562): milliseconds, then 74 random bits."""
        return uuid7(int(time.time() * 1000), self._bits(74))

    def number(self) -> int:
        """A random positive 62-bit number."""
        return self._bits(62) | 1


def uuid7(milliseconds: int, random: int) -> str:
    """The UUIDv7 of a time and 74 random bits, as text."""
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80
    value |= 0x7 << 76 | (random >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | random & 0x3FFFFFFFFFFFFFFF
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
