"""The link checker on many machines: three worker processes share one crawl, and one of them is killed in the middle.

    python machines.py                                   on a cluster of three NATS servers, which it starts
    python machines.py nats://127.0.0.1:4222/links       on servers that are there
    python machines.py postgresql://user@host/database   the same program on PostgreSQL

This process starts the crawl and waits for it; it fetches nothing. In real life the workers are on machines of their
own: `python machines.py STORE --work NAME`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from linkcheck import crawl, results
from pages import Site
from report import figures_of
from server import PydocServer

from treadle import Run, connect
from treadle.store.nats.development import nodes_in, start_all, url_of

NAMES = ("first", "second", "third")
KILL_AT = 15


def work(store: str, name: str) -> None:
    """A worker: it fetches pages of all crawls of the store until its input ends."""
    with connect(store, worker_id=name, threads=4, lease=3):
        sys.stdin.read()


@contextmanager
def cluster() -> Iterator[str]:
    """Three NATS servers on this machine, and a store that each of them has."""
    with tempfile.TemporaryDirectory() as folder:
        nodes = nodes_in(Path(folder), 3)
        start_all(nodes)
        try:
            yield url_of(nodes, "links")
        finally:
            for node in nodes:
                node.kill()


@contextmanager
def workers(store: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The three processes; those that still live end with this one."""
    program = [sys.executable, str(Path(__file__).resolve()), store, "--work"]
    started = {name: subprocess.Popen([*program, name], stdin=subprocess.PIPE) for name in NAMES}
    try:
        yield started
    finally:
        for process in started.values():
            process.communicate()


async def shares(run: Run[Any]) -> dict[str, int]:
    """How many pages each worker has fetched."""
    return dict(Counter(view.worker for view in (await run.inspect()).steps if view.status == "succeeded"))


async def check(store: str, url: str, only: list[str]) -> dict[str, Any]:
    """Crawl a site, and kill a worker in the middle; the figures, and what the store tells of the work."""
    async with connect(store, worker=False, lease=3) as app:
        site = Site(url, only)
        run = await app.start(crawl, site, id=f"links of {url}")
        with workers(store) as processes:
            async for _ in run.changes():
                if (await run.inspect()).counts["succeeded"] >= KILL_AT:
                    break
            # The busiest, and no last words: what it was fetching is lost, and fetched again by the others.
            done = await shares(run)
            killed = max(done, key=lambda name: done[name])
            processes[killed].kill()
            await run.wait()
        pages, told = await results(run)
        return {**figures_of(site, pages).as_dict(), **told, "workers": await shares(run), "killed": killed}


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the links of pydoc's pages by three processes.")
    parser.add_argument("store", nargs="?", default="", help="a store's URL; without it, NATS servers are started")
    parser.add_argument("--site", default="", help="where the pages are served; without it, a server is started")
    parser.add_argument("--only", nargs="*", default=["asyncio", "json"], metavar="PACKAGE", help="check these alone")
    parser.add_argument("--work", default="", metavar="NAME", help="be a worker of the store")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if options.work:
        work(options.store, options.work)
        return 0
    with ExitStack() as servers:
        store = options.store or servers.enter_context(cluster())
        url = options.site or servers.enter_context(PydocServer()).url
        found = asyncio.run(check(store, url, options.only))
    print(json.dumps(found) if options.json else "\n".join(f"{name:<16}{value}" for name, value in found.items()))
    return 1 if found["missing"] else 0


if __name__ == "__main__":
    sys.exit(main())
