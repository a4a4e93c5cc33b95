"""Wake-ups between sessions: hints by datagram, on Unix sockets and on loopback UDP."""

from __future__ import annotations

import asyncio

import pytest

from treadle.runtime.wakeups import DatagramWakeups


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "udp"])
async def test_a_datagram_wakes_the_session_at_its_address(unix: bool) -> None:
    woken = asyncio.Event()
    one, two = DatagramWakeups("test-one", unix=unix), DatagramWakeups("test-two", unix=unix)
    await one.open(woken.set)
    await two.open(lambda: None)

    two.send(one.address)

    async with asyncio.timeout(10):
        assert await woken.wait()
    one.close()
    two.close()


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "udp"])
async def test_nobody_at_an_address_is_no_error(unix: bool) -> None:
    one, two = DatagramWakeups("test-gone", unix=unix), DatagramWakeups("test-there", unix=unix)
    await one.open(lambda: None)
    await two.open(lambda: None)
    address = one.address
    one.close()

    two.send(address)
    two.send("")
    two.close()

    assert address
