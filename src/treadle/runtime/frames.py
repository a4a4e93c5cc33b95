"""Frames between a worker and the processes of its steps: a length, and a message in MessagePack."""

from __future__ import annotations

import struct
import threading
from typing import IO, Any

import msgspec

_LENGTH = struct.Struct(">I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Channel:
    """Messages over two pipes. Any thread may send; one at a time receives."""

    def __init__(self, reading: IO[bytes], writing: IO[bytes]) -> None:
        self._reading = reading
        self._writing = writing
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone.
        """
        data = _encode(message)
        with self._lock:
            self._writing.write(_LENGTH.pack(len(data)) + data)
            self._writing.flush()

    def receive(self) -> list[Any] | None:
        """The next message; None when the other side is gone."""
        head = self._exactly(_LENGTH.size)
        data = None if head is None else self._exactly(_LENGTH.unpack(head)[0])
        found: list[Any] | None = None if data is None else _decode(data)
        return found

    def _exactly(self, size: int) -> bytes | None:
        parts: list[bytes] = []
        while size:
            try:
                part = self._reading.read(size)
            except (OSError, ValueError):
                return None
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close both pipes."""
        for pipe in (self._writing, self._reading):
            try:
                pipe.close()
            except OSError:
                # What was not written yet is for nobody.
                continue
