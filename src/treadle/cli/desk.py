"""What every verb stands on: the options --store and --output, the open store, and runs named by a short id."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from treadle.cli.settings import artifacts_place, payload_codec, store_url
from treadle.errors import RunNotFoundError, TreadleError, UsageError

if TYPE_CHECKING:
    from treadle.connect import Opening
    from treadle.runtime.client import App
    from treadle.runtime.run import Run
    from treadle.store.base import RunRow

# So many runs are offered by completion, and named by an error about an ambiguous id.
CANDIDATES: Final = 20

Verb = Callable[..., Coroutine[Any, Any, "int | None"]]


class Desk:
    """The store and the form of output that a verb was asked for."""

    def __init__(self, store: str | None, output: str) -> None:
        self.url = store_url(store, Path.cwd())
        self.output = output

    def connect(self, *, create: bool = False, worker: bool | Literal["cycles"] = False, **options: Any) -> Opening:
        """An application on the store. Reading verbs make no store, and no verb but two executes steps."""
        from treadle.connect import connect

        options.setdefault("artifacts", artifacts_place(Path.cwd()))
        options.setdefault("codec", payload_codec(Path.cwd()))
        return connect(self.url, create=create, worker=worker, **options)

    async def find(self, app: App, prefix: str) -> Run[Any]:
        """The run of an id, or of a prefix of one id or key.

        Raises:
            RunNotFoundError: there is none.
            UsageError: several runs start with it; the error names them.
        """
        row = await self.row(app, prefix)
        # By its key: an id may be the prefix of another.
        run = app.run(row.key)
        run.id = row.id
        return run

    async def row(self, app: App, prefix: str) -> RunRow:
        """As `find`, but the run's row."""
        rows = await app.find(prefix) if prefix else []
        if not rows:
            raise RunNotFoundError(f"there is no run {prefix!r}", run_id=prefix)
        if len(rows) > 1:
            names = ", ".join(_candidate(row, prefix) for row in rows[:CANDIDATES])
            raise UsageError(f"{prefix!r} is the beginning of several runs: {names}")
        return rows[0]


def _candidate(row: RunRow, prefix: str) -> str:
    return row.id if row.id.startswith(prefix) else f"{row.id} (key {row.key})"


def with_desk(*outputs: str) -> Callable[[Verb], Callable[..., int | None]]:
    """Give a verb a `Desk` as its first argument and run it; `outputs` are the forms it has, the default first."""
    forms = outputs or ("table", "json", "jsonl")

    def decorate(verb: Verb) -> Callable[..., int | None]:
        @click.option("--store", metavar="URL", help="The store: a URL, or the path of a SQLite file.")
        @click.option(
            "-o",
            "--output",
            type=click.Choice(sorted(forms)),
            default=forms[0],
            show_default=True,
            help="The form of the data on stdout; errors on stderr follow it.",
        )
        @functools.wraps(verb)
        def run_verb(store: str | None, output: str, **options: Any) -> int | None:
            return asyncio.run(verb(Desk(store, output), **options))

        return run_verb

    return decorate


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Ids of runs that start with what was typed, for the shell. Silent: a shell shows no errors."""
    from click.shell_completion import CompletionItem

    async def ids() -> list[RunRow]:
        async with Desk(ctx.params.get("store"), "table").connect() as app:
            return await app.runs(id_prefix=incomplete, limit=CANDIDATES)

    try:
        return [CompletionItem(row.id, help=f"{row.status} {row.workflow}") for row in asyncio.run(ids())]
    except (TreadleError, OSError):
        return []


def run_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """The argument RUN, completed from the store."""
    return click.argument("run_id", metavar="RUN", shell_complete=complete_run)(function)


def confirm(question: str, *, yes: bool, refuse: bool = True) -> None:
    """Ask before what cannot be taken back. Without a terminal nobody can be asked.

    Raises:
        UsageError: nobody can be asked, and `refuse` says that this must not go on then.
        click.Abort: the answer was no.
    """
    if yes:
        return
    if sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)
    elif refuse:
        raise UsageError("there is no terminal to ask on; confirm by --yes")


def pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    """`key=value` options as a dict.

    Raises:
        UsageError: one has no `=`, or no key.
    """
    found: dict[str, str] = {}
    for text in values:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise UsageError(f"{option} takes key=value, not {text!r}")
        found[key] = value
    return found
