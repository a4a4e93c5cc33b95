"""`treadle queues`: what goes on in queues, and their limits, which hold for all processes at once."""

from __future__ import annotations

from typing import Any

import click

from treadle.cli.desk import Desk, with_desk
from treadle.cli.output import emit, plainly, table
from treadle.cli.reading import now
from treadle.errors import DefinitionError, UsageError
from treadle.runtime.queues import Queue, limits_of, limits_text
from treadle.runtime.report import clean, duration
from treadle.store.queues import QueueChange, QueueRow, refill


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def queues(ctx: click.Context) -> None:
    """Queues: their limits and what waits. Without a verb they are listed."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(listing)


@queues.command("list")
@with_desk()
async def listing(desk: Desk) -> None:
    """List the queues that have limits or tasks."""
    async with desk.connect() as app:
        found = await app.queues()
    at = now()
    cells = [_cells(row, at) for row in found]
    headers = ("QUEUE", "WAITING", "DELAYED", "RUNNING", "OLDEST", "STARTS", "LIMITS")
    emit([plainly(row) for row in found], desk.output, table(headers, cells, empty="no queue has limits or tasks"))


def _cells(row: QueueRow, at: float) -> list[str]:
    limits = row.limits
    starts = ""
    if limits.rate:
        starts = f"{refill(row.bucket, limits.rate, limits.burst, at).allowance:.3g}"
    said = [
        limits_text(limits),
        "set by an operator" if row.override is not None else "",
        "paused" if row.paused else "",
    ]
    oldest = duration(max(at - row.oldest_at, 0.0)) if row.oldest_at else ""
    counts = [str(row.waiting), str(row.delayed), str(row.running)]
    return [clean(row.name), *counts, oldest, starts, "; ".join(text for text in said if text)]


async def _change(desk: Desk, change: QueueChange, done: str) -> None:
    async with desk.connect() as app:
        changed = await app.change_queue(change)
    text = f"{done} {clean(change.name)}" if changed else f"{clean(change.name)} was so already"
    emit({"queue": change.name, "changed": changed}, desk.output, text)


@queues.command("set")
@with_desk()
@click.option("--concurrency", type=int, metavar="N", help="Steps that may be executed at a time.")
@click.option("--rate", metavar="RATE", help="Steps that may start in a period: 10/s, 100/m, 5/h.")
@click.option("--burst", type=int, metavar="N", help="How many may start at once after a pause.")
@click.option("--key-concurrency", type=int, metavar="N", help="As --concurrency, for each key.")
@click.option("--key-rate", metavar="RATE", help="As --rate, for each key.")
@click.option("--key-burst", type=int, metavar="N", help="As --burst, for each key.")
@click.option("--fair", is_flag=True, help="Keys take turns.")
@click.option("--length", type=int, metavar="N", help="Make no runs that begin here while so many steps wait.")
@click.option("--on-full", metavar="POLICY", help="What such starts do: reject (are refused), wait, or drop_oldest.")
@click.argument("queue")
async def set_limits(desk: Desk, queue: str, **limits: Any) -> None:
    """Set the limits of QUEUE, whole; they go before what programs define, until they are reset."""
    if not any(value not in (None, False) for value in limits.values()):
        raise UsageError("name a limit; `treadle queues reset` gives the queue back to the program's limits")
    mistakes: list[str] = []
    found = limits_of(Queue(queue, **limits), mistakes)
    if mistakes:
        raise DefinitionError("; ".join(mistakes))
    await _change(desk, QueueChange(name=queue, override=found), f"{limits_text(found)} holds for")


@queues.command("reset")
@with_desk()
@click.argument("queue")
async def reset(desk: Desk, queue: str) -> None:
    """Let the program's limits of QUEUE hold again."""
    await _change(desk, QueueChange(name=queue, override=None), "the program's limits hold for")


@queues.command("pause")
@with_desk()
@click.argument("queue")
async def pause(desk: Desk, queue: str) -> None:
    """Let nothing start in QUEUE until it is resumed; what runs goes on."""
    await _change(desk, QueueChange(name=queue, paused=True), "paused")


@queues.command("resume")
@with_desk()
@click.argument("queue")
async def resume(desk: Desk, queue: str) -> None:
    """Let QUEUE go on."""
    await _change(desk, QueueChange(name=queue, paused=False), "resumed")
