"""Collecting: blobs that no run names any more are removed once they are old.

Nobody counts references. A blob goes only if it was neither written nor renewed for a long time, and then was named by
no run and no waiting input. Whoever names a blob has written or renewed it shortly before, so that what a concurrent
writer needs is young: it is not even looked at, and if it becomes young meanwhile the store of blobs refuses.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from treadle.authoring.durations import Duration, seconds_of
from treadle.errors import UsageError
from treadle.runtime.artifacts import RENEW_SECONDS
from treadle.runtime.naming import Named
from treadle.store.base import RunQuery
from treadle.store.blobs import now

if TYPE_CHECKING:
    from treadle.runtime.node import Node

# A writer may take so long from its last write or renewal to the commit that names the blob, whatever happens.
LEAST_SECONDS: Final = 6 * RENEW_SECONDS
DEFAULT_AGE: Final = timedelta(days=1)
_PAGE: Final = 200


class Collected(msgspec.Struct, frozen=True):
    """What was removed, or would be: how many blobs, and their bytes. `kept` are old ones that runs name."""

    removed: int
    size: int
    kept: int


async def collect(node: Node, age: Duration, *, dry_run: bool = False) -> Collected:
    """Remove the blobs that are older than `age` and that no run names.

    Raises:
        UsageError: the age is shorter than a writer may take.
        MissingKeyError: an encoded value may name blobs, and its key is not here; nothing is removed.
    """
    seconds = seconds_of(age, "older_than")
    if seconds < LEAST_SECONDS:
        raise UsageError(
            f"blobs younger than {timedelta(seconds=LEAST_SECONDS)} may belong to steps that run; give a longer age"
        )
    return await sweep(node, now() - seconds, dry_run=dry_run)


async def sweep(node: Node, before: float, *, dry_run: bool = False) -> Collected:
    """As `collect`, by an instant of the blobs' own time."""
    blobs, beside = node.payloads.blobs, node.payloads.beside
    old: list[tuple[str, int]] = await beside(lambda: list(blobs.old(before)))
    if not old:
        return Collected(0, 0, 0)
    named = await _named(node)
    removed = size = 0
    for digest, bytes_ in old:
        if digest not in named and (dry_run or await beside(partial(blobs.remove, digest, before))):
            removed += 1
            size += bytes_
    return Collected(removed, size, len(old) - removed)


async def _named(node: Node) -> dict[str, None]:
    """The digests that runs name: in what is decided, in what waits to be, and inside the values of both."""
    named = Named()
    after = ""
    while True:
        query = RunQuery(after=after, limit=_PAGE)
        runs = await node.read(partial(node.reader.runs, query))
        for run in runs:
            await _mark(node, run.key, named)
        if len(runs) < _PAGE:
            return named.digests
        after = runs[-1].key


async def _mark(node: Node, key: str, named: Named) -> None:
    reader = node.reader
    # Before the journal: an input that is decided meanwhile is seen there, and one that comes later names what is
    # young.
    inbox = await node.committer.call(lambda store: store.inbox(key))
    named.scan(item.body.decode() for item in inbox)
    head = await node.read(lambda: reader.head(key))
    if head is not None:
        named.head(head[0])
    after = 0
    while rows := await node.read(partial(reader.rows, key, after, _PAGE)):
        after = rows[-1][0]
        named.scan(row[3] for row in rows)
    await named.look_inside(node, key)
