"""A program that serves the package of `links.py`: check sites, and print what its tables tell.

    python sitecheck.py                    check two servers with pydoc's pages, started for it
    python sitecheck.py URL...             check sites of that kind that are served already

Killed and started again with the same `--id` and the same sites, it goes on where it was. Several may work on one
store: `treadle worker` with this package does.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path

from links import http, links
from server import PydocServer

from treadle import App, connect

HERE = Path(__file__).resolve().parent

BY_HOST = """
SELECT p.host, count(*) AS pages, sum(p.size) AS bytes, sum(p.status >= 400 OR p.error != '') AS errors,
    (SELECT count(*) FROM links_links l JOIN links_pages q ON q.url = l.page WHERE q.host = p.host) AS links
FROM links_pages p GROUP BY p.host ORDER BY p.host
"""
MISSING = """
SELECT l.page, l.href FROM links_links l LEFT JOIN links_pages p ON p.url = l.target WHERE l.wanted AND p.url IS NULL
"""
LARGEST = "SELECT url, size, text FROM links_pages ORDER BY size DESC LIMIT 1"


async def report(app: App, run_id: str) -> int:
    """Print what the tables tell; gives the exit code."""
    tables = app.projection("links")
    await tables.caught_up()
    for row in await tables.query(BY_HOST):
        print("{host:<24}{pages:>6} pages {bytes:>10,} bytes {links:>8,} links {errors:>4} error pages".format(**row))
    broken = await tables.query("SELECT page, href FROM links_broken ORDER BY page, href")
    print(f"{len(broken)} broken links")
    for row in broken[:5]:
        print(f"  {row['page']} -> {row['href']}")
    for row in await tables.query(LARGEST):
        # The artifact's id is in the table, its bytes are with the run.
        async with await app.run(run_id).open(row["text"]) as stream:
            head = (await stream.content())[:15].decode()
        print(f"the largest page is {row['url']}: {row['size']:,} bytes, beginning with {head!r}")
    missing = await tables.query(MISSING)
    for row in missing:
        print(f"  NOT VISITED: {row['page']} -> {row['href']}")
    return 1 if missing else 0


async def main(options: argparse.Namespace) -> int:
    options.store.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as servers:
        sites = options.url or [servers.enter_context(PydocServer()).url for _ in range(2)]
        async with connect(
            f"sqlite:///{options.store.resolve()}",
            packages=[links],
            package_settings={"links": {"only": options.only}},
            queues=[http],
            threads=12,
        ) as app:
            run = await app.start("links/check", sites, id=options.id)
            await run.wait()
            return await report(app, run.id)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the links of sites with pydoc's pages.")
    parser.add_argument("url", nargs="*", help="addresses of sites; without any, two servers are started")
    parser.add_argument("--store", type=Path, default=HERE / ".treadle" / "sites.db", help="a SQLite file")
    parser.add_argument("--id", default=None, help="the run's id; a new run without it")
    parser.add_argument("--only", nargs="*", default=["json", "asyncio"], metavar="PACKAGE", help="check these alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(arguments())))
