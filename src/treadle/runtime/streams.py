"""Lists that are stored and read piece by piece: what steps yield, and what steps take while they run.

A list that was yielded is stored as chunks, each the JSON of some of its items, and a manifest that names them. Whoever
reads it as a whole gets the list (`Payloads.load`); a step may read it chunk by chunk, by a `Stream`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from treadle.authoring import codec
from treadle.authoring.context import step_context
from treadle.authoring.registry import StepDefinition
from treadle.authoring.secrets import with_secrets
from treadle.core.events import Arg, ArgList, Handle, Items
from treadle.errors import UsageError
from treadle.runtime.payloads import assemble, handles_of, manifest_of

if TYPE_CHECKING:
    from treadle.runtime.step_context import RunningStep

T = TypeVar("T")
# A stored list of items has at most so many, and about so many bytes.
CHUNK_ITEMS: Final = 500
CHUNK_BYTES: Final = 64 * 1024
# Asks for the JSON texts of handles, from any thread.
Ask = Callable[[Sequence[Handle]], concurrent.futures.Future[list[str]]]


# -- what a step yields ----------------------------------------------------------------------------------------------


class Yielded:
    """What a generator gave: all of its items as JSON if they are few, else the chunks in which they were stored."""

    __slots__ = ("items", "text")

    def __init__(self, text: str, items: Items | None = None) -> None:
        self.text = text
        self.items = items


class _Collector:
    """Puts items together to chunks of equal length; the first one fixes it."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._bytes = 0
        self._size = 0
        self._count = 0
        self._chunks: list[Handle] = []

    def add(self, text: str) -> str | None:
        """Take an item; gives a chunk to store if one is full."""
        self._texts.append(text)
        self._bytes += len(text)
        self._count += 1
        length = len(self._texts)
        if length < self._size if self._size else length < CHUNK_ITEMS and self._bytes < CHUNK_BYTES:
            return None
        self._size = length
        return self.rest()

    def rest(self) -> str:
        """What has not been given as a chunk."""
        text = f"[{','.join(self._texts)}]"
        self._texts, self._bytes = [], 0
        return text

    @property
    def unfinished(self) -> bool:
        """Whether there are stored chunks, and items beyond them."""
        return bool(self._chunks and self._texts)

    def keep(self, handle: Handle) -> None:
        """Note where a chunk was stored."""
        self._chunks.append(handle)

    def end(self) -> Yielded:
        """What was yielded, once the last chunk is stored."""
        if not self._chunks:
            return Yielded(self.rest())
        items = Items(self._count, self._size, tuple(self._chunks))
        return Yielded(manifest_of(items), items)


def collecting(definition: StepDefinition, *, hides: bool) -> Callable[[dict[str, Any]], Any]:
    """How a generator is called: its items are stored as they come, and nothing holds all of them."""
    adapter = definition.yields
    assert adapter is not None
    invoke, encode = definition.invoke, adapter.encode
    if hides:
        encode = partial(with_secrets, encode)

    async def on_loop(values: dict[str, Any]) -> Yielded:
        found, store = _Collector(), _context().store_chunk
        async with aclosing(invoke(values)) as items:
            async for item in items:
                if (chunk := found.add(encode(item))) is not None:
                    found.keep(await asyncio.wrap_future(store(chunk)))
        if found.unfinished:
            found.keep(await asyncio.wrap_future(store(found.rest())))
        return found.end()

    def in_thread(values: dict[str, Any]) -> Yielded:
        found, context = _Collector(), _context()
        store = context.store_chunk
        with closing(invoke(values)) as items:
            for item in items:
                context.check_cancelled()
                if (chunk := found.add(encode(item))) is not None:
                    found.keep(store(chunk).result())
        if found.unfinished:
            found.keep(store(found.rest()).result())
        return found.end()

    return on_loop if definition.is_async else in_thread


def _context() -> RunningStep:
    return cast("RunningStep", step_context.get())


# -- what a step reads -----------------------------------------------------------------------------------------------


class Stream(Generic[T]):
    """A list that is read while a step goes through it, from its beginning as often as it likes."""

    __slots__ = ("_ask", "_convert", "_loop", "pieces", "stored")

    def __init__(
        self,
        pieces: Sequence[Sequence[Arg] | Handle | list[Any]],
        convert: Callable[[object], T],
        ask: Ask,
        loop: asyncio.AbstractEventLoop | None,
        stored: Items | None = None,
    ) -> None:
        self.pieces = pieces
        self.stored = stored
        self._convert = convert
        self._ask = ask
        # The event loop that must not be blocked.
        self._loop = loop

    def __len__(self) -> int:
        return self.stored.count if self.stored is not None else sum(len(piece) for piece in self.pieces)

    def __iter__(self) -> Iterator[T]:
        if _running_loop() is self._loop is not None:
            raise UsageError("reading would block the event loop; go through the items with `async for`")
        for piece in self.pieces:
            wanted = _handles(piece)
            yield from self._values(piece, wanted, self._ask(wanted).result() if wanted else [])

    async def __aiter__(self) -> AsyncIterator[T]:
        for piece in self.pieces:
            wanted = _handles(piece)
            texts = await asyncio.wrap_future(self._ask(wanted)) if wanted else []
            for value in self._values(piece, wanted, texts):
                yield value

    def _values(self, piece: object, wanted: Sequence[Handle], texts: Sequence[str]) -> Iterator[T]:
        return map(self._convert, _trees(piece, wanted, texts))

    async def trees(self) -> list[object]:
        """All items as plain JSON trees."""
        found: list[object] = []
        for piece in self.pieces:
            wanted = _handles(piece)
            texts = await asyncio.wrap_future(self._ask(wanted)) if wanted else []
            found += _trees(piece, wanted, texts)
        return found


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _trees(piece: object, wanted: Sequence[Handle], texts: Sequence[str]) -> list[object]:
    """The items of a piece, of which the texts are at hand."""
    trees = {handle: codec.plain(text) for handle, text in zip(wanted, texts, strict=True)}
    if isinstance(piece, tuple):
        return [assemble(arg, trees) for arg in cast("tuple[Arg, ...]", piece)]
    return cast("list[object]", trees[piece] if isinstance(piece, str) else piece)


def _handles(piece: object) -> list[Handle]:
    found: list[Handle] = []
    if isinstance(piece, str):
        found.append(piece)
    elif isinstance(piece, tuple):
        for arg in cast("tuple[Arg, ...]", piece):
            handles_of(arg, found)
    return list(dict.fromkeys(found))


def pieces_of(arg: ArgList) -> list[tuple[Arg, ...]]:
    """The arguments that a list is made of, as many together as are read at once."""
    return [tuple(arg.items[start : start + CHUNK_ITEMS]) for start in range(0, len(arg.items), CHUNK_ITEMS)]
