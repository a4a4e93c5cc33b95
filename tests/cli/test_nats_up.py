"""`treadle nats up` runs servers until it is told to end, and leaves none behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from treadle import connect, step, workflow
from treadle.store.nats.development import free_ports

pytestmark = [
    pytest.mark.nats,
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX"),
    # What it runs comes with the same dependencies as the server of the other tests.
    pytest.mark.usefixtures("nats_server"),
]


@step(name="up:double")
async def double(value: int) -> int:
    return 2 * value


@workflow(name="up:doubled")
def doubled(value: int) -> int:
    return double.bind(value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["interrupted", "terminated"])
async def test_servers_run_until_the_command_ends(number: signal.Signals, tmp_path: Path) -> None:
    # Where the tests themselves run in the background, SIGINT is ignored, and whoever they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "treadle.cli", "nats", "up", "--port", str(port), "--folder", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith(f"nats://127.0.0.1:{port}/")
        async with connect(url) as app:
            assert await (await app.start(doubled, 4)).result(timeout=20) == 8
    finally:
        process.send_signal(number)
        process.communicate(timeout=20)

    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "a server is still there"
