"""Records and projections: steps say what they found, a table of yours holds it, each record applied exactly once.

In a SQLite file, or with a URL as its argument in PostgreSQL: `python 42-projections.py postgresql://user@host/database`.
"""

import asyncio
import sys
import tempfile
from dataclasses import dataclass

from treadle import Projection, Retry, connect, context, gather, step, workflow


@dataclass
class Visit:
    status: int
    seconds: float


visits = Projection(
    "visits",
    migrations=["CREATE TABLE visits (url TEXT PRIMARY KEY, status INTEGER, seconds REAL, times INTEGER DEFAULT 1)"],
)
visits.collection(
    "visit",
    # In words that both databases know.
    "INSERT INTO visits (url, status, seconds)"
    " VALUES (:key, CAST(:data ->> 'status' AS INTEGER), CAST(:data ->> 'seconds' AS REAL))"
    " ON CONFLICT (url) DO UPDATE SET status = excluded.status, times = visits.times + 1",
    type=Visit,
)


@step
async def visit(number: int) -> int:
    status = 404 if number % 4 == 0 else 200
    context().record("visit", f"http://localhost/{number}", Visit(status, 0.1 * number))
    if number == 3 and context().attempt == 1:
        # What this attempt has recorded counts for nothing.
        raise ConnectionError("try again")
    return status


@step
async def worst() -> list[str]:
    # A step may ask the projection, too.
    rows = await context().projection("visits").query("SELECT url FROM visits WHERE status >= ? ORDER BY url", 400)
    return [row["url"] for row in rows]


@workflow
def crawl(count: int) -> list[str]:
    visited = gather(
        list(range(count)), lambda number: visit.options(retry=Retry(attempts=2)).bind(number), id="visits"
    )
    return worst.options(after=[visited]).bind()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{folder}/runs.db"
        async with connect(store, projections=[visits]) as app:
            run = await app.start(crawl, 8)
            print("broken", await run.result())

            table = app.projection("visits")
            print(
                await table.query("SELECT status, count(*) AS pages, sum(times) AS times FROM visits GROUP BY status")
            )

            await table.rebuild()
            print(await table.query("SELECT count(*) AS pages FROM visits"))


asyncio.run(main())
