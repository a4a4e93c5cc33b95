"""The verb that undoes what a run has done, shows what would be undone, and steers undos that do not end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from treadle.cli.desk import Desk, confirm, run_argument, with_desk
from treadle.cli.output import emit, plainly, table
from treadle.cli.receipts import keep
from treadle.cli.settings import find_project
from treadle.errors import UsageError
from treadle.runtime.inspection import UNWOUND
from treadle.runtime.report import clean

if TYPE_CHECKING:
    from treadle.runtime.run import Run
    from treadle.runtime.undo import UndoEntry


# So many addresses fit a line.
NAMED: Final = 5


@click.command()
@with_desk()
@click.option("--to", default="", metavar="STEP", help="Undo only what ended after STEP.")
@click.option("--dry-run", is_flag=True, help="Only list what would be undone, in that order.")
@click.option("--retry", is_flag=True, help="Try the undo of STEP again (without STEP: all that did not undo).")
@click.option("--skip", is_flag=True, help="Give up the undo of STEP: what it did stands.")
@click.option("--park", is_flag=True, help="Put the undo of STEP aside; the next undo takes it on again.")
@click.option("--wait", is_flag=True, help="Return when the run is unwound; workers of the workflow do the undos.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@run_argument
@click.argument("step", required=False)
async def undo(
    desk: Desk, run_id: str, step: str | None, to: str, dry_run: bool, wait: bool, yes: bool, **verbs: bool
) -> None:
    """Undo what a settled run has done, the last that ended first. STEP goes with --retry, --skip or --park.

    STEP may also be the row of a phase that is compensated.
    """
    chosen = _chosen(step, to, verbs, dry_run=dry_run)
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        if dry_run:
            await _list(desk, run, to)
            return
        if chosen:
            await _steer(run, chosen, step or "")
        else:
            after = f" after {to}" if to else ""
            confirm(f"Undo what {run.id} did{after}?", yes=yes, refuse=False)
            if not await run.undo(to=to):
                emit({"run": run.id, "undoing": False}, desk.output, f"nothing is left to undo in {clean(run.id)}")
                await _tell_what_stands(run)
                return
        row = await run.wait() if wait else await run.row()
        folder = find_project(Path.cwd()).receipt_folder() if wait else None
        if folder is not None:
            await keep(run, folder, folder=True)
    said = f"{UNWOUND[row.unwound]}: " if wait and row.unwound else f"{chosen or 'undoing'} in "
    facts = {"run": run.id, "undoing": True, "status": row.status, "unwound": row.unwound}
    emit(facts, desk.output, f"{said}{clean(run.id)}")


def _chosen(step: str | None, to: str, verbs: dict[str, bool], *, dry_run: bool) -> str:
    """The one of --retry, --skip and --park that was given, or "".

    Raises:
        UsageError: the options contradict each other.
    """
    given = [verb for verb, chosen in verbs.items() if chosen]
    if len(given) > 1 or (given and (to or dry_run)):
        raise UsageError(f"--{given[0]} goes with no other option than --wait")
    if step is not None and not given:
        raise UsageError(f"say what to do about the undo of {step!r}: --retry, --skip or --park (or --to {step})")
    if step is None and given and given != ["retry"]:
        raise UsageError(f"--{given[0]} needs the STEP whose undo is meant")
    return given[0] if given else ""


async def _list(desk: Desk, run: Run[Any], to: str) -> None:
    stack = await run.undo_stack(to=to)
    rows = [
        [str(place), entry.address, entry.outcome, _how(entry), entry.resource] for place, entry in enumerate(stack, 1)
    ]
    text = table(("", "STEP", "STATUS", "UNDO", "RESOURCE"), rows, status=2, empty="nothing is left to undo")
    emit([plainly(entry) for entry in stack], desk.output, text)
    if not stack:
        await _tell_what_stands(run)


async def _tell_what_stands(run: Run[Any]) -> None:
    """Say on stderr which undos were tried in vain: those are not on the stack, and what their steps did stands."""
    snapshot = await run.inspect()
    failed = [step.address for step in snapshot.steps if step.undo == "failed"]
    failed += [scope.address for scope in snapshot.scopes if scope.undo == "failed"]
    if failed:
        named = ", ".join(map(clean, failed[:NAMED])) + (" and others" if len(failed) > NAMED else "")
        click.echo(f"the undo failed of {named}: what was done there stands, and --retry tries again", err=True)


def _how(entry: UndoEntry) -> str:
    """How an effect is undone."""
    if entry.kind == "call":
        return "unwinds the run that it called"
    return f"phase {entry.undo}" if entry.kind == "row" else entry.undo


async def _steer(run: Run[Any], verb: str, step: str) -> None:
    if verb == "retry":
        await run.retry_undo(step)
    elif verb == "skip":
        await run.skip_undo(step)
    else:
        await run.park_undo(step)
