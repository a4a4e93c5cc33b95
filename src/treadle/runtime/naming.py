"""Which blobs a run names: in its texts, and inside the values that these lead to."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from treadle.core.values import bare
from treadle.runtime.coding import inline_text, report_text
from treadle.runtime.payloads import chunks_of

if TYPE_CHECKING:
    from treadle.core.events import Handle
    from treadle.runtime.node import Node
    from treadle.store.base import RunHead

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
# The handles of values that do not stand in the text that holds them: they lie elsewhere, or are encoded.
_HANDLE: Final = re.compile(
    r'"((?:![A-Za-z0-9._-]+)?(?:@[0-9a-f]{32}|#sha256:[0-9a-f]{64})|![A-Za-z0-9._-]+=[A-Za-z0-9+/=]+)"'
)
# Values that are looked into at a time.
_BATCH: Final = 200
# What a step has reported. It is encoded as a report, and not as a value.
_REPORT: Final = re.compile(r'"progress":"(![A-Za-z0-9._-]+=[A-Za-z0-9+/=]+)"')


class Named:
    """The blobs that texts name, and the handles in them of which the values may name more."""

    def __init__(self) -> None:
        self.digests: dict[str, None] = {}
        self.handles: dict[Handle, None] = {}
        self.reports: dict[str, None] = {}

    def head(self, head: RunHead) -> None:
        """Note what a run's head names. The hash of what it was started with is that of no blob."""
        self.scan([msgspec.json.encode(msgspec.structs.replace(head, input_hash="")).decode()])

    def scan(self, texts: Iterable[str]) -> None:
        """Note what texts of a run name: rows of its journal, inputs that wait."""
        for text in texts:
            self._note(text)
            reports = _REPORT.findall(text)
            self.reports.update(dict.fromkeys(reports))
            self.handles.update(dict.fromkeys(one for one in _HANDLE.findall(text) if one not in reports))

    def _note(self, text: str) -> None:
        self.digests.update(dict.fromkeys(_DIGEST.findall(text)))

    async def look_inside(self, node: Node, key: str) -> None:
        """Note what the values name: a value may hold the reference of an artifact, of another run too.

        Raises:
            MissingKeyError: a value is encoded, and its key is not here.
        """
        for report in self.reports:
            self._note(report_text(node.payloads.codec, report))
        waiting = list(self.handles)
        for start in itertools.count(0, _BATCH):
            # Chunks that a value stands for come after all that was there.
            if not (some := waiting[start : start + _BATCH]):
                break
            async for text in _texts(node, key, some):
                self._note(text)
                items = chunks_of(text)
                chunks = [] if items is None else [one for one in items.chunks if one not in self.handles]
                self.handles.update(dict.fromkeys(chunks))
                waiting += chunks
        self.handles.clear()
        self.reports.clear()


async def _texts(node: Node, key: str, handles: list[Handle]) -> AsyncIterator[str]:
    """The texts of values. One that is lost, or whose run is deleted meanwhile, names nothing any more."""
    payloads = node.payloads
    rows = [where[1:] for where in map(bare, handles) if where.startswith("@")]
    found = await node.read(partial(node.reader.payloads, key, rows)) if rows else {}
    for handle in handles:
        where = bare(handle)
        if where.startswith("="):
            yield inline_text(payloads.codec, handle) if where is not handle else where[1:]
            continue
        data = found.get(where[1:]) if where.startswith("@") else await payloads.beside(partial(_blob, node, where[1:]))
        if data is not None:
            yield payloads.text_of(handle, data)


def _blob(node: Node, digest: str) -> bytes | None:
    try:
        return node.payloads.blobs.get(digest)
    except KeyError:
        return None
