"""Verbs that read: runs, show, result, why, breakpoints. They make no store and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from treadle.cli.analysing import run_critical_path
from treadle.cli.complaints import NotFinishedError
from treadle.cli.desk import Desk, pairs, run_argument, with_desk
from treadle.cli.output import emit, paint, plainly, say, table, write, write_value
from treadle.core.tables import LIVE
from treadle.errors import MissingKeyError, StepNotFoundError, UsageError
from treadle.runtime.coding import HIDDEN
from treadle.runtime.failures import Account
from treadle.runtime.inspection import UNWOUND
from treadle.runtime.report import clean, cut, duration, names, preview, render_report, render_tree, scope_text

if TYPE_CHECKING:
    from treadle.runtime.client import App
    from treadle.runtime.inspection import StepView
    from treadle.runtime.run import Run
    from treadle.runtime.why import Reason
    from treadle.store.base import RunRow

STATUSES = ("running", "paused", "unwinding", "succeeded", "failed", "cancelled")


def now() -> float:
    """The time that ages are counted from."""
    from treadle.runtime.clock import SystemClock

    return SystemClock().now()


def shown(row: RunRow) -> str:
    """A listed run's status as people see it."""
    from treadle.runtime.inspection import shown_status

    return shown_status(row.status, hold=bool(row.hold), cancelling=False, leased=row.leased)


def run_facts(row: RunRow) -> dict[str, Any]:
    """A listed run as data, with the shown status."""
    facts: dict[str, Any] = plainly(row)
    return {**facts, "status": shown(row)}


@click.command()
@with_desk()
@click.option("--status", type=click.Choice(STATUSES), help="Only runs with this status.")
@click.option("--workflow", default="", metavar="NAME", help="Only runs of this workflow.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only runs with this label; may be repeated.")
@click.option("--meta", "metadata", multiple=True, metavar="K=V", help="Only runs with this metadata.")
@click.option("--package", default="", metavar="NAME", help="Only runs of this package's entrypoints.")
@click.option("--search", "text", default="", metavar="TEXT", help="Only runs with this in id, name or metadata.")
@click.option("--id-prefix", default="", metavar="TEXT", help="Only runs whose id starts with this.")
@click.option("--parent", default="", metavar="RUN", help="Only runs that steps of this run have called.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most so many.")
@click.option("--after", default="", metavar="KEY", help="Go on after the run with this key.")
async def runs(
    desk: Desk,
    status: str | None,
    labels: tuple[str, ...],
    metadata: tuple[str, ...],
    parent: str,
    limit: int,
    **given: str,
) -> None:
    """List runs, newest first. All that is asked for must hold."""
    query: dict[str, Any] = {**given, "labels": pairs(labels, "--label"), "metadata": pairs(metadata, "--meta")}
    async with desk.connect() as app:
        if parent:
            query["parent"] = await (await desk.find(app, parent)).key()
        rows = await _listed(app, status or "", limit, query)
    at = now()
    cells = [
        [
            row.id,
            f"{shown(row)}, {UNWOUND[row.unwound]}" if row.unwound else shown(row),
            f"{row.workflow}  {cut(row.name, 40)}" if row.name else row.workflow,
            str(row.leased or ""),
            duration(max(at - row.created_at, 0.0)),
            " ".join(f"{key}={value}" for key, value in row.labels.items()),
        ]
        for row in rows
    ]
    text = table(("ID", "STATUS", "WORKFLOW", "RUNNING", "AGE", "LABELS"), cells, status=1, empty="no runs")
    emit([run_facts(row) for row in rows], desk.output, text)
    if len(rows) == limit and desk.output == "table":
        say(f"there may be more: --limit, or --after {rows[-1].key}")


async def _listed(app: App, status: str, limit: int, query: dict[str, Any]) -> list[RunRow]:
    """A page of runs. A hold is a fence and no status: held runs are looked for among those without outcome."""
    if status not in ("paused", *LIVE):
        return await app.runs(status=status, limit=limit, **query)
    found: list[RunRow] = []
    for stored in sorted(LIVE) if status == "paused" else (status,):
        found += await _held(app, stored, limit, query, held=status == "paused")
    return sorted(found, key=lambda row: row.key, reverse=True)[:limit]


async def _held(app: App, status: str, limit: int, query: dict[str, Any], *, held: bool) -> list[RunRow]:
    """Up to `limit` runs with a stored status that are held, or are not."""
    found: list[RunRow] = []
    while len(found) < limit:
        page = await app.runs(status=status, limit=max(limit, 1000), **query)
        found += [row for row in page if bool(row.hold) == held]
        if len(page) < max(limit, 1000):
            break
        query = {**query, "after": page[-1].key}
    return found[:limit]


@click.command()
@with_desk()
@click.option("--tree", is_flag=True, help="Only the tree of steps.")
@click.option("--critical-path", is_flag=True, help="Instead: the chain of steps that took longest, and a forecast.")
@click.option("--all", "whole", is_flag=True, help="All iterations and rows, not only those that matter most.")
@run_argument
@click.argument("step", required=False)
async def show(desk: Desk, run_id: str, step: str | None, tree: bool, critical_path: bool, whole: bool) -> None:
    """Show a run: status, steps, times, what is blocked and by what. With STEP: that step, with its full error.

    STEP may also be the address of a group, a block, or one of its rows, iterations and branches.
    """
    if critical_path and (step or tree):
        raise UsageError("--critical-path is about the whole run; leave STEP and --tree out")
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        snapshot = await run.inspect()
        if critical_path:
            document, text = run_critical_path(snapshot, await run.analysis())
            emit(document, desk.output, text)
            return
        if step is None:
            emit(snapshot, desk.output, (render_tree if tree else render_report)(snapshot, whole=whole))
            return
        view = snapshot.step(step)
        scope = snapshot.scope(step)
        if view is None and scope is not None:
            emit(scope, desk.output, scope_text(snapshot, scope, whole=whole))
            return
        if view is None:
            raise StepNotFoundError(f"run {run.id!r} has no step {step!r}", run_id=run.id)
        account = await account_of_step(run, view)
    facts = {**plainly(view), "detail": account.text, "details": account.details, "chain": account.causes}
    emit(facts, desk.output, step_text(view, account.text))


async def account_of_step(run: Run[Any], view: StepView) -> Account:
    """The whole account of a step's failure, with its traceback where one was kept."""
    if view.failure is None or not view.failure.detail:
        return Account("")
    try:
        return await run.account(view.failure.detail)
    except MissingKeyError as error:
        return Account(f"{HIDDEN}: {error}")


def step_text(view: StepView, detail: str) -> str:
    """A step as a page of text."""
    times = (
        f"queue {duration(view.queue_seconds)}",
        f"exec {duration(view.exec_seconds)}",
        f"worker {view.worker or '—'}",
    )
    lines = [
        f"Step {clean(view.address)}  [{paint(view.shown, view.shown.upper())}]  attempt {view.attempt}"
        f"  generation {view.generation}",
        f"action {clean(view.action)}  queue {clean(view.queue)}",
        "  ".join(times),
    ]
    facts = (
        ("calls", view.child),
        ("probes", str(view.probes or "")),
        ("progress", view.progress),
        ("needs", names(view.needs)),
        ("waits for", names(view.waiting_on)),
        ("held after", names(view.held_by)),
        ("signals missing", names(view.missing_signals)),
        ("breakpoint", view.breakpoint),
        ("skipped", f"{view.skip_reason} {names(view.skip_causes)}".strip()),
        ("placed", view.placement),
        ("added by", view.added_by),
        ("in", view.scope),
        ("detached", "nobody waits for it" if view.detached else ""),
        ("result", preview(view.result, 400)),
        ("lost attempts", str(view.lost or "")),
    )
    lines += [f"{name}: {clean(text)}" for name, text in facts if text]
    lines += [f"annotation {clean(name)}: {clean(text)}" for name, text in view.annotations.items()]
    if view.failure is not None:
        lines += ["", f"{clean(view.failure.code)}: {clean(view.failure.message)}"]
    lines += [clean(line) for line in detail.splitlines()]
    return "\n".join(lines) + "\n"


@click.command()
@with_desk("json", "jsonl")
@click.option("--wait", is_flag=True, help="Wait until there is a result.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Wait at most so long (implies --wait).")
@run_argument
@click.argument("step", required=False)
async def result(desk: Desk, run_id: str, step: str | None, wait: bool, timeout: float | None) -> None:
    """Print the result of a run, or of one STEP, as JSON. A failure is an error with its exit code."""
    from treadle.authoring import codec

    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        if not wait and timeout is None:
            await _refuse_unfinished(run, step)
        try:
            value = await (run.result(timeout) if step is None else run.step(step, timeout=timeout))
        except TimeoutError:
            what = f"step {step!r} of run {run.id!r}" if step else f"run {run.id!r}"
            raise NotFinishedError(f"{what} has no result after {timeout:g} s", run_id=run.id) from None
    write_value(codec.encode(value))


async def _refuse_unfinished(run: Run[Any], step: str | None) -> None:
    """Raise if there is no outcome yet."""
    if step is None:
        row = await run.row()
        if row.status in LIVE:
            raise NotFinishedError(f"run {run.id!r} is {shown(row)}; it has no result yet", run_id=run.id)
        return
    snapshot = await run.inspect()
    view = snapshot.step(step) or snapshot.scope(step)
    if view is None:
        raise StepNotFoundError(f"run {run.id!r} has no step {step!r}", run_id=run.id)
    if view.finished_at is None and snapshot.finished_at is None:
        status = getattr(view, "shown", view.status)
        text = f"step {step!r} of run {run.id!r} is {status}; it has no result yet"
        raise NotFinishedError(text, run_id=run.id)


@click.command()
@with_desk()
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="Print at most so many lines.")
@run_argument
@click.argument("step", required=False)
async def why(desk: Desk, run_id: str, step: str | None, limit: int) -> None:
    """Say why a run, or one STEP, is not going on: each fence and each lack of capacity, by name; and its past."""
    async with desk.connect() as app:
        run = await desk.find(app, run_id)
        reasons = await run.why(step)
    if desk.output != "table":
        emit(reasons, desk.output, "")
        return
    if not reasons:
        write("nothing holds the run\n")
    write("".join(_reason_line(reason) for reason in reasons[:limit]))
    if len(reasons) > limit:
        say(f"and {len(reasons) - limit} more; --limit, or ask for one step")


def _reason_line(reason: Reason) -> str:
    where = f"{clean(reason.step)}  " if reason.step and reason.tense == "now" else ""
    when = ""
    if reason.at is not None:
        when = f"  ({duration(max(now() - reason.at, 0.0))} ago)"
    mark = "was " if reason.tense == "past" else ""
    return f"{mark}{reason.code:<14}  {where}{clean(reason.message)}{when}\n"


@click.command()
@with_desk()
@run_argument
async def breakpoints(desk: Desk, run_id: str) -> None:
    """List the declared breakpoints of a run, which of them are armed, and what stands at them."""
    async with desk.connect() as app:
        snapshot = await (await desk.find(app, run_id)).inspect()
    rows = [
        [
            view.address,
            view.position,
            ",".join(view.labels),
            "yes" if view.armed else "no",
            view.state or "—",
            duration(max(snapshot.now - view.since, 0.0)) if view.since is not None else "—",
            names(view.holding),
        ]
        for view in snapshot.breakpoints
    ]
    headers = ("STEP", "POSITION", "LABELS", "ARMED", "STATE", "SINCE", "HOLDING")
    emit(snapshot.breakpoints, desk.output, table(headers, rows, empty="no breakpoints declared"))
