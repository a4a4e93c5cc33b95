"""Artifacts: files that steps make. Their bytes are blobs, written before the outcome that names them.

An attempt collects the references of what it has written (`Making`); they become part of the event of its success,
and of nothing if it fails. Everything streams: a writer and a reader hold one chunk at a time.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from treadle.authoring.context import Content
from treadle.core.addresses import check_id
from treadle.core.effects import Artifact
from treadle.errors import DefinitionError, StoreCorruptError, StoreError, UsageError
from treadle.ports import PayloadCodec
from treadle.runtime.coding import DecodingFile, EncodingBlobs
from treadle.runtime.readings import OnLoop
from treadle.store.blob_port import BlobFile, Blobs

if TYPE_CHECKING:
    from treadle.runtime.payloads import Payloads

# What is read, hashed and written at a time.
CHUNK: Final = 1024 * 1024
# An artifact that was written longer ago is renewed when its attempt ends. Far below the age at which blobs that no
# run names are removed.
RENEW_SECONDS: Final = 600.0
OCTETS: Final = "application/octet-stream"
# Without the files of the operating system: a name has one type everywhere.
_TYPES: Final = mimetypes.MimeTypes()
# The kinds that a content type tells; of `application/...` the extension tells more.
_KINDS: Final = frozenset({"audio", "font", "image", "message", "model", "multipart", "text", "video"})


# Runs a blocking function beside the event loop.
Beside = Callable[[Callable[[], Any]], Awaitable[Any]]


def content_type_of(name: str, content: Content) -> str:
    """The content type that a name's extension tells, or what the content itself is."""
    guessed, encoding = _TYPES.guess_type(PurePosixPath(name).name, strict=False)
    if encoding is not None:
        return {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}.get(
            encoding, OCTETS
        )
    if guessed is not None:
        return guessed
    return "text/plain; charset=utf-8" if isinstance(content, str) else OCTETS


def kind_of_artifact(name: str, content_type: str) -> str:
    """What an artifact is in one word: by its content type, else by its extension, else `artifact`."""
    major = content_type.partition("/")[0].strip().lower()
    if major in _KINDS:
        return major
    suffix = PurePosixPath(name).suffix.lstrip(".").lower()
    return suffix if suffix.isalnum() else "artifact"


# -- writing -----------------------------------------------------------------------------------------------------------


def _chunks(content: Content) -> Iterator[bytes]:
    """The bytes of a content, none of the pieces larger than a chunk unless the caller made it so."""
    if isinstance(content, os.PathLike):
        with open(content, "rb", buffering=0) as file:
            # Bytes of their own: a chunk may still be hashed while the next one is read.
            while chunk := file.read(CHUNK):
                yield chunk
    elif (read := getattr(content, "read", None)) is not None:
        while chunk := _checked(read(CHUNK)):
            yield chunk
    elif isinstance(content, Iterable):
        for part in content:
            yield _checked(part)
    else:
        raise UsageError(
            f"an artifact's content is bytes, text, a Path, an open file or an iterable of bytes, not "
            f"{type(content).__name__}"
        )


def _checked(chunk: Any) -> bytes:
    if not isinstance(chunk, (bytes, bytearray, memoryview)):
        raise UsageError(f"an artifact's stream gave {type(chunk).__name__}, not bytes; open files in binary mode")
    return cast("bytes", chunk)


def _whole(content: Content) -> bytes | None:
    """The content, if it is in memory."""
    if isinstance(content, str):
        return content.encode()
    return bytes(content) if isinstance(content, (bytes, bytearray, memoryview)) else None


def store_content(blobs: Blobs | EncodingBlobs, content: Content) -> tuple[str, int]:
    """Write a content; its digest and size.

    Raises:
        StoreError: it could not be stored; nothing of it is left.
    """
    data = _whole(content)
    if data is not None and len(data) <= CHUNK:
        return blobs.put(data), len(data)
    writer = blobs.writer()
    size = 0
    try:
        for chunk in _chunks(content) if data is None else (memoryview(data),):
            writer.write(cast("bytes", chunk))
            size += len(chunk)
        return writer.finish(), size
    except BaseException:
        writer.abort()
        raise


async def store_stream(blobs: Blobs | EncodingBlobs, content: AsyncIterable[bytes], beside: Beside) -> tuple[str, int]:
    """As `store_content`, of what an async generator gives."""
    writer = await beside(blobs.writer)
    size = 0
    buffer = bytearray()
    try:
        async for chunk in content:
            buffer += _checked(chunk)
            if len(buffer) >= CHUNK:
                data, buffer = bytes(buffer), bytearray()
                size += len(data)
                await beside(partial(writer.write, data))
        size += len(buffer)
        await beside(partial(writer.write, bytes(buffer)))
        return cast(str, await beside(writer.finish)), size
    except BaseException:
        await beside(writer.abort)
        raise


class Making:
    """The artifacts of one attempt."""

    def __init__(
        self,
        address: str,
        blobs: Blobs | EncodingBlobs,
        beside: Beside,
        clock: Callable[[], float],
        key_id: str = "",
    ) -> None:
        self._address = address
        self._blobs = blobs
        self._key_id = key_id
        self._beside = beside
        self._clock = clock
        # In the order of the calls; None while it is written.
        self._made: dict[str, Artifact | None] = {}
        self._pending: list[OnLoop[Artifact]] = []
        self._oldest: float | None = None

    def named(
        self,
        name: str,
        content: Content,
        id: str,
        kind: str,
        content_type: str,
        metadata: Mapping[str, str] | None,
    ) -> Artifact:
        """The reference of an artifact that is about to be written.

        Raises:
            UsageError: a name or id that cannot be one, or an id that this attempt has given already.
        """
        if id in self._made:
            raise UsageError(f"this step has an artifact {id!r} already; give this one another id")
        try:
            check_id(name, "artifact name")
            if id:
                check_id(id, "artifact id")
        except DefinitionError as error:
            raise UsageError(str(error)) from None
        number = len(self._made) + 1
        while not id:
            chosen = f"{self._address}:artifact:{number:03d}"
            id = "" if chosen in self._made else chosen
            number += 1
        type_ = content_type or content_type_of(name, content)
        given = dict(metadata or {})
        if any(not isinstance(text, str) for item in given.items() for text in item):  # pyright: ignore[reportUnnecessaryIsInstance]  # users may give anything
            raise UsageError(f"the metadata of artifact {name!r} map texts to texts")
        self._made[id] = None
        return Artifact(
            id=id,
            name=name,
            kind=kind or kind_of_artifact(name, type_),
            content_type=type_,
            size=0,
            digest="",
            step=self._address,
            metadata=given,
        )

    def write(self, draft: Artifact, content: Content) -> Artifact:
        """Write the bytes here and now."""
        try:
            return self._entered(draft, *store_content(self._blobs, content))
        except BaseException:
            del self._made[draft.id]
            raise

    async def write_beside(self, draft: Artifact, content: Content) -> Artifact:
        """Write the bytes while the event loop goes on."""
        try:
            if isinstance(content, AsyncIterable):
                return self._entered(draft, *await store_stream(self._blobs, content, self._beside))
            digest, size = await self._beside(lambda: store_content(self._blobs, content))
            return self._entered(draft, digest, size)
        except BaseException:
            del self._made[draft.id]
            raise

    def _entered(self, draft: Artifact, digest: str, size: int) -> Artifact:
        uri = self._blobs.uri(digest)
        made = msgspec.structs.replace(draft, digest=digest, size=size, uri=uri, key_id=self._key_id)
        self._made[draft.id] = made
        if self._oldest is None:
            self._oldest = self._clock()
        return made

    def pend(self, writing: OnLoop[Artifact]) -> OnLoop[Artifact]:
        """Wait for a write that was begun, before the attempt ends."""
        self._pending.append(writing)
        return writing

    async def settled(self) -> tuple[Artifact, ...]:
        """All that the attempt has made, sure to be there for as long as its outcome may need to be stored.

        Raises:
            StoreError: something could not be written, or is gone.
        """
        for writing in self._pending:
            # What came of the others the step has seen.
            if not writing.observed:
                await writing
        made = tuple(artifact for artifact in self._made.values() if artifact is not None)
        if self._oldest is not None and self._clock() - self._oldest > RENEW_SECONDS:
            for artifact in made:
                if not await self._beside(partial(self._blobs.renew, artifact.digest)):
                    raise StoreError(f"artifact {artifact.name!r} is no longer in the store; make it again")
        return made


# -- reading -----------------------------------------------------------------------------------------------------------


class ArtifactRoom:
    """Where a worker's steps make and open artifacts."""

    def __init__(self, payloads: Payloads, clock: Callable[[], float]) -> None:
        self._payloads = payloads
        self._clock = clock

    def making(self, address: str) -> Making:
        """What an attempt of a step makes."""
        payloads = self._payloads
        key_id = payloads.codec.key_id if payloads.codec is not None else ""
        return Making(address, payloads.content, payloads.beside, self._clock, key_id)

    def open(self, artifact: Artifact) -> ArtifactStream:
        """The bytes of an artifact."""
        return ArtifactStream(artifact, self._payloads)


class ArtifactStream:
    """The bytes of an artifact, in order: `read` and iteration for threads, `async for` on the event loop.

    At the end the bytes are checked against the digest, encoded ones piece by piece. Use it with `with` or `async
    with`, or close it.
    """

    def __init__(self, artifact: Artifact, payloads: Payloads) -> None:
        self.artifact = artifact
        self._blobs: Blobs = payloads.blobs
        self._beside: Beside = payloads.beside
        self._codec: PayloadCodec | None = payloads.codec
        self._file: BlobFile | None = None
        self._closed = False
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Up to so many of the next bytes, all that are left without a size; nothing at the end. Blocks.

        Raises:
            StoreCorruptError: the bytes are not those that were stored.
            StoreError: they are gone, or out of reach.
            MissingKeyError: they are encoded, and the key is not here.
        """
        if size < 0:
            return b"".join(self)
        if self._closed:
            raise UsageError(f"the stream of artifact {self.artifact.id!r} is closed; open it again")
        if self._file is None:
            try:
                self._file = self._blobs.open(self.artifact.digest)
            except KeyError:
                raise StoreError(
                    f"the bytes of artifact {self.artifact.id!r} are not at {self._blobs.uri(self.artifact.digest)};"
                    " is this the artifact store that the run was executed with?"
                ) from None
            if self.artifact.key_id:
                what = f"artifact {self.artifact.id!r} at {self._blobs.uri(self.artifact.digest)}"
                self._file = DecodingFile(self._file, self._codec, self.artifact.key_id, what)
        data = self._file.read(size)
        if self.artifact.key_id:
            return data
        if data:
            self._hash.update(data)
        elif size and f"sha256:{self._hash.hexdigest()}" != self.artifact.digest:
            raise StoreCorruptError(
                f"artifact {self.artifact.id!r} at {self._blobs.uri(self.artifact.digest)} does not have the content"
                " that was stored; restore a backup"
            )
        return data

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read(CHUNK):
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._beside(lambda: self.read(CHUNK)):
            yield chunk

    async def content(self) -> bytes:
        """All that is left, on the event loop."""
        return cast("bytes", await self._beside(self.read))

    def close(self) -> None:
        """Free what the stream holds."""
        self._closed = True
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> ArtifactStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> ArtifactStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()
