"""Large payloads in the store's stream of values, by content."""

from __future__ import annotations

from treadle.errors import StoreCorruptError
from treadle.store.blobs import WholeBlobs, digest_of
from treadle.store.nats.link import Loop
from treadle.store.nats.reader import Rooms


class NatsBlobs(WholeBlobs):
    """Blobs of a store, for any thread. They are in parts; the one that names the others is stored last.

    They are written and read whole, and never removed: for large artifacts a directory or a bucket is the place.
    """

    def __init__(self, loop: Loop, rooms: Rooms) -> None:
        self._loop = loop
        self._rooms = rooms

    def put(self, data: bytes) -> str:
        """Store and return the digest; on return the server has confirmed it.

        Raises:
            StoreFullError: no room is left; the blob is not there.
            StoreUnavailableError: the server does not answer.
        """
        digest = digest_of(data)
        subject = self._rooms.location.blob(digest)

        async def work() -> None:
            if await self._rooms.values.get_head(subject) is None:
                await self._rooms.values.put([(subject, data)])

        self._loop.call(work())
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes.

        Raises:
            KeyError: no such blob.
            StoreCorruptError: it is not what was stored.
        """
        data = self._loop.call(self._rooms.values.get(self._rooms.location.blob(digest)))
        if data is None:
            raise KeyError(digest)
        if digest_of(data) != digest:
            raise StoreCorruptError(f"{self._rooms.location.shown}: the blob {digest} is damaged")
        return data

    def uri(self, digest: str) -> str:
        """The store, and the subject of the blob there."""
        return f"{self._rooms.location.shown}#{self._rooms.location.blob(digest)}"

    def renew(self, digest: str) -> bool:
        """Whether the blob is there; it does not grow old."""
        return self._loop.call(self._rooms.values.get_head(self._rooms.location.blob(digest))) is not None
