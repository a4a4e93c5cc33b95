"""Large payloads in a table of the store, so that every machine reads what one of them wrote."""

from __future__ import annotations

import threading

from treadle.store.blobs import WholeBlobs, digest_of
from treadle.store.postgres.connection import Link
from treadle.store.postgres.location import Location


class PostgresBlobs(WholeBlobs):
    """Blobs as rows, on a connection that is opened when the first of them is written or read. Any thread may call."""

    def __init__(self, location: Location) -> None:
        self._link = Link(location, name="treadle blobs")
        self._lock = threading.Lock()
        self._shown = location.shown

    def put(self, data: bytes) -> str:
        """Store and return the digest. The transaction has ended, with the durability of every other one."""
        digest = digest_of(data)
        with self._lock:
            # One that is there is not sent again.
            ((there,),) = self._link.read(("SELECT count(*) FROM @blobs WHERE digest = %s", (digest,)))[0]
            if not there:
                self._link.run(
                    "INSERT INTO @blobs (digest, body) VALUES (%s, %s) ON CONFLICT DO NOTHING", (digest, data)
                )
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes.

        Raises:
            KeyError: no such blob.
        """
        with self._lock:
            (found,) = self._link.read(("SELECT body FROM @blobs WHERE digest = %s", (digest,)))
        if not found:
            raise KeyError(digest)
        body: bytes = found[0][0]
        return body

    def uri(self, digest: str) -> str:
        """The store, and the digest of the row."""
        return f"{self._shown}#{digest}"

    def renew(self, digest: str) -> bool:
        """Whether the blob is there; it does not grow old."""
        with self._lock:
            ((there,),) = self._link.read(("SELECT count(*) FROM @blobs WHERE digest = %s", (digest,)))[0]
        return bool(there)

    def close(self) -> None:
        """End the connection."""
        self._link.close()
