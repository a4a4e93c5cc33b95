"""A link checker that can be killed: each page is a step, and the pages it leads to are steps it adds.

    python linkcheck.py                    check pydoc's pages of the standard library
    python linkcheck.py URL                check a site of that kind that is served already

The run has a fixed id. Kill the program at any moment and start it again: it goes on where it was. When the run
is finished, the same command prints its report; `--fresh` begins anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pages import FIRST, Page, Site, read
from report import figures_of, text_of
from server import PydocServer

from treadle import App, Retry, Run, connect, context, step, workflow

HERE = Path(__file__).resolve().parent


# A page that stays unreachable does not fail the crawl: it is part of what the report tells.
@step(retry=Retry(attempts=4, initial="250ms", jitter=0.5), timeout="60s", optional=True)
def check(site: Site, path: str) -> Page:
    """Fetch a page, and have the pages it leads to checked too."""
    page = read(site, path)
    # Into the root, under the page's own path: however many pages lead to it, it is one step.
    context().add(*(check.options(id=target).bind(site, target) for target in page.follow(site)), into="root")
    return page


@workflow
def crawl(site: Site) -> None:
    check.options(id=FIRST).bind(site, FIRST)


async def show_progress(run: Run[Any]) -> None:
    """Say once a second how far the run is, until it is cancelled."""
    while True:
        counts = (await run.inspect()).counts
        done = counts["succeeded"] + counts["failed"]
        open_ = sum(counts[status] for status in ("waiting", "ready", "dispatched", "running", "retrying"))
        print(f"  {done:>5} pages done, {open_:>4} to do", file=sys.stderr, flush=True)
        await asyncio.sleep(1)


async def results(run: Run[Any]) -> tuple[dict[str, Page], dict[str, Any]]:
    """The pages as the store has them, and what it tells of the work."""
    snapshot = await run.inspect()
    done = [view for view in snapshot.steps if view.status == "succeeded"]
    pages = {view.id: await run.step(view.address, type=Page) for view in done}
    seconds = snapshot.total_seconds or 0.0
    work = {
        "seconds": seconds,
        "steps_per_s": len(snapshot.steps) / seconds if seconds else 0.0,
        "attempts": sum(view.attempt for view in snapshot.steps),
        "lost": sum(view.lost for view in snapshot.steps),
        "retried": sum(view.attempt - view.lost - 1 for view in snapshot.steps),
        "unreachable": [f"{view.address}: {view.failure.message}" for view in snapshot.steps if view.failure],
    }
    return pages, work


async def site_of(app: App, options: argparse.Namespace, servers: ExitStack) -> Site:
    """The site to check: the given one, that of the unfinished run, or a new one."""
    known = next((row for row in await app.find(options.id) if row.id == options.id), None)
    if known is not None and not options.fresh:
        # The address is part of the run's input, and of every page's step: it stays, over all restarts.
        base = options.url or known.labels["site"]
        if known.status == "running" and not options.url:
            servers.enter_context(PydocServer(urlsplit(base).port or 0))
        return Site(base, options.only or known.labels["only"].split())
    return Site(options.url or servers.enter_context(PydocServer()).url, options.only)


async def main(options: argparse.Namespace) -> int:
    options.store.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as servers:
        # Sync steps run in threads; so many pages are fetched at a time. pydoc serves one at a time.
        async with connect(f"sqlite:///{options.store.resolve()}", threads=options.workers) as app:
            site = await site_of(app, options, servers)
            run = await app.start(
                crawl,
                site,
                id=options.id,
                labels={"site": site.base, "only": " ".join(site.only)},
                on_conflict="replace" if options.fresh else "reuse",
            )
            progress = asyncio.create_task(show_progress(run))
            await run.wait()
            progress.cancel()
            pages, work = await results(run)
    figures = figures_of(site, pages)
    print(json.dumps({**figures.as_dict(), **work}) if options.json else text_of(figures, work))
    return 1 if figures.missing else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the links of pydoc's pages. Run it again after a crash.")
    parser.add_argument(
        "url", nargs="?", default="", help="where the pages are served; without it, a server is started"
    )
    parser.add_argument("--store", type=Path, default=HERE / ".treadle" / "linkcheck.db", help="a SQLite file")
    parser.add_argument("--id", default="linkcheck", help="the run's id")
    parser.add_argument("--only", nargs="*", default=[], metavar="PACKAGE", help="check these packages alone")
    parser.add_argument("--workers", type=int, default=6, help="pages fetched at a time")
    parser.add_argument("--fresh", action="store_true", help="forget the run of this id and begin anew")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    options.url = options.url if not options.url or options.url.endswith("/") else options.url + "/"
    return options


if __name__ == "__main__":
    sys.exit(asyncio.run(main(arguments())))
