"""Verbs that follow a run: watch and events."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from treadle.cli.desk import Desk, run_argument, with_desk
from treadle.cli.output import plainly, write, write_json
from treadle.cli.progress import follow, view_for
from treadle.cli.reading import now
from treadle.runtime.inspection import Snapshot
from treadle.runtime.report import clean, cut, duration, render_report


class _Lines:
    """Writes each snapshot as one JSON line to stdout."""

    seconds = 0.5

    def __init__(self) -> None:
        self._last: object = None

    def update(self, snapshot: Snapshot) -> None:
        news = (snapshot.status, snapshot.counts)
        if news != self._last:
            self._last = news
            facts = {"run": snapshot.id, "time": snapshot.now, "status": snapshot.status, "counts": snapshot.counts}
            write_json(facts, lines=True)

    def close(self) -> None:
        """Nothing is open."""


@click.command()
@with_desk()
@run_argument
async def watch(desk: Desk, run_id: str) -> None:
    """Follow a run until its end: a live tree on a terminal, else lines. Executes nothing.

    With --output jsonl: a line with status and counts at each change.
    """
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        view = _Lines() if desk.output == "jsonl" else view_for()
        shown = asyncio.create_task(follow(run, view))
        end = asyncio.create_task(run.wait())
        try:
            await asyncio.wait({end, shown}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (shown, end):
                task.cancel()
            found = await asyncio.gather(shown, return_exceptions=True)
        if not end.done() or end.cancelled():
            # The view ended first, which it does by an error only.
            for error in found:
                if isinstance(error, Exception):
                    raise error
        snapshot = await run.inspect()
        view.update(snapshot)
        view.close()
    if desk.output == "table":
        write(render_report(snapshot))
    elif desk.output == "json":
        write_json(snapshot)


@click.command()
@with_desk("jsonl", "json", "table")
@click.option("--after", type=click.IntRange(0), default=0, metavar="VERSION", help="Only events after this version.")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the run has its outcome.")
@click.option("--cloudevents", is_flag=True, help="As CloudEvents 1.0, one JSON object a line.")
@run_argument
async def events(desk: Desk, run_id: str, after: int, following: bool, cloudevents: bool) -> None:
    """Print the journal of a run: one event a line, with its version and time."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        if cloudevents:
            async for made in run.cloud_events(after=after, follow=following):
                write_json(made, lines=True)
            return
        collected: list[dict[str, Any]] = []
        async for version, time, event in run.events(after=after, follow=following):
            facts = {"version": version, "time": time, **plainly(event)}
            if desk.output == "jsonl":
                write_json(facts, lines=True)
            elif desk.output == "table":
                write(_line(facts))
            else:
                collected.append(facts)
    if desk.output == "json":
        write_json(collected)


def _line(facts: dict[str, Any]) -> str:
    age = duration(max(now() - facts["time"], 0.0))
    rest = {name: value for name, value in facts.items() if name not in ("version", "time", "kind", "at")}
    text = cut(clean(msgspec.json.encode(rest).decode()), 100) if rest else ""
    return (
        f"{facts['version']:>6}  {age:>8} ago  {facts['kind']:<20}  {clean(str(facts.get('at', '')))}  {text}".rstrip()
        + "\n"
    )
