"""Addresses: the stable path of a step or scope, from structure and never from arrival order.

An address is a list of segments joined by `/`; each segment is an id with the characters `/ # [ ] ~ %`
percent-encoded. A later entry of a scope is written `deploy#2`, an iteration `scan[3]`, and a step added
by another lives below it: `fetch/parse`.
"""

from __future__ import annotations

import re
import unicodedata

from treadle.errors import DefinitionError

_RESERVED = {"/": "%2F", "#": "%23", "[": "%5B", "]": "%5D", "~": "%7E", "%": "%25"}
_NEEDS_ENCODING = re.compile(r"[/#\[\]~%]")
_ENCODED = re.compile(r"%([0-9A-F]{2})")
MAX_ID_BYTES = 512


def check_id(text: str, what: str = "step id") -> str:
    """Return `text` if it may be an id: 1 to 512 bytes of UTF-8 without control characters or lone surrogates.

    Raises:
        DefinitionError: naming the rule that is broken. Ids are never normalised or cut.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise DefinitionError(f"{what} {text!r} holds a lone surrogate; use well-formed text") from None
    if not 1 <= size <= MAX_ID_BYTES:
        shown = text[:40] + "..." if len(text) > 40 else text
        raise DefinitionError(f"{what} {shown!r} has {size} bytes; an id has 1 to {MAX_ID_BYTES}")
    if not text.isprintable() and any(unicodedata.category(c) == "Cc" for c in text):
        raise DefinitionError(f"{what} {text!r} holds a control character; remove it")
    return text


def encode_id(text: str) -> str:
    """The segment of an id: reserved characters percent-encoded."""
    # Most ids are names, and this is many times cheaper than a search.
    if text.isidentifier() or _NEEDS_ENCODING.search(text) is None:
        return text
    return _NEEDS_ENCODING.sub(lambda match: _RESERVED[match[0]], text)


def decode_id(segment: str) -> str:
    """The id of a segment; the inverse of `encode_id`."""
    return _ENCODED.sub(lambda match: chr(int(match[1], 16)), segment)


def child(scope: str, segment: str) -> str:
    """The address of `segment` below the scope of address `scope` (the root scope is the empty address)."""
    return f"{scope}/{segment}" if scope else segment
