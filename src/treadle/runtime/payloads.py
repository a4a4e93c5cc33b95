"""Payloads: where a value's JSON text goes by its size, and how handles are turned back into text.

A handle is `=` and the text itself (up to 1 KiB), `@` and the digest of a row of the run (up to 256 KiB), or `#`
and the digest of a blob. Blobs are written before the append that names them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar, cast

from treadle.authoring import codec
from treadle.core.events import Arg, ArgList, ArgMap, Handle, Pick
from treadle.errors import StoreError
from treadle.store.base import INLINE_BYTES, ROW_BYTES, Blobs, Reader

T = TypeVar("T")
Row = tuple[str, bytes]


class Payloads:
    """Places and loads payloads of one store."""

    def __init__(
        self,
        reader: Reader,
        blobs: Blobs,
        in_reader: Callable[[Callable[[], object]], Awaitable[object]],
    ) -> None:
        self._reader = reader
        self._blobs = blobs
        # Runs a blocking function on the thread that owns the reader.
        self._in_reader = in_reader

    async def place(self, text: str, rows: list[Row] | None) -> Handle:
        """The handle of a text; adds the row to write with the append, or writes the blob.

        Without `rows`, for what may travel through an inbox, all that does not fit into the handle is a blob.
        """
        if len(text) <= INLINE_BYTES:
            return "=" + text
        data = text.encode()
        if rows is not None and len(data) <= ROW_BYTES:
            digest = hashlib.sha256(data).hexdigest()[:32]
            rows.append((digest, data))
            return "@" + digest
        digest = await self._run(lambda: self._blobs.put(data))
        return "#" + digest

    async def load(self, key: str, handles: Iterable[Handle]) -> dict[Handle, str]:
        """The JSON texts of handles, in one batched read."""
        texts: dict[Handle, str] = {}
        rows: list[str] = []
        blobs: list[str] = []
        for handle in handles:
            if handle.startswith("="):
                texts[handle] = handle[1:]
            elif handle.startswith("@"):
                rows.append(handle[1:])
            else:
                blobs.append(handle[1:])
        if rows:
            found = await self._run(lambda: self._reader.payloads(key, rows))
            for digest in rows:
                if digest not in found:
                    raise StoreError(f"payload {digest} of run {key} is missing; see `treadle doctor`")
                texts["@" + digest] = found[digest].decode()
        for digest in blobs:
            texts["#" + digest] = (await self._run(partial(self._get_blob, digest))).decode()
        return texts

    def _get_blob(self, digest: str) -> bytes:
        try:
            return self._blobs.get(digest)
        except KeyError:
            raise StoreError(f"blob {digest} is missing; see `treadle doctor`") from None

    async def _run(self, function: Callable[[], T]) -> T:
        return cast(T, await self._in_reader(function))


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
        LookupError: a path leads to nothing in the value.
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
                raise LookupError(f"the result has nothing at {path}: {key!r} is not there") from None
        return value
    if isinstance(arg, ArgList):
        return [texts[item] if type(item) is str else assemble(item, texts) for item in arg.items]
    return {key: assemble(item, texts) for key, item in arg.items.items()}


__all__ = ["ArgMap", "Payloads", "Row", "assemble", "handles_of"]
