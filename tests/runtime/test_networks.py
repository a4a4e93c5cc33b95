"""A worker on a network of its own, whose cable is pulled: no connection is closed, nothing is refused, all is silent.

The network is a namespace with a virtual cable, which only root on Linux can make; elsewhere the proxies of the other
tests cut connections.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from tests.nats_kit import Proxy
from tests.postgres_kit import empty_schema, shared_server, url_of
from tests.postgres_proxy import CuttingProxy
from tests.runtime.test_kills import LANES, TARGET, check, start_program, wait_for_lines

# Far longer than it takes to pull the cable.
LENGTH = 80
SECONDS = 90.0
_numbers = itertools.count()


def ip(*words: str) -> None:
    """Change the machine's networks."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Island:
    """A network namespace at the end of a cable."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.name = f"treadle{os.getpid()}n{number}"
        self.cable = f"tr{os.getpid() % 100000}n{number}"
        # Of the block for measurements between networks (RFC 2544); a link for each process of the tests.
        subnet = f"198.18.{os.getpid() % 250}.{4 * number % 256}"
        base, last = subnet.rsplit(".", 1)
        self.shore = f"{base}.{int(last) + 1}"
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "shore", "netns", self.name)
        ip("address", "add", f"{self.shore}/30", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        ip("-n", self.name, "address", "add", f"{base}.{int(last) + 2}/30", "dev", "shore")
        ip("-n", self.name, "link", "set", "shore", "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def pull(self) -> None:
        """Pull the cable."""
        ip("-n", self.name, "link", "set", "shore", "down")

    def plug(self) -> None:
        """Plug it in again."""
        ip("-n", self.name, "link", "set", "shore", "up")

    def close(self) -> None:
        """Take the network away."""
        ip("netns", "delete", self.name)


class Place(NamedTuple):
    """The URLs of one store, from here and from the island."""

    here: str
    there: str


@pytest.fixture
def island() -> Iterator[Island]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("only root on Linux, with iproute2, makes networks")
    try:
        island = Island()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine lets nobody make networks: {error.stderr.decode().strip()}")
    with closing(island):
        yield island


@pytest.fixture(params=[pytest.param("postgres", marks=pytest.mark.postgres), pytest.param("nats")])
def place(request: pytest.FixtureRequest, island: Island) -> Iterator[Place]:
    with ExitStack() as ends:
        if request.param == "nats":
            url = urlsplit(request.getfixturevalue("nats_url"))
            proxy = ends.enter_context(closing(Proxy(url.port or 0, island.shore)))
            yield Place(url.geturl(), url._replace(netloc=f"{island.shore}:{proxy.port}").geturl())
            return
        request.getfixturevalue("postgres_server")
        schema = ends.enter_context(empty_schema())
        info = shared_server().get_postmaster_info()
        assert info.socket_dir is not None
        server = Path(info.socket_dir, f".s.PGSQL.{info.port}")
        gate = ends.enter_context(closing(CuttingProxy(server, island.shore)))
        far = url_of(shared_server(), schema, host=island.shore, port=str(gate.port), tcp_user_timeout="2000")
        yield Place(url_of(shared_server(), schema), far)


async def test_a_worker_whose_cable_is_pulled_is_replaced_and_comes_back(
    place: Place, island: Island, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILL_LEASE", "2")
    log = tmp_path / "log"
    lives: list[subprocess.Popen[str]] = []
    try:
        far = subprocess.Popen(
            ["ip", "netns", "exec", island.name, sys.executable, str(TARGET), place.there, str(LANES), str(LENGTH)],
            env={**os.environ, "KILL_LOG": str(log)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lives.append(far)
        assert wait_for_lines(log, LANES, lives)
        island.pull()
        near = start_program(log, TARGET, place.here, LANES, LENGTH)
        lives.append(near)
        # It takes the run over from a session of which nobody can tell more than that it is silent.
        assert near.communicate(timeout=SECONDS)[0].strip() == str(LANES * LENGTH)
        assert far.poll() is None
        island.plug()
        assert far.communicate(timeout=SECONDS)[0].strip() == str(LANES * LENGTH)
    finally:
        for life in lives:
            life.kill()
            life.communicate()
    await check(place.here, LENGTH, log)
