"""Large payloads in the store's stream of values, by content."""

from __future__ import annotations

from collections.abc import Iterable

from treadle.errors import StoreCorruptError
from treadle.store.blobs import WholeBlobs, digest_of
from treadle.store.nats.loop import Loop
from treadle.store.nats.reader import Rooms


class NatsBlobs(WholeBlobs):
    """Blobs of a store, for any thread. They are in parts; the message that names the others is stored last.

    They are written and read whole: for large artifacts a directory or a bucket is the place. How old one is goes by
    the server's time of that message, which is stored again when the blob is renewed.
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
            if not await self._rooms.values.renew(subject):
                await self._rooms.values.put([(subject, data)], label=digest)

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
        """Make the blob as young as a new one; False if it is gone."""
        return self._loop.call(self._rooms.values.renew(self._rooms.location.blob(digest)))

    def old(self, before: float) -> Iterable[tuple[str, int]]:
        """Digest and size of the blobs that were neither written nor renewed since that time."""
        heads = self._loop.call(self._rooms.values.heads(self._rooms.location.blobs))
        return [(head.label, head.size) for head in heads if head.time < before]

    def remove(self, digest: str, before: float) -> bool:
        """Remove the blob, unless it was renewed since that time; whether it did."""

        async def work() -> bool:
            values = self._rooms.values
            heads = await values.heads(self._rooms.location.blob(digest))
            return bool(heads) and heads[-1].time < before and await values.remove(heads[-1])

        return self._loop.call(work())
