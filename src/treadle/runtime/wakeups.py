"""Wake-ups between processes of one machine: datagrams on Unix sockets, or on loopback UDP where there are none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Callable


class NoWakeups:
    """For a store that lives in one process: nobody listens elsewhere."""

    address = ""

    async def open(self, on_wake: Callable[[], None]) -> None:
        """There is nothing to listen to."""

    def send(self, address: str) -> None:
        """There is nobody to wake."""

    def close(self) -> None:
        """There is nothing to close."""


class _Receiver(asyncio.DatagramProtocol):
    """Calls back for every datagram; what it holds means nothing."""

    def __init__(self, on_wake: Callable[[], None]) -> None:
        self._on_wake = on_wake

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._on_wake()


class DatagramWakeups:
    """One socket a session. A datagram's content means nothing: it says "look at the store"."""

    def __init__(self, name: str, *, unix: bool = hasattr(socket, "AF_UNIX")) -> None:
        self._name = name
        self._unix = unix
        self._transport: asyncio.DatagramTransport | None = None
        self._sender: socket.socket | None = None
        self._path = ""
        self.address = ""

    async def open(self, on_wake: Callable[[], None]) -> None:
        """Bind the socket and call `on_wake` for whatever comes."""
        if self._unix:
            # Not beside the database: a socket's path may have about 100 bytes only.
            folder = os.path.join(tempfile.gettempdir(), f"treadle-{os.getuid()}")
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._path = os.path.join(folder, f"{self._name}.sock")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            listener.bind(self._path)
            self.address = f"unix:{self._path}"
        else:
            listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            listener.bind(("127.0.0.1", 0))
            self.address = f"udp:{listener.getsockname()[1]}"
        listener.setblocking(False)
        self._sender = socket.socket(listener.family, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Receiver(on_wake), sock=listener)

    def send(self, address: str) -> None:
        """Send one datagram; a full or missing receiver loses it, which the sweep makes good."""
        kind, _, where = address.partition(":")
        sender = self._sender
        if sender is None or not where:
            return
        with contextlib.suppress(OSError):
            sender.sendto(b"!", where if kind == "unix" else ("127.0.0.1", int(where)))

    def close(self) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()
        if self._sender is not None:
            self._sender.close()
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
