"""Payloads: where a value's JSON text goes by its size, and how handles are turned back into text.

A handle is `=` and the text itself (up to 1 KiB), `@` and the digest of a row of the run (up to 256 KiB), or `#`
and the digest of a blob. Blobs are written before the append that names them. With a payload codec the bytes are
encoded first, and the handle says so (`coding`); what stands for chunks holds handles only and stays as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import msgspec

from treadle.authoring import codec
from treadle.authoring.adapters import TAG
from treadle.authoring.secrets import with_secrets
from treadle.core.events import Arg, ArgList, ArgMap, Handle, Items, Pick
from treadle.core.values import bare, key_id_of
from treadle.errors import MissingPathError, StoreError
from treadle.ports import PayloadCodec
from treadle.runtime.coding import VALUE, EncodingBlobs, decoded, inline_handle, inline_text
from treadle.store.base import INLINE_BYTES, ROW_BYTES, Reader
from treadle.store.blob_port import Blobs

# Trees that are kept, each of at most so many bytes of text.
CACHED_TREES = 64
CACHED_BYTES = 1024 * 1024
# What is larger is encoded on another thread: at some 500 MB a second it would hold up the event loop.
ENCODED_HERE = 16 * 1024

T = TypeVar("T")
Row = tuple[str, bytes]

# How the text begins that stands for a list of which each part is stored by itself (see `streams`).
_MANIFEST: Final = f'{{"{TAG}":["chunks",'


def manifest_of(items: Items) -> str:
    """The text that stands for a list that is stored in chunks."""
    return f"{_MANIFEST}{msgspec.json.encode(items).decode()}]}}"


def chunks_of(text: str) -> Items | None:
    """The chunks that a text stands for; None if it is a value like any other."""
    if not text.startswith(_MANIFEST):
        return None
    return msgspec.json.decode(text[len(_MANIFEST) : -2], type=Items)


def joined(texts: Sequence[str]) -> str:
    """The text of the list that chunks make."""
    return f"[{','.join([text[1:-1] for text in texts if len(text) > 2])}]"


class Payloads:
    """Places and loads payloads of one store."""

    def __init__(
        self,
        reader: Reader,
        blobs: Blobs,
        in_reader: Callable[[Callable[[], object]], Awaitable[object]],
        beside: Callable[[Callable[[], Any]], Awaitable[Any]],
        codec: PayloadCodec | None = None,
    ) -> None:
        self._reader = reader
        self.blobs = blobs
        self.codec = codec
        # Where the content of artifacts goes.
        self.content: Blobs | EncodingBlobs = blobs if codec is None else EncodingBlobs(blobs, codec)
        # Whether what is stored here may hold secrets.
        self.hides = codec is not None and codec.hides
        # Up to so many bytes a result needs no other place than the outcome.
        self.inline_bytes = INLINE_BYTES if codec is None else 0
        # Runs what reads and writes blobs on some other thread.
        self.beside = beside
        # Runs a blocking function on the thread that owns the reader.
        self._in_reader = in_reader
        # Stored values that parts are taken from, such as a gather's items; never changed.
        self._trees: dict[tuple[str, Handle], object] = {}
        # Plans that give no secrets, by their hash.
        self.plain_plans: dict[str, None] = {}
        self._reading: dict[tuple[str, Handle], asyncio.Future[None]] = {}

    def text(self, value: object) -> str:
        """The JSON text of a value that is to be placed.

        Raises:
            EncodeError: it has none, or holds a secret and nothing here hides it.
        """
        return with_secrets(codec.encode, value) if self.hides else codec.encode(value)

    async def place(self, text: str, rows: list[Row] | None, repeats: str = "") -> Handle:
        """The handle of a text; adds the row to write with the append, or writes the blob.

        Without `rows`, for what may travel through an inbox, all that does not fit into the handle is a blob. With
        `repeats`, equal texts have equal handles for one key, wherever `repeats` is the same.
        """
        # What stands for chunks is no value: it is never taken for one that is at hand.
        is_value = not text.startswith(_MANIFEST)
        codec = self.codec
        if codec is not None and is_value:
            data = text.encode()
            if len(data) <= INLINE_BYTES:
                data = codec.encode(data, VALUE, repeats)
                return inline_handle(codec, data) or await self._place(data, rows, f"!{codec.key_id}")
            encoding = partial(codec.encode, data, VALUE, repeats)
            data = encoding() if len(data) <= ENCODED_HERE else await self.beside(encoding)
            return await self._place(data, rows, f"!{codec.key_id}")
        if is_value and len(text) <= INLINE_BYTES:
            return "=" + text
        return await self._place(text.encode(), rows)

    async def _place(self, data: bytes, rows: list[Row] | None, prefix: str = "") -> Handle:
        if rows is not None and len(data) <= ROW_BYTES:
            digest = hashlib.sha256(data).hexdigest()[:32]
            rows.append((digest, data))
            return f"{prefix}@{digest}"
        blob: str = await self.beside(lambda: self.blobs.put(data))
        return f"{prefix}#{blob}"

    def cached(self, key: str, handle: Handle) -> object | None:
        """The JSON tree of a stored value, if it was read a moment ago."""
        return self._trees.get((key, handle))

    async def trees(self, key: str, handles: Iterable[Handle]) -> dict[Handle, object]:
        """The JSON trees of handles; those of stored values are kept for a while, and read once for all who wait."""
        found: dict[Handle, object] = {}
        wanted: list[Handle] = []
        for handle in dict.fromkeys(handles):
            if handle.startswith("="):
                found[handle] = codec.plain(handle[1:])
            elif bare(handle).startswith("="):
                found[handle] = codec.plain(inline_text(self.codec, handle))
            elif (tree := self._trees.get((key, handle))) is not None:
                found[handle] = tree
            else:
                wanted.append(handle)
        mine = [handle for handle in wanted if (key, handle) not in self._reading]
        others = [handle for handle in wanted if (key, handle) in self._reading]
        if mine:
            found.update(await self._read_trees(key, mine))
        for handle in others:
            reading = self._reading.get((key, handle))
            if reading is not None:
                await asyncio.wait([reading])
            found.update(await self.trees(key, [handle]))
        return found

    async def _read_trees(self, key: str, handles: list[Handle]) -> dict[Handle, object]:
        reading = asyncio.get_running_loop().create_future()
        self._reading.update(dict.fromkeys(((key, handle) for handle in handles), reading))
        try:
            texts = await self.load(key, handles)
            found = {handle: codec.plain(text) for handle, text in texts.items()}
            for handle in handles:
                if len(texts[handle]) <= CACHED_BYTES:
                    self._trees[key, handle] = found[handle]
            while len(self._trees) > CACHED_TREES:
                del self._trees[next(iter(self._trees))]
        finally:
            for handle in handles:
                self._reading.pop((key, handle), None)
            reading.set_result(None)
        return found

    async def load(self, key: str, handles: Iterable[Handle]) -> dict[Handle, str]:
        """The JSON texts of handles, in one batched read; one more for the chunks of those that are stored so."""
        texts = await self.stored(key, handles)
        parts = {handle: found for handle, text in texts.items() if (found := chunks_of(text)) is not None}
        if parts:
            chunks = await self.stored(key, dict.fromkeys(chunk for items in parts.values() for chunk in items.chunks))
            texts.update({handle: joined([chunks[each] for each in items.chunks]) for handle, items in parts.items()})
        return texts

    async def stored(self, key: str, handles: Iterable[Handle]) -> dict[Handle, str]:
        """The texts of handles as they are stored."""
        texts: dict[Handle, str] = {}
        rows: dict[Handle, str] = {}
        blobs: dict[Handle, str] = {}
        for handle in handles:
            where = bare(handle)
            if where.startswith("="):
                texts[handle] = where[1:] if where is handle else inline_text(self.codec, handle)
            elif where.startswith("@"):
                rows[handle] = where[1:]
            else:
                blobs[handle] = where[1:]
        if rows:
            digests = list(rows.values())
            found = await self._run(lambda: self._reader.payloads(key, digests))
            for handle, digest in rows.items():
                if digest not in found:
                    raise StoreError(f"payload {digest} of run {key} is missing; see `treadle doctor`")
                texts[handle] = self.text_of(handle, found[digest])
        for handle, digest in blobs.items():
            data: bytes = await self.beside(partial(self._get_blob, digest))
            texts[handle] = self.text_of(handle, data)
        return texts

    def text_of(self, handle: Handle, data: bytes) -> str:
        """The text of a value of which the stored bytes are at hand.

        Raises:
            MissingKeyError: it is encoded, and the key is not here.
        """
        key_id = key_id_of(handle)
        return (decoded(self.codec, key_id, data) if key_id else data).decode()

    def _get_blob(self, digest: str) -> bytes:
        try:
            return self.blobs.get(digest)
        except KeyError:
            raise StoreError(f"blob {digest} is missing; see `treadle doctor`") from None

    async def _run(self, function: Callable[[], T]) -> T:
        return cast(T, await self._in_reader(function))


def plain_handle(text: str) -> Handle:
    """The handle that a text would have, were it placed with an append and not encoded."""
    if len(text) <= INLINE_BYTES:
        return "=" + text
    digest = hashlib.sha256(data := text.encode()).hexdigest()
    return f"@{digest[:32]}" if len(data) <= ROW_BYTES else f"#sha256:{digest}"


def handles_of(arg: Arg, into: list[Handle]) -> None:
    """Collect the handles inside an argument."""
    if isinstance(arg, str):
        into.append(arg)
    elif isinstance(arg, Pick):
        into.append(arg.value)
    elif isinstance(arg, ArgList):
        for item in arg.items:
            if type(item) is str:
                into.append(item)
            else:
                handles_of(item, into)
    else:
        for item in arg.items.values():
            handles_of(item, into)


def assemble(arg: Arg, texts: dict[Handle, object]) -> object:
    """The plain JSON tree of an argument whose handles' trees are known.

    Raises:
        MissingPathError: a path leads to nothing in the value.
    """
    if isinstance(arg, str):
        return texts[arg]
    if isinstance(arg, Pick):
        value = texts[arg.value]
        for key in arg.path:
            try:
                value = codec.part(value, key)
            except (LookupError, TypeError):
                path = "".join(f"[{part!r}]" for part in arg.path)
                raise MissingPathError(f"the result has nothing at {path}: {key!r} is not there") from None
        return value
    if isinstance(arg, ArgList):
        return [texts[item] if type(item) is str else assemble(item, texts) for item in arg.items]
    return {key: assemble(item, texts) for key, item in arg.items.items()}


__all__ = ["ArgMap", "Payloads", "Row", "assemble", "handles_of"]
