"""`treadle dead`: steps that failed for good are listed, run again, or removed with their runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from treadle.cli.desk import Desk, complete_run, confirm, with_desk
from treadle.cli.output import emit, plainly, table
from treadle.cli.reading import now
from treadle.errors import UsageError
from treadle.runtime.report import clean, cut, duration, names

if TYPE_CHECKING:
    from treadle.runtime.client import App
    from treadle.runtime.dead_letters import Letter, LetterAnswer

_ALL = 1_000_000


class _Listing(click.Group):
    """A group whose first verb is meant where none is named: `treadle dead RUN` is `treadle dead list RUN`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name the verb if it is left out."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Listing, context_settings={"help_option_names": ["-h", "--help"]})
def dead() -> None:
    """Dead letters: steps that failed for good. Without a verb they are listed."""


def _chosen(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which dead letters are meant."""
    for option in (
        click.argument("step", required=False),
        click.argument("run_id", metavar="[RUN]", required=False, shell_complete=complete_run),
        click.option("--older-than", metavar="AGE", help="Only what failed longer ago than this, such as 7d."),
        click.option("--code", default="", metavar="CODE", help="Only failures with this code."),
        click.option("--workflow", default="", metavar="NAME", help="Only those of this workflow's runs."),
    ):
        function = option(function)
    return function


async def _letters(
    desk: Desk, app: App, limit: int, run_id: str | None, step: str | None, older_than: str | None, **query: str
) -> list[Letter]:
    key = (await desk.row(app, run_id)).key if run_id is not None else ""
    found = await app.dead(limit if step is None else _ALL, run=key, older_than=older_than, **query)
    return [letter for letter in found if step in (None, letter[1].address)][:limit]


@dead.command("list")
@with_desk()
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most so many.")
@click.option("--full", is_flag=True, help="Print the whole error texts, with tracebacks.")
@_chosen
async def list_(desk: Desk, limit: int, full: bool, **query: Any) -> None:
    """List steps that failed for good, newest first; with RUN: those of that run."""
    async with desk.connect() as app:
        rows = await _letters(desk, app, limit, **query)
        wanted = [row.detail if full or desk.output != "table" else "" for _, row in rows]
        details = [
            (await app.run(run.key).account(detail)).text if detail else ""
            for (run, _), detail in zip(rows, wanted, strict=True)
        ]
    facts = [
        {**plainly(step), "detail": detail, "run": run.id, "key": run.key}
        for (run, step), detail in zip(rows, details, strict=True)
    ]
    at = now()
    cells = [
        [
            run.id,
            step.address,
            cut(f"{step.code}: {step.message}", 60),
            str(step.attempt),
            duration(max(at - step.finished_at, 0.0)),
        ]
        for run, step in rows
    ]
    text = table(("RUN", "STEP", "ERROR", "ATTEMPTS", "AGE"), cells, empty="no step has failed for good")
    if full:
        blocks = [
            f"{clean(run.id)}  {clean(step.address)}\n{_indented(d)}"
            for (run, step), d in zip(rows, details, strict=True)
        ]
        text = "\n".join(blocks) or text
    emit(facts, desk.output, text)


def _indented(text: str) -> str:
    return "".join(f"  {clean(line)}\n" for line in text.splitlines())


def _changing(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Say what is meant, and change nothing."),
        click.option("--all", "every", is_flag=True, help="All of them, if nothing else says which."),
    ):
        function = option(function)
    return _chosen(function)


async def _meant(desk: Desk, app: App, every: bool, query: dict[str, Any]) -> list[Letter]:
    if not every and not any(query.values()):
        raise UsageError("say which dead letters are meant: RUN [STEP], --workflow, --code, --older-than, or --all")
    return await _letters(desk, app, _ALL, **query)


@dead.command()
@with_desk()
@_changing
async def requeue(desk: Desk, every: bool, dry_run: bool, yes: bool, **query: Any) -> int:
    """Let dead letters run again, with what was skipped because of them."""
    async with desk.connect() as app:
        letters = await _meant(desk, app, every, query)
        if dry_run:
            return _said(desk, [_plan(letter) for letter in letters], "would be requeued")
        if len(letters) > 1:
            confirm(f"Run {len(letters)} dead letters again?", yes=yes)
        answers = await app.requeue(letters)
    return _answered(desk, answers)


@dead.command()
@with_desk()
@_changing
async def purge(desk: Desk, every: bool, dry_run: bool, yes: bool, **query: Any) -> int:
    """Delete the failed runs of dead letters with all that is stored of them. It cannot be taken back."""
    async with desk.connect() as app:
        letters = await _meant(desk, app, every, query)
        if dry_run:
            return _said(desk, [_plan(letter) for letter in letters], "would go with its run")
        runs = len({run.key for run, _ in letters})
        if runs:
            confirm(f"Delete {runs} runs with {len(letters)} dead letters?", yes=yes)
        answers = await app.purge(letters)
    return _answered(desk, answers)


def _plan(letter: Letter) -> dict[str, Any]:
    run, step = letter
    return {"run": run.id, "step": step.address, "code": step.code, "status": run.status}


def _said(desk: Desk, facts: list[dict[str, Any]], what: str) -> int:
    text = "".join(f"{clean(fact['run'])} {clean(fact['step'])} {what}\n" for fact in facts)
    emit(facts, desk.output, text or "no dead letter is meant")
    return 0


def _answered(desk: Desk, answers: list[LetterAnswer]) -> int:
    """Show what became of each; 1 if something was refused."""
    lines: list[str] = []
    for answer in answers:
        if answer.refused:
            lines.append(f"{clean(answer.run)} {clean(answer.step)} was left as it is: {clean(answer.refused)}\n")
        elif answer.deleted:
            lines.append(f"deleted {clean(answer.run)}\n")
        else:
            lines.append(f"requeued {names(answer.reopened)} of {clean(answer.run)}\n")
    emit([plainly(answer) for answer in answers], desk.output, "".join(lines) or "no dead letter is meant")
    return int(any(answer.refused for answer in answers))
