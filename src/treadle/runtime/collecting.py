"""Collecting: blobs that no run names any more are removed once they are old.

Nobody counts references. A blob goes only if it was neither written nor renewed for a long time, and then was named by
no run and no waiting input. Whoever names a blob has written or renewed it shortly before, so that what a concurrent
writer needs is young: it is not even looked at, and if it becomes young meanwhile the store of blobs refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from treadle.authoring.durations import Duration, seconds_of
from treadle.core.values import bare
from treadle.errors import UsageError
from treadle.runtime.artifacts import RENEW_SECONDS
from treadle.store.base import RunQuery
from treadle.store.blobs import now

if TYPE_CHECKING:
    from treadle.runtime.node import Node

# A writer may take so long from its last write or renewal to the commit that names the blob, whatever happens.
LEAST_SECONDS: Final = 6 * RENEW_SECONDS
DEFAULT_AGE: Final = timedelta(days=1)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_HANDLE: Final = re.compile(
    r'"((?:![A-Za-z0-9._-]+)?(?:@[0-9a-f]{32}|#sha256:[0-9a-f]{64})|![A-Za-z0-9._-]+=[A-Za-z0-9+/=]+)"'
)
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


async def _named(node: Node) -> set[str]:
    """The digests that runs name: in what is decided, in what waits to be, and inside the values of both."""
    named: set[str] = set()
    after = ""
    while True:
        query = RunQuery(after=after, limit=_PAGE)
        runs = await node.read(partial(node.reader.runs, query))
        for run in runs:
            await _mark(node, run.key, named)
        if len(runs) < _PAGE:
            return named
        after = runs[-1].key


async def _mark(node: Node, key: str, named: set[str]) -> None:
    reader = node.reader
    # Before the journal: an input that is decided meanwhile is seen there, and one that comes later names what is
    # young.
    inbox = await node.committer.call(lambda store: store.inbox(key))
    head = await node.read(lambda: reader.head(key))
    values: dict[str, None] = {}
    texts = [item.body.decode() for item in inbox]
    if head is not None:
        texts.append(msgspec.json.encode(head[0]).decode())
    _scan(texts, named, values)
    after = 0
    while rows := await node.read(partial(reader.rows, key, after, _PAGE)):
        after = rows[-1][0]
        _scan([row[3] for row in rows], named, values)
    await _mark_values(node, key, list(values), named)


def _scan(texts: Iterable[str], named: set[str], values: dict[str, None]) -> None:
    for text in texts:
        named.update(_DIGEST.findall(text))
        values.update(dict.fromkeys(_HANDLE.findall(text)))


async def _mark_values(node: Node, key: str, handles: list[str], named: set[str]) -> None:
    """A value may hold the reference of an artifact, of another run too."""
    for start in range(0, len(handles), _PAGE):
        found: dict[str, Any] = await _present(node, key, handles[start : start + _PAGE])
        for text in found.values():
            named.update(_DIGEST.findall(text))


async def _present(node: Node, key: str, handles: list[str]) -> dict[str, str]:
    """The texts of stored values. A run that is deleted meanwhile has none, and needs none."""
    rows = [where[1:] for handle in handles if (where := bare(handle)).startswith("@")]
    found = await node.read(lambda: node.reader.payloads(key, rows))
    return await node.payloads.load(
        key, [handle for handle in handles if not (where := bare(handle)).startswith("@") or where[1:] in found]
    )
