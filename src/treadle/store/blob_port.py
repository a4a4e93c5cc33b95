"""The port of blobs: what the runtime asks of a place where large values lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class BlobWriter(Protocol):
    """A blob that is being written; nobody sees it before `finish`."""

    def write(self, data: bytes, /) -> None:
        """Add bytes at the end."""
        ...

    def finish(self) -> str:
        """Store, and return the digest. On return the blob is durable; if it raises, nothing was stored."""
        ...

    def abort(self) -> None:
        """Forget what was written; also after an error."""
        ...


class BlobFile(Protocol):
    """A blob that is being read."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to so many of the next bytes, all that are left without a size; nothing at the end."""
        ...

    def close(self) -> None:
        """Free what the stream holds."""
        ...


class Blobs(Protocol):
    """Large payloads and artifacts by content. Writes are atomic; writing the same content twice is one blob.

    Nobody counts who names a blob: one that no run names is removed once it is old. So `put`, `finish` and `renew`
    make a blob young, and whoever is about to name one has done one of them not long ago. Usable from any thread.
    """

    def put(self, data: bytes) -> str:
        """Store and return the digest (`sha256:...`)."""
        ...

    def get(self, digest: str) -> bytes:
        """The bytes.

        Raises:
            KeyError: no such blob.
        """
        ...

    def writer(self) -> BlobWriter:
        """Begin a blob of any size, in constant memory."""
        ...

    def open(self, digest: str) -> BlobFile:
        """The bytes as a stream, which whoever reads it checks.

        Raises:
            KeyError: no such blob.
        """
        ...

    def uri(self, digest: str) -> str:
        """Where people and other programs find the blob."""
        ...

    def renew(self, digest: str) -> bool:
        """Make the blob as young as a new one; False if it is gone."""
        ...

    def old(self, before: float) -> Iterable[tuple[str, int]]:
        """Digest and size of the blobs that were neither written nor renewed since that time."""
        ...

    def remove(self, digest: str, before: float) -> bool:
        """Remove the blob, unless it was renewed since that time; whether it did."""
        ...
