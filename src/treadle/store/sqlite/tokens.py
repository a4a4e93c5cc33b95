"""Sessions as this process holds them, and the numbers that the store gives once and never again."""

from __future__ import annotations

from treadle.store.sqlite.connection import Database

# Tokens of one range; some 2**29 ranges fit below 2**53, so that tokens are exact in any JSON reader.
_RANGE_BITS = 24


def count_up(con: Database, name: str) -> int:
    """The next value of a counter, in the transaction that is open."""
    con.execute("UPDATE counters SET value = value + 1 WHERE name = ?", (name,))
    ((value,),) = con.execute("SELECT value FROM counters WHERE name = ?", (name,))
    assert isinstance(value, int)
    return value


class OwnSession:
    """A session that writes through this store: its number, and its range of lease tokens.

    Tokens come from memory. A range is taken from the store's counter when the last one is used up, so handles
    that share a session, and sessions of later processes, never give the same token.
    """

    __slots__ = ("_end", "_next", "id", "n")

    def __init__(self, id: str, n: int) -> None:
        self.id = id
        self.n = n
        self._next = self._end = 0

    def token(self, con: Database) -> int:
        """A new token."""
        token = self._next
        if token == self._end:
            token = count_up(con, "session") << _RANGE_BITS
            self._end = token + (1 << _RANGE_BITS)
        self._next = token + 1
        return token

    def forget_range(self) -> None:
        """Take a new range next time: the transaction that took this one may not have happened."""
        self._next = self._end = 0
