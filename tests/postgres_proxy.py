"""A proxy before a PostgreSQL server that cuts a connection before or after one of the requests, counted over all."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from pathlib import Path

# The last message of every answer: ready for a query, in a transaction or not. Authentication ends with it too.
_READY = b"Z\x00\x00\x00\x05"


class CuttingProxy:
    """Passes on what comes on a port; `cut_at` names the request whose connection is cut.

    A request is all that a client sends until it waits for the answer: one round trip. Cut before, the server never
    sees it; cut after, the server has answered, and the answer is lost.
    """

    def __init__(self, server: Path, host: str = "127.0.0.1") -> None:
        self._server = str(server)
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.requests = 0
        self._nth = 0
        self._before = False
        self.fired = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut_at(self, nth: int, *, before: bool) -> None:
        """Cut the `nth` request from now on; 0 for none."""
        with self._lock:
            self.requests, self._nth, self._before, self.fired = 0, nth, before, False

    def cut_all(self) -> None:
        """Cut every connection there is, whatever it is at."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening, and cut what is open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(self._server)
            with self._lock:
                self._open |= {client, server}
            try:
                self._pass_on(client, server)
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        waits = False
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is server:
                        waits = False
                        client.sendall(data)
                    elif waits or not self._is_the_one():
                        waits = True
                        server.sendall(data)
                    else:
                        if not self._before:
                            server.sendall(data)
                            self._await_answer(client, server)
                        return

    def _is_the_one(self) -> bool:
        with self._lock:
            self.requests += 1
            hit = self.requests == self._nth
            self.fired = self.fired or hit
            return hit

    def _await_answer(self, client: socket.socket, server: socket.socket) -> None:
        """Wait until the server has answered; a long request comes in several parts."""
        answer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            while answer[-6:-1] != _READY:
                for key, _ in selector.select():
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is client:
                        server.sendall(data)
                    else:
                        answer += data
                        # While it connects a client answers to other messages.
                        if answer[:1] in (b"N", b"R") and answer[-6:-1] != _READY:
                            return
