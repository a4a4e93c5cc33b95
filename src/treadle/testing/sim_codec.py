"""Payload codecs in the simulation: nodes that encode with keys of their own, and some that lack a key for a while."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Callable

from treadle.core.events import Handle
from treadle.core.values import bare, key_id_of
from treadle.errors import InternalError, MissingKeyError
from treadle.runtime.coding import EncodingBlobs
from treadle.store.blobs import MemoryBlobs
from treadle.testing.sim_faults import Faults

KEYS = ("one", "two")
# How what is encoded begins; no JSON text does.
_MARK = b"~"
_INLINE = re.compile(r'"(![a-z]+=[A-Za-z0-9+/=]+)"')


class SimCodec:
    """Hides nothing from the oracle, and everything from whoever looks for JSON. Equal data give equal bytes."""

    hides = True

    def __init__(self, rng: random.Random, is_calm: Callable[[], bool]) -> None:
        self.key_id = rng.choice(KEYS)
        # A node that began with the other key, and has not been given this one yet.
        self._known = frozenset(KEYS) if rng.random() < 0.8 else frozenset({self.key_id})
        self._is_calm = is_calm

    def encode(self, data: bytes, context: bytes, repeats: str = "") -> bytes:
        """The data, backwards in base64 behind a mark and what it is a part of."""
        return _MARK + context + _MARK + base64.b64encode(data)[::-1]

    def decode(self, key_id: str, data: bytes, context: bytes) -> bytes:
        """The data. When the trouble is over every node has all keys."""
        if key_id not in self._known and not self._is_calm():
            raise MissingKeyError(key_id)
        if not data.startswith(_MARK + context + _MARK):
            raise InternalError(f"{data[:80]!r} is decoded as a part of {context!r}")
        return decoded(data)


def encodes(seed: int) -> bool:
    """Whether the nodes of a world have codecs, as in every fifth."""
    return random.Random(f"{seed} codec").random() < 0.2


def codec_of(seed: int, life: str, faults: Faults) -> SimCodec | None:
    """The codec of a node's life. Drawn apart, so that worlds are otherwise what they were."""
    if not encodes(seed):
        return None
    return SimCodec(random.Random(f"{seed} {life} keys"), lambda: faults.calm)


def decoded(data: bytes) -> bytes:
    """What was encoded; anything else as it is."""
    if not data.startswith(_MARK):
        return data
    return base64.b64decode(data[1:].partition(_MARK)[2][::-1])


def encoded_digest(data: bytes) -> str:
    """The digest of an artifact's bytes, by whichever key."""
    return EncodingBlobs(MemoryBlobs(), SimCodec(random.Random(0), lambda: True)).put(data)


def inline_text(handle: Handle) -> str:
    """The text of a handle that holds its value itself."""
    text = bare(handle)[1:]
    return decoded(base64.b64decode(text)).decode() if key_id_of(handle) else text


def report_of(text: str) -> str:
    """A report as it was made."""
    return inline_text(text) if key_id_of(text) in KEYS else text


def with_values(text: str) -> str:
    """A text of events, with the values that it hides behind it."""
    return "\n".join([text, *map(inline_text, _INLINE.findall(text))])
