"""What stores and blobs have besides, if they can be copied while they are in use."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class BackupReader(Protocol):
    """What the reader of a store has besides, if the store can be copied while it is in use."""

    def backup(self, path: str) -> None:
        """Copy all of it, as it is at one moment, to a new file; durable and checked when this returns.

        Raises:
            StoreError: it could not be done; nothing is at the path.
        """
        ...


@runtime_checkable
class CopiedBlobs(Protocol):
    """What blobs have besides, if they can be copied as files."""

    def copy_to(self, path: str) -> None:
        """Copy all blobs to a folder, but for those that are there already; durable when this returns."""
        ...
