"""Positions of followers beside the payloads of their runs, with which they go."""

from __future__ import annotations

from treadle.errors import SchemaVersionError
from treadle.store.nats.loop import Loop
from treadle.store.nats.reader import Rooms


class NatsPositions:
    """See `store.positions`. Of two followers of one name the slower may put the position back: events come again."""

    def __init__(self, loop: Loop, rooms: Rooms) -> None:
        self._loop = loop
        self._rooms = rooms

    def ready(self) -> None:
        """The stream of values is there."""

    def position(self, name: str, run: str) -> int:
        """Up to which version of a run's journal the follower has come."""
        found = self._loop.call(self._rooms.values.newest(self._rooms.location.position(run, name)))
        if found is not None and not found.isdigit():
            raise SchemaVersionError(f"the position of {name} was written by a newer Treadle: upgrade this one")
        return int(found or b"0")

    def move(self, name: str, run: str, after: int, version: int) -> bool:
        """Move it, if it is at `after`."""
        if self.position(name, run) != after:
            return False
        subject = self._rooms.location.position(run, name)
        self._loop.call(self._rooms.values.put([(subject, str(version).encode())]))
        return True

    def close(self) -> None:
        """The connection is the store's."""
