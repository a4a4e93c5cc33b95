"""Verbs about the store as a whole: what is deleted of it, and copies."""

from __future__ import annotations

import click

from treadle.cli.artifacts import size_text
from treadle.cli.desk import Desk, confirm, with_desk
from treadle.cli.output import emit, plainly, table
from treadle.cli.reading import now, run_facts, shown
from treadle.runtime.report import clean, duration
from treadle.runtime.retention import CLOSED


@click.command()
@with_desk()
@click.option("--older-than", default="30d", show_default=True, metavar="DURATION", help="Only runs unchanged so long.")
@click.option("--keep", default=0, show_default=True, type=click.IntRange(0), help="Keep so many of each workflow.")
@click.option("--status", multiple=True, type=click.Choice(CLOSED), help="Only with this outcome; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; list what would be deleted.")
@click.option("--blobs", default="1d", show_default=True, metavar="DURATION", help="Leave younger blobs alone.")
@click.option("--yes", is_flag=True, help="Do not ask.")
async def gc(
    desk: Desk, older_than: str, keep: int, status: tuple[str, ...], dry_run: bool, blobs: str, yes: bool
) -> None:
    """Delete closed runs that are old, and then artifacts and large values that no run names any more.

    A run goes with the runs that its steps called. Open ones are never touched.
    """
    if not dry_run:
        confirm(f"delete closed runs older than {older_than}, and blobs that nobody needs?", yes=yes)
    async with desk.connect() as app:
        done = await app.gc(older_than=older_than, keep=keep, status=status or CLOSED, dry_run=dry_run)
        found = await app.collect(blobs, dry_run=dry_run)
    at = now()
    cells = [[row.id, shown(row), row.workflow, duration(max(at - row.updated_at, 0.0))] for row in done.deleted]
    text = table(("ID", "STATUS", "WORKFLOW", "UNCHANGED"), cells, status=1, empty="no run is old enough")
    if done.left:
        text += f"left, since something of them is open: {', '.join(clean(row.id) for row in done.left)}\n"
    verb = "would be removed" if dry_run else "removed"
    text += f"{found.removed} blobs {verb} ({size_text(found.size)}); {found.kept} old ones are needed\n"
    facts = {
        "dry_run": dry_run,
        "deleted": [run_facts(row) for row in done.deleted],
        "left": [row.id for row in done.left],
        "blobs": plainly(found),
    }
    emit(facts, desk.output, text)


@click.command()
@with_desk()
@click.argument("file", type=click.Path(dir_okay=False))
async def backup(desk: Desk, file: str) -> None:
    """Copy the store to FILE while it is in use, and its blobs to FILE-blobs."""
    async with desk.connect() as app:
        made = await app.backup(file)
    emit({"file": str(made), "bytes": made.stat().st_size}, desk.output, f"copied to {clean(str(made))}\n")
