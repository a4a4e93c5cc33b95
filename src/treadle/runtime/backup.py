"""Backups: a copy of a store that is in use, as it was at one moment, with the blobs that it names."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.errors import UsageError
from treadle.store.copied import BackupReader, CopiedBlobs

if TYPE_CHECKING:
    from treadle.runtime.node import Node


async def backup(node: Node, path: str | os.PathLike[str]) -> Path:
    """Copy the store to a file that does not exist yet, and its blobs to a folder beside it.

    The file is there wholly or not at all. Blobs are written before what names them, so copying them last misses none.

    Raises:
        UsageError: the store has no backups of its own, or the file exists.
        StoreError: the copy could not be made, or is not sound.
    """
    target = Path(path)
    reader, blobs = node.reader, node.blobs
    if not isinstance(reader, BackupReader):
        raise UsageError("this store has no backup by Treadle; use what its server brings, or copy to another store")
    for existing in (target, Path(f"{target}-blobs")):
        if existing.exists():
            raise UsageError(f"{existing} exists; a backup replaces nothing: give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    await node.read(lambda: reader.backup(str(target)))
    # Blobs that are kept elsewhere, in an object store, are as safe there as they were.
    if isinstance(blobs, CopiedBlobs):
        await asyncio.get_running_loop().run_in_executor(None, blobs.copy_to, f"{target}-blobs")
    return target
