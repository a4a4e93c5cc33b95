"""Verbs that change a run: they need none of the user's code, and decide themselves where nobody else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from treadle.cli.desk import Desk, confirm, run_argument, with_desk
from treadle.cli.output import emit
from treadle.cli.reading import shown
from treadle.core.tables import LIVE
from treadle.errors import RunNotActiveError, UsageError
from treadle.runtime.report import clean, names


def _yes(function: Any) -> Any:
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(function)


def _answer(desk: Desk, text: str, **facts: Any) -> None:
    emit(facts, desk.output, text)


@click.command()
@with_desk()
@click.option("--hard", is_flag=True, help="Also end the attempts that run.")
@click.option("--unwind", is_flag=True, help="Then undo what the run has done.")
@click.option("--wait", is_flag=True, help="Return when nothing of the run is executed any more.")
@_yes
@run_argument
async def cancel(desk: Desk, run_id: str, hard: bool, unwind: bool, wait: bool, yes: bool) -> None:
    """Stop a run: what runs may finish, nothing follows. A finished run stays as it is; one that unwinds is parked."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        if hard:
            # A script that says --hard has said enough.
            confirm(f"End all attempts of {run.id} now?", yes=yes, refuse=False)
        await run.cancel(hard=hard, unwind=unwind)
        if wait:
            await run.wait()
        snapshot = await run.inspect()
    _answer(desk, f"{snapshot.status} {clean(run.id)}", run=run.id, status=snapshot.status)


@click.command()
@with_desk()
@run_argument
async def pause(desk: Desk, run_id: str) -> None:
    """Hold a run: what runs goes on, nothing else starts until it is resumed."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        status = await run.pause()
    _answer(desk, f"{status} {clean(run.id)}", run=run.id, status=status)


@click.command()
@with_desk()
@run_argument
async def resume(desk: Desk, run_id: str) -> None:
    """Lift the hold of a pausing or paused run."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        await run.resume()
    _answer(desk, f"resumed {clean(run.id)}", run=run.id, status="running")


@click.command()
@with_desk()
@run_argument
@click.argument("step", required=False)
async def retry(desk: Desk, run_id: str, step: str | None) -> None:
    """Reopen a failed or cancelled STEP (without STEP: all of them) and what was skipped because of it."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        reopened = await run.retry(step)
    text = f"reopened {names(reopened)} of {clean(run.id)}"
    _answer(desk, text, run=run.id, reopened=reopened)


@click.command()
@with_desk()
@click.option("--keep", is_flag=True, help="Leave what the steps did as it is, instead of undoing it first.")
@_yes
@run_argument
@click.argument("step")
async def rewind(desk: Desk, run_id: str, step: str, keep: bool, yes: bool) -> None:
    """Reopen a settled STEP and all that depends on it, as the next generation: they are executed again."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        confirm(f"Execute {step} of {run.id} again, and all that depends on it?", yes=yes, refuse=False)
        reopened = await run.rewind(step, keep=keep)
    text = f"rewound {names(reopened)} of {clean(run.id)}"
    if not reopened:
        text = f"{clean(run.id)} undoes first what {clean(step)} and the steps after it did"
    _answer(desk, text, run=run.id, reopened=reopened)


def _payload(text: str | None, *, raw: bool) -> Any:
    """The value of a payload argument: JSON, `@file` with JSON, or with `raw` the text itself."""
    if text is None:
        return None
    if text.startswith("@") and not raw:
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the payload cannot be read: {error}") from None
    if raw:
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UsageError(f"the payload is no JSON ({error}); quote it, or pass --text") from None


@click.command()
@with_desk()
@click.option("--text", "raw", is_flag=True, help="PAYLOAD is plain text, not JSON.")
@run_argument
@click.argument("name")
@click.argument("payload", required=False)
async def signal(desk: Desk, run_id: str, name: str, payload: str | None, raw: bool) -> None:
    """Deliver the signal NAME with a PAYLOAD of JSON (or @file; without it null). The first of a name is kept."""
    value = _payload(payload, raw=raw)
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        delivered = await run.signal(name, value)
    text = f"delivered signal {clean(name)} to {clean(run.id)}"
    if not delivered:
        text = f"signal {clean(name)} had come to {clean(run.id)} before; its first payload is kept"
    _answer(desk, text, run=run.id, signal=name, delivered=delivered)


@click.command()
@with_desk()
@run_argument
@click.argument("label")
async def release(desk: Desk, run_id: str, label: str) -> None:
    """Release the steps of a run that stand at breakpoints with LABEL. It stays armed for later ones."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        count = await run.release(label)
    text = f"released {count} breakpoint{'' if count == 1 else 's'} for label {clean(label)!r} in {clean(run.id)}"
    _answer(desk, text, run=run.id, label=label, released=count)


@click.command()
@with_desk()
@_yes
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
async def delete(desk: Desk, run_ids: tuple[str, ...], yes: bool) -> None:
    """Remove closed runs with all that is stored of them. It cannot be taken back."""
    async with desk.connect() as app:
        rows = [await desk.row(app, prefix) for prefix in run_ids]
        for row in rows:
            if row.status in LIVE or row.leased:
                text = f"run {row.id!r} is {shown(row)}; cancel it, then delete it"
                raise RunNotActiveError(text, run_id=row.id, status=shown(row))
        said = ", ".join(f"{clean(row.id)} ({shown(row)})" for row in rows)
        confirm(f"Delete {said}?", yes=yes)
        for row in rows:
            await app.run(row.key).delete()
    facts = [{"run": row.id, "key": row.key, "deleted": True} for row in rows]
    emit(facts, desk.output, "".join(f"deleted {clean(row.id)}\n" for row in rows))
