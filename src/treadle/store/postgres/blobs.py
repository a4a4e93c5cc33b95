"""Large payloads in a table of the store, so that every machine reads what one of them wrote."""

from __future__ import annotations

import threading
from typing import Any

from treadle.errors import StoreUnavailableError
from treadle.store.blobs import WholeBlobs, digest_of
from treadle.store.postgres.connection import Link
from treadle.store.postgres.location import Location

# The server's time: blobs of all machines grow old by one clock.
_NOW = "extract(epoch FROM clock_timestamp())::double precision"


class PostgresBlobs(WholeBlobs):
    """Blobs as rows, on a connection that is opened when the first of them is written or read. Any thread may call."""

    def __init__(self, location: Location) -> None:
        self._link = Link(location, name="treadle blobs")
        self._lock = threading.Lock()
        self._shown = location.shown

    def put(self, data: bytes) -> str:
        """Store and return the digest. The transaction has ended, with the durability of every other one."""
        digest = digest_of(data)
        # One that is there is not sent again.
        if not self.renew(digest):
            self._run(
                "INSERT INTO @blobs (digest, body) VALUES (%s, %s) ON CONFLICT (digest) DO UPDATE SET at = excluded.at",
                digest,
                data,
            )
        return digest

    def _run(self, sql: str, *values: Any) -> int:
        """Run a statement that may be run twice; how many rows it has changed."""
        with self._lock:
            try:
                return self._link.run(sql, values)
            except StoreUnavailableError:
                if self._link.is_open:
                    raise
                # The connection had died before; that is noticed only by using it.
                return self._link.run(sql, values)

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
        """Make the blob as young as a new one; False if it is gone."""
        return self._run(f"UPDATE @blobs SET at = {_NOW} WHERE digest = %s", digest) > 0

    def old(self, before: float) -> list[tuple[str, int]]:
        """Digest and size of the blobs that were neither written nor renewed since."""
        with self._lock:
            # The size is known without the bytes.
            (found,) = self._link.read(("SELECT digest, octet_length(body) FROM @blobs WHERE at < %s", (before,)))
        return [(digest, size) for digest, size in found]

    def remove(self, digest: str, before: float) -> bool:
        """Remove the blob, if it is still as old as that.

        Whoever renews it meanwhile is waited for, and sees that it is gone if it comes later.
        """
        return self._run("DELETE FROM @blobs WHERE digest = %s AND at < %s", digest, before) > 0

    def close(self) -> None:
        """End the connection."""
        self._link.close()
