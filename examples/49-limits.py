"""Be polite to every host: so many requests a second and at a time each, in all processes together."""

import asyncio
import time
from collections import Counter

from treadle import Queue, connect, context, step, workflow

# Two at a time and ten a second for each host, and never more than fifty in all.
http = Queue("http", concurrency=50, key_concurrency=2, key_rate="10/s", key_burst=3, fair=True)

began: dict[str, list[float]] = {}
live: Counter[str] = Counter()
most: Counter[str] = Counter()


@step(queue="http", key="host")
async def fetch(host: str, path: str) -> str:
    """Stands for a request; it notes what the limits are about."""
    began.setdefault(host, []).append(time.monotonic())
    live[host] += 1
    most[host] = max(most[host], live[host])
    await asyncio.sleep(0.01)
    live[host] -= 1
    return f"{host}{path} by {context().worker_id}"


@workflow
def crawl(hosts: list[str], pages: int) -> list[str]:
    return [fetch.bind(host, f"/{page}") for page in range(pages) for host in hosts]


async def main() -> None:
    async with connect("memory://", queues=[http]) as app:
        run = await app.start(crawl, ["a.example", "b.example", "c.example"], 8, id="crawl")

        # Why is a page not fetched yet? The limit says so itself, and until when.
        reasons = await run.why("fetch-24")
        print(*(f"{reason.code}: {reason.message}" for reason in reasons if reason.tense == "now"), sep="\n")

        pages = await run.result(timeout=30)
        for host, times in began.items():
            print(f"{host}: {len(times)} requests in {times[-1] - times[0]:.2f} s, at most {most[host]} at a time")
            # Three at once, and ten a second from then on; what is handed out may begin a moment later.
            assert times[-1] - times[0] > (len(times) - 3) / 10 - 0.3
            assert most[host] <= 2
        assert len(pages) == 24


if __name__ == "__main__":
    asyncio.run(main())
