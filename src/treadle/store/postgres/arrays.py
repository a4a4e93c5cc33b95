"""Values and arrays in PostgreSQL's binary format, for the statements that carry a whole group of rows.

A driver that looks at every element of every list takes longer over a group than the server does. Here a column is
one `struct.pack` or one join. The format is that of `array_recv`: number of dimensions, whether there are NULLs, the
type of the elements, length and lower bound; then each element behind its length, -1 for NULL.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from struct import Struct

# Type numbers (`pg_type.oid`) are fixed for all versions of PostgreSQL.
BOOL, BYTES, BIG, INT, TEXT, FLOAT = 16, 17, 20, 23, 25, 701
BYTES_ARRAY, BIG_ARRAY, INT_ARRAY, TEXT_ARRAY, FLOAT_ARRAY = 1001, 1016, 1007, 1009, 1022

_header = Struct(">iiIii").pack
_length = Struct(">i").pack
_big = Struct(">q").pack
_int = Struct(">i").pack
_float = Struct(">d").pack
_NULL = _length(-1)
_EMPTY = _length(0)


def big(value: int) -> bytes:
    """A bigint."""
    return _big(value)


def small(value: int) -> bytes:
    """An integer."""
    return _int(value)


def real(value: float) -> bytes:
    """A double precision."""
    return _float(value)


def truth(value: bool) -> bytes:
    """A boolean."""
    return b"\x01" if value else b"\x00"


def bigs(values: Sequence[int]) -> bytes:
    """A bigint[] without NULLs."""
    count = len(values)
    body = Struct(f">{'iq' * count}").pack(*chain.from_iterable(zip(repeat(8), values, strict=False)))
    return _header(1, 0, BIG, count, 1) + body


def ints(values: Sequence[int]) -> bytes:
    """An integer[] without NULLs."""
    count = len(values)
    body = Struct(f">{'ii' * count}").pack(*chain.from_iterable(zip(repeat(4), values, strict=False)))
    return _header(1, 0, INT, count, 1) + body


def optional_ints(values: Sequence[int | None]) -> bytes:
    """An integer[] that may have NULLs."""
    parts = [_NULL if value is None else _length(4) + _int(value) for value in values]
    return _header(1, 1, INT, len(parts), 1) + b"".join(parts)


def floats(values: Sequence[float]) -> bytes:
    """A double precision[] without NULLs."""
    count = len(values)
    body = Struct(f">{'id' * count}").pack(*chain.from_iterable(zip(repeat(8), values, strict=False)))
    return _header(1, 0, FLOAT, count, 1) + body


def texts(values: Sequence[str]) -> bytes:
    """A text[] without NULLs."""
    if any(values):
        body = b"".join([_length(len(text)) + text for text in map(str.encode, values)])
    else:
        # Most columns of a settled step are empty.
        body = _EMPTY * len(values)
    return _header(1, 0, TEXT, len(values), 1) + body


def chunks(values: Sequence[bytes]) -> bytes:
    """A bytea[] without NULLs."""
    return _header(1, 0, BYTES, len(values), 1) + b"".join([_length(len(value)) + value for value in values])


def storable(text: str) -> str:
    """The text as PostgreSQL can hold it: a null character or a lone surrogate becomes the replacement character.

    For what people and programs write (messages, progress), never for names.
    """
    if text.isascii() and "\0" not in text:
        return text
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")


def truths(answer: bytes, count: int) -> list[bool]:
    """The elements of a boolean[] without NULLs: each is one byte behind its length."""
    elements = answer[20:]
    return [elements[5 * place + 4] == 1 for place in range(count)]
