"""Verbs about projections: query one, and make its tables anew from what the runs have recorded."""

from __future__ import annotations

from typing import Any

import click

from treadle.authoring.projections import Projection
from treadle.cli.desk import Desk, confirm, with_desk
from treadle.cli.output import emit, table
from treadle.cli.targets import load_module, split_target
from treadle.errors import UsageError


def load_projection(target: str) -> Projection:
    """The projection that `module:name` or `file.py:name` names.

    Raises:
        UsageError: it names none.
    """
    where, name = split_target(target)
    found: Any = load_module(where)
    for part in name.split(".") if name else ():
        found = getattr(found, part, None)
    if not isinstance(found, Projection):
        raise UsageError(f"{target!r} names no projection; write file.py:name or module:name")
    return found


@click.group()
def projection() -> None:
    """Read models of what runs have recorded."""


@projection.command("query")
@with_desk()
@click.argument("target", metavar="TARGET")
@click.argument("sql", metavar="SQL")
async def query_projection(desk: Desk, target: str, sql: str) -> None:
    """Print the rows of an SQL statement on the projection TARGET, such as file.py:pages."""
    found = load_projection(target)
    async with desk.connect(projections=[found]) as app:
        handle = app.projection(found.name)
        await handle.caught_up()
        rows = await handle.query(sql)
    names = tuple(rows[0]) if rows else ()
    cells = [[str(value) for value in row.values()] for row in rows]
    emit(rows, desk.output, table(names, cells, empty="no rows"))


@projection.command("rebuild")
@with_desk()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("target", metavar="TARGET")
async def rebuild_projection(desk: Desk, target: str, yes: bool) -> None:
    """Make the tables of the projection TARGET anew, from the journals of the runs that are there."""
    found = load_projection(target)
    confirm(f"make the tables of {found.name} anew? What came of deleted runs, or of statements, is lost", yes=yes)
    async with desk.connect(projections=[found], rebuild=True) as app:
        await app.projection(found.name).caught_up()
    emit({"projection": found.name, "rebuilt": True}, desk.output, f"{found.name} is rebuilt\n")
