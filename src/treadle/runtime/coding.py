"""Payload codecs: what they make of values, of reports and of the bytes of artifacts, and where that stands.

A handle says itself that its value is encoded: `!`, the key id, and then the handle of the encoded bytes, in base64
where they ride in the event. So encoded and plain values live side by side in one run, and whoever has the keys reads
both. A long stream is encoded piece by piece, each bound to its place and the last one to being the last: what is cut
off, doubled or put in another order is found.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from treadle.authoring.adapters import tagged
from treadle.core.plan import Block, Fragment, Step
from treadle.core.values import ENCODED, Handle, bare, key_id_of
from treadle.errors import DefinitionError, MissingKeyError, StoreCorruptError, StoreUnavailableError, UsageError
from treadle.ports import PayloadCodec
from treadle.store.base import INLINE_BYTES
from treadle.store.blob_port import BlobFile, Blobs, BlobWriter

# What the bytes are a part of.
VALUE: Final = b"value"
_REPORT: Final = b"report"
_INPUT: Final = b"input"
_PIECE: Final = b"piece"
# So much of a stream is encoded in one piece, and so long is the name that its pieces share.
PIECE_BYTES: Final = 256 * 1024
_NAME_BYTES: Final = 16
_LENGTH_BYTES: Final = 4
_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What stands for a message or a report that this process cannot read.
HIDDEN: Final = "<encrypted>"


def checked(codec: PayloadCodec) -> PayloadCodec:
    """The codec itself, if handles can name its key.

    Raises:
        UsageError: they cannot.
    """
    if not _KEY_ID.fullmatch(codec.key_id):
        raise UsageError(
            f"a payload codec cannot have the key id {codec.key_id!r}; it is 1 to 64 letters, digits and . _ -"
        )
    return codec


def decoded(codec: PayloadCodec | None, key_id: str, data: bytes, context: bytes = VALUE) -> bytes:
    """What was encoded.

    Raises:
        MissingKeyError: its key is not here.
        StoreCorruptError: the bytes are not those that were encoded.
    """
    if codec is None:
        raise MissingKeyError(key_id)
    return codec.decode(key_id, data, context)


def opener(codec: PayloadCodec | None) -> Callable[[Handle, bytes | str], bytes]:
    """What decodes stored bytes by their handle, for whoever has no Payloads."""

    def opened(handle: Handle, data: bytes | str) -> bytes:
        try:
            if isinstance(data, str):
                return inline_text(codec, handle).encode()
            return decoded(codec, key_id_of(handle), data)
        except MissingKeyError as error:
            raise StoreUnavailableError(str(error)) from error

    return opened


def hidden_constant(key_id: str) -> str:
    """What stands in a document for a value that a payload codec hides, as JSON text. It cannot be run with."""
    return msgspec.json.encode(tagged("hidden", key_id)).decode()


# -- values that ride in events ----------------------------------------------------------------------------------------


def inline_handle(codec: PayloadCodec, encoded: bytes) -> Handle | None:
    """The handle that holds encoded bytes itself; None if they are too many."""
    text = base64.b64encode(encoded).decode()
    return f"{ENCODED}{codec.key_id}={text}" if len(text) <= INLINE_BYTES else None


def inline_text(codec: PayloadCodec | None, handle: Handle, context: bytes = VALUE) -> str:
    """The text behind a handle that holds its encoded bytes itself."""
    try:
        data = base64.b64decode(bare(handle)[1:], validate=True)
    except ValueError:
        raise StoreCorruptError(f"an encoded value is damaged: {handle[:80]!r}") from None
    return decoded(codec, key_id_of(handle), data, context).decode()


# -- reports, and what a run was started with --------------------------------------------------------------------------


def hidden_report(codec: PayloadCodec | None, text: str) -> str:
    """A report as it is stored."""
    return text if codec is None or not text else _hidden(codec, text, _REPORT)


def shown_report(codec: PayloadCodec | None, text: str) -> str:
    """A stored report as it was made; a placeholder if its key is not here."""
    try:
        return report_text(codec, text)
    except MissingKeyError:
        return HIDDEN


def report_text(codec: PayloadCodec | None, text: str) -> str:
    """A stored report as it was made.

    Raises:
        MissingKeyError: its key is not here.
    """
    return inline_text(codec, text, _REPORT) if is_encoded_text(text) else text


def is_encoded_text(text: str) -> bool:
    """Whether a stored text is an encoded one. A step's own report never begins so."""
    return text.startswith(ENCODED) and bool(_KEY_ID.fullmatch(key_id_of(text)))


def hidden_digest(codec: PayloadCodec, digest: str) -> str:
    """The digest of what a run is started with, as it is stored: by a plain one, a short input could be guessed."""
    return _hidden(codec, digest, _INPUT)


def shown_digest(codec: PayloadCodec | None, stored: str) -> str:
    """The digest of what a run was started with."""
    return inline_text(codec, stored, _INPUT) if stored.startswith(ENCODED) else stored


def _hidden(codec: PayloadCodec, text: str, context: bytes) -> str:
    encoded = codec.encode(text.encode("utf-8", "backslashreplace"), context)
    return f"{ENCODED}{codec.key_id}={base64.b64encode(encoded).decode()}"


# -- streams -----------------------------------------------------------------------------------------------------------


class EncodingBlobs:
    """The blobs of a store for content that is encoded on its way there. A digest names the encoded bytes."""

    def __init__(self, blobs: Blobs, codec: PayloadCodec) -> None:
        self._blobs = blobs
        self._codec = codec

    def put(self, data: bytes) -> str:
        """Store, and return the digest."""
        writer = self.writer()
        try:
            writer.write(data)
            return writer.finish()
        except BaseException:
            writer.abort()
            raise

    def writer(self) -> BlobWriter:
        """Begin a blob of any size."""
        return _EncodingWriter(self._blobs.writer(), self._codec)

    def uri(self, digest: str) -> str:
        """Where the encoded bytes are."""
        return self._blobs.uri(digest)

    def renew(self, digest: str) -> bool:
        """Make the blob young."""
        return self._blobs.renew(digest)


class _EncodingWriter:
    """A stream is a name, unlike any other, and pieces: each its length and what the codec gave."""

    def __init__(self, writer: BlobWriter, codec: PayloadCodec) -> None:
        self._writer = writer
        self._codec = codec
        self._held = bytearray()
        self._index = 0
        # What a codec makes of nothing is unlike any other if it hides; if not, the order of pieces is all there is.
        self._name = hashlib.sha256(codec.encode(b"", _PIECE)).digest()[:_NAME_BYTES]
        self._writer.write(self._name)

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._held += data
        while len(self._held) > PIECE_BYTES:
            self._put(bytes(self._held[:PIECE_BYTES]), last=False)
            del self._held[:PIECE_BYTES]

    def finish(self) -> str:
        """Store, and return the digest."""
        self._put(bytes(self._held), last=True)
        return self._writer.finish()

    def abort(self) -> None:
        """Forget what was written."""
        self._writer.abort()

    def _put(self, data: bytes, *, last: bool) -> None:
        piece = self._codec.encode(data, _place(self._name, self._index, last=last))
        self._writer.write(len(piece).to_bytes(_LENGTH_BYTES, "big") + piece)
        self._index += 1


def _place(name: bytes, index: int, *, last: bool) -> bytes:
    return _PIECE + name + index.to_bytes(8, "big") + (b"\1" if last else b"\0")


class DecodingFile:
    """The content of an encoded stream."""

    def __init__(self, file: BlobFile, codec: PayloadCodec | None, key_id: str, what: str) -> None:
        self._file = file
        self._codec = codec
        self._key_id = key_id
        self._what = what
        self._name: bytes | None = None
        self._held = b""
        self._index = 0
        self._next: bytes | None = None

    def read(self, size: int = -1) -> bytes:
        """Up to so many of the next bytes, all that are left without a size; nothing at the end.

        Raises:
            MissingKeyError: the key is not here.
            StoreCorruptError: the bytes are not those that were stored, or not all of them.
        """
        if size < 0:
            parts: list[bytes] = []
            while part := self.read(PIECE_BYTES):
                parts.append(part)
            return b"".join(parts)
        if size and not self._held:
            self._held = self._piece()
        found, self._held = self._held[:size], self._held[size:]
        return found

    def close(self) -> None:
        """Free what the stream holds."""
        self._file.close()

    def _piece(self) -> bytes:
        if self._name is None:
            self._name = self._exactly(_NAME_BYTES)
            self._next = self._stored()
        if self._next is None:
            return b""
        # Only the last piece has none after it, and it was encoded as that.
        piece, self._next = self._next, self._stored()
        place = _place(self._name, self._index, last=self._next is None)
        self._index += 1
        return decoded(self._codec, self._key_id, piece, place)

    def _stored(self) -> bytes | None:
        length = self._file.read(_LENGTH_BYTES)
        if not length:
            return None
        if len(length) < _LENGTH_BYTES:
            length += self._exactly(_LENGTH_BYTES - len(length))
        return self._exactly(int.from_bytes(length, "big"))

    def _exactly(self, size: int) -> bytes:
        # No piece is longer than what its plain bytes and a codec's own need: a damaged length asks for no memory.
        if size > 2 * PIECE_BYTES:
            raise StoreCorruptError(f"{self._what} is damaged; restore a backup")
        parts: list[bytes] = []
        while size and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
        if size:
            raise StoreCorruptError(f"{self._what} is cut off; restore a backup")
        return b"".join(parts)


# -- what cannot be ----------------------------------------------------------------------------------------------------


def refuse_keys(steps: Iterable[Step]) -> None:
    """Raise for limits by a key that is read from arguments: stores read keys, and arguments are encoded.

    Raises:
        DefinitionError: naming every such step.
    """
    wrong = [f"{step.id!r} (key={step.key!r})" for step in steps if step.key and _reads(step)]
    if wrong:
        raise DefinitionError(
            f"the keys of {', '.join(wrong)} are read from arguments, which the payload codec encodes, and stores have"
            " to read keys; leave key= out, or give these runs a store without a codec"
        )


def _reads(step: Step) -> bool:
    from treadle.core.conditions import parsed

    return any(path[0] in step.slots for path in parsed(step.key).names())


def steps_of(blocks: Sequence[Block]) -> Iterable[Step]:
    """All steps of blocks, and of what lies in them."""
    from treadle.core.blocks import content_of

    for block in blocks:
        if isinstance(block, Step):
            yield block
        else:
            for inner, _output in content_of(block):
                yield from steps_of(inner)


def refuse_fragment_keys(fragments: Iterable[Fragment]) -> None:
    """As `refuse_keys`, for steps that are added."""
    refuse_keys(step for fragment in fragments for step in steps_of(fragment.blocks))
