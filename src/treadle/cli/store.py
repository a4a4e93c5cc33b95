"""`treadle store`: what is done with whole stores."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from treadle.cli.output import emit, paint, plainly, say
from treadle.cli.settings import store_url
from treadle.errors import UsageError
from treadle.runtime.report import clean


@click.group()
def store() -> None:
    """Whole stores."""


@store.command()
@click.option("-o", "--output", type=click.Choice(["json", "jsonl", "table"]), default="table", show_default=True)
@click.option("-q", "--quiet", is_flag=True, help="Do not name each run that was copied.")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy(output: str, quiet: bool, source: str, target: str) -> int:
    """Copy all runs FROM one store TO another of any kind, those in flight included, and compare both.

    Nobody may work on either store meanwhile. Done again it adds what is new, so that a copy which was cut off is made
    whole.
    """
    return asyncio.run(_copy(output, quiet, store_url(source, Path.cwd()), store_url(target, Path.cwd())))


async def _copy(output: str, quiet: bool, source: str, target: str) -> int:
    from treadle.connect import connect

    if source == target:
        raise UsageError("FROM and TO are the same store")

    def progress(run: str) -> None:
        if not quiet:
            say(f"copied {clean(run)}")

    async with connect(source, worker=False, create=False) as old, connect(target, worker=False) as new:
        report = await old.copy_to(new, progress)
    lines = [
        f"{report.runs} runs, {report.open} of them open: the same in both stores",
        f"copied {report.events} events, {report.payloads} payloads, {report.blobs} blobs,"
        f" {report.tasks} waiting tasks, {report.inputs} inputs, the limits of {report.queues} queues",
    ]
    if report.differing:
        lines[0] = f"{len(report.differing)} of {report.runs} runs (or queues) differ"
        lines += [paint("failed", f"{clean(run)} {what}") for run, what in report.differing.items()]
    emit(plainly(report), output, "\n".join(lines) + "\n")
    return int(bool(report.differing))
