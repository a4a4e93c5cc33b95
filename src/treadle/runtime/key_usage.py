"""Which keys the runs of a store need, so that a key which nobody needs any more can be taken out of use."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from treadle.core.tables import LIVE
from treadle.core.values import key_id_of
from treadle.runtime.coding import is_encoded_text
from treadle.store.base import RunQuery, RunRow

if TYPE_CHECKING:
    from treadle.runtime.node import Node

_PAGE: Final = 200
# A handle, wherever it stands; and the reference of an artifact.
_ENCODED: Final = re.compile(r'"!([A-Za-z0-9._-]{1,64})[=@#]|"key_id":"([A-Za-z0-9._-]{1,64})"')
_PLAIN: Final = re.compile(r'"(@[0-9a-f]{32}|#sha256:[0-9a-f]{64})"')


async def keys_in_use(node: Node) -> dict[str, int]:
    """How many runs need each key, by its id. Reads every journal."""
    counts: Counter[str] = Counter()
    after = ""
    while True:
        runs = await node.read(partial(node.reader.runs, RunQuery(after=after, limit=_PAGE)))
        for run in runs:
            counts.update(await _keys_of(node, run))
        if len(runs) < _PAGE:
            return dict(sorted(counts.items()))
        after = runs[-1].key


async def _keys_of(node: Node, run: RunRow) -> set[str]:
    reader, key = node.reader, run.key
    found: set[str] = set()
    plain: dict[str, None] = {}

    def scan(text: str) -> None:
        found.update(one or other for one, other in _ENCODED.findall(text))
        plain.update(dict.fromkeys(_PLAIN.findall(text)))

    for item in await node.committer.call(lambda store: store.inbox(key)):
        scan(item.body.decode())
    head = await node.read(partial(reader.head, key))
    if head is not None:
        scan(msgspec.json.encode(head[0]).decode())
    after = 0
    while rows := await node.read(partial(reader.rows, key, after, _PAGE)):
        after = rows[-1][0]
        for row in rows:
            scan(row[3])
    if run.status in LIVE and (loaded := await node.read(partial(reader.load, key))) is not None:
        # What an attempt has reported is in its task alone.
        found.update(key_id_of(task.progress) for task in loaded.tasks if is_encoded_text(task.progress))
    await _scan_lists(node, key, list(plain), found)
    return found


async def _scan_lists(node: Node, key: str, handles: list[str], found: set[str]) -> None:
    """What stands for a list in chunks is not encoded, and its chunks may be."""
    for start in range(0, len(handles), _PAGE):
        some = handles[start : start + _PAGE]
        rows = await node.read(partial(node.reader.payloads, key, [one[1:] for one in some if one[0] == "@"]))
        there = [one for one in some if one[0] == "#" or one[1:] in rows]
        for text in (await node.payloads.stored(key, there)).values():
            found.update(one or other for one, other in _ENCODED.findall(text))
