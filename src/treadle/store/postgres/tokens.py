"""Sessions as this process holds them, and the numbers that the store gives once and never again."""

from __future__ import annotations

from treadle.store.postgres.connection import Link

# Tokens of one range; some 2**29 ranges fit below 2**53, so that tokens are exact in any JSON reader.
_TOKEN_BITS = 24
_RUN_BITS = 12


class OwnSession:
    """A session that writes through this store: its number, the count of its writer's connections, its lease tokens.

    Tokens come from memory. A range is taken from a sequence when the last one is used up; a sequence gives nothing
    twice, even if the transaction is undone.
    """

    __slots__ = ("_end", "_next", "id", "link", "n")

    def __init__(self, id: str, n: int, link: int) -> None:
        self.id = id
        self.n = n
        self.link = link
        self._next = self._end = 0

    def token(self, link: Link) -> int:
        """A new token."""
        token = self._next
        if token == self._end:
            token = _next_range(link, "@numbers") << _TOKEN_BITS
            self._end = token + (1 << _TOKEN_BITS)
        self._next = token + 1
        return token


class RunNumbers:
    """Numbers for new runs, taken in ranges as lease tokens are."""

    __slots__ = ("_end", "_next")

    def __init__(self) -> None:
        self._next = self._end = 0

    def take(self, link: Link) -> int:
        """A new number."""
        number = self._next
        if number == self._end:
            number = _next_range(link, "@run_ranges") << _RUN_BITS
            self._end = number + (1 << _RUN_BITS)
        self._next = number + 1
        return number


def _next_range(link: Link, sequence: str) -> int:
    ((value,),) = link.all(f"SELECT nextval('{sequence}')")
    assert isinstance(value, int)
    return value
