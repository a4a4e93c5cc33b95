"""Backups: a copy of a store that is in use, as it was at one moment, with the blobs that it names.

What the copy names was there at its moment; a moment later its run may be deleted, and the blob be collected. So blobs
are copied first, and those that have come meanwhile once more after the file. These are too young to be collected: the
time from the beginning of one pass over the blobs to the end of the next is well below the age at which they may be.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.errors import UsageError
from treadle.runtime.collecting import LEAST_SECONDS
from treadle.store.copied import BackupReader, CopiedBlobs

if TYPE_CHECKING:
    from treadle.runtime.node import Node


async def backup(node: Node, path: str | os.PathLike[str]) -> Path:
    """Copy the store to a file that does not exist yet, and its blobs to a folder beside it.

    The file is there wholly or not at all, and after it all blobs that it names, whoever deletes and collects
    meanwhile. A backup that was cut off may be made again to the same place.

    Raises:
        UsageError: the store has no backups of its own, or the file exists.
        StoreError: the copy could not be made, or is not sound.
    """
    _reader(node)
    target = _place(path)
    await copied(node, str(target))
    return target


def _reader(node: Node) -> BackupReader:
    if not isinstance(node.reader, BackupReader):
        raise UsageError("this store has no backup by Treadle; use what its server brings, or copy to another store")
    return node.reader


async def copied(node: Node, target: str) -> None:
    """Copy the blobs, the store, and what has come of blobs meanwhile."""
    reader, blobs = _reader(node), node.blobs
    # Blobs that are kept elsewhere, in an object store, are as safe there as they were.
    to_blobs = partial(blobs.copy_to, f"{target}-blobs") if isinstance(blobs, CopiedBlobs) else None
    if to_blobs is not None:
        clock = node.environment.clock
        while True:
            began = clock.monotonic()
            await node.beside(to_blobs)
            if clock.monotonic() - began < LEAST_SECONDS / 4:
                break
    await node.read(lambda: reader.backup(target))
    if to_blobs is not None:
        await node.beside(to_blobs)


def _place(path: str | os.PathLike[str]) -> Path:
    """The file that is to be, in a folder that is there."""
    target = Path(path)
    if target.exists():
        raise UsageError(f"{target} exists; a backup replaces nothing: give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
