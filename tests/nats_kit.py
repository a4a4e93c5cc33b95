"""What tests of the NATS store share: names of stores, and a proxy that cuts connections."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from typing import Any

from treadle.errors import StoreFullError

_names = itertools.count()


class Proxy:
    """Passes bytes on between clients and a server, until it is told to cut them off."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.server_port = port
        self.host = host
        self.listener = socket.create_server((host, 0))
        self.port: int = self.listener.getsockname()[1]
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        # Bytes from the server are let through only so far; None: all.
        self.left: int | None = None
        self.lock = threading.Lock()
        self.open = True
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def leave(self) -> None:
        """End all connections and take no more, as if the network were gone."""
        self.open = False
        # A socket that is only closed goes on accepting while a thread waits in it.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        self.cut()

    def come_back(self) -> None:
        """Take connections again, at the same port."""
        self.open = True
        self.listener = socket.create_server((self.host, self.port))
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        while self.open:
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server_port))
            except OSError:
                continue
            with self.lock:
                self.pairs.append((client, server))
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, from_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if from_server and self.left is not None:
                    self.left -= len(data)
                    if self.left < 0:
                        self.left = None
                        break
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def cut_after(self, count: int) -> None:
        """Cut the connection that brings more than so many bytes from the server, without passing them on."""
        self.left = count

    def cut(self) -> None:
        """End all connections now."""
        with self.lock:
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def close(self) -> None:
        """Take no more connections."""
        if self.open:
            self.leave()


def new_name() -> str:
    """A name that no other store has on this machine."""
    return f"t{os.getpid()}-{next(_names)}"


def ask_api(store: Any, action: str, request: object = None) -> dict[str, Any]:
    """What JetStream's API answers over a store's connection."""
    answer: dict[str, Any] = store._loop.call(store._rooms.link.api(action, request))
    return answer


def limit(store: Any, stream: str, spare: int | None) -> None:
    """Let a stream have so many bytes more than it has; None: as many as it likes."""
    info = ask_api(store, f"STREAM.INFO.{stream}")
    bound = -1 if spare is None else info["state"]["bytes"] + spare
    ask_api(store, f"STREAM.UPDATE.{stream}", info["config"] | {"max_bytes": bound})


class Ballast:
    """Another stream on a server, that takes up all room that the store's account has."""

    def __init__(self, store: Any) -> None:
        self.store = store
        config = {"name": "ballast", "subjects": ["ballast"], "storage": "file", "discard": "new"}
        ask_api(store, "STREAM.CREATE.ballast", config)
        link = store._rooms.link
        for size in (500_000, 50_000, 500, 1):
            with contextlib.suppress(StoreFullError):
                while True:
                    store._loop.call(link.publish([("ballast", bytes(size), link.new_id())]))

    def clear(self) -> None:
        """Make room again."""
        ask_api(self.store, "STREAM.DELETE.ballast")
