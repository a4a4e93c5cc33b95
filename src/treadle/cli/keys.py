"""`treadle keys`: keys that payloads are encrypted with. To see which are in use takes none of them."""

from __future__ import annotations

import click

from treadle.cli.desk import Desk, with_desk
from treadle.cli.output import emit, table, write


@click.group()
def keys() -> None:
    """Keys that payloads are encrypted with."""


@keys.command()
@click.argument("key_id", metavar="ID")
def new(key_id: str) -> None:
    """Print a line with a new key, for a file of keys: its first line encrypts, all of them decrypt."""
    from treadle.runtime.encryption import new_key

    write(new_key(key_id) + "\n")


@keys.command()
@with_desk()
async def used(desk: Desk) -> None:
    """List the keys that runs of the store need. Reads every journal, and takes no key."""
    async with desk.connect() as app:
        found = await app.keys()
    own = app.key_ids
    facts = [{"key": key_id, "runs": runs, "here": key_id in own} for key_id, runs in found.items()]
    facts += [{"key": key_id, "runs": 0, "here": True} for key_id in own if key_id not in found]
    cells = [[str(fact["key"]), str(fact["runs"]), "yes" if fact["here"] else "no"] for fact in facts]
    emit(facts, desk.output, table(("KEY", "RUNS", "HERE"), cells, empty="no run needs a key"))
