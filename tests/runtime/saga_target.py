"""The program that the kill tests of sagas start again and again: phases, a gather and a call are done, and unwound."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from treadle import (
    Cell,
    Compensation,
    LanePlan,
    Patch,
    Phase,
    Phases,
    Retry,
    Rule,
    case,
    choose,
    connect,
    gather,
    holds,
    step,
    workflow,
)


def note(what: str) -> None:
    """Append one line to the log, atomically."""
    descriptor = os.open(os.environ["KILL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{what}\n".encode())
    finally:
        os.close(descriptor)


def look(name: str) -> str | None:
    """What is there before the step."""
    note(f"prepare {name}")
    file = Path(os.environ["KILL_FOLDER"], name)
    return file.read_text() if file.exists() else None


def put_back(name: str, state: str | None) -> None:
    """Make it so again."""
    note(f"undo {name}")
    file = Path(os.environ["KILL_FOLDER"], name)
    if state is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(state)


@step(name="saga-kill:write", prepare=look, undo=put_back, lost_limit=1000)
def write(name: str) -> str:
    """Change a file, in two moves that a kill may fall between."""
    note(f"write {name}")
    file = Path(os.environ["KILL_FOLDER"], name)
    before = file.read_text() if file.exists() else ""
    file.write_text("half")
    file.write_text(before + "x")
    return name


@step(name="saga-kill:open", lost_limit=1000)
def open_account(cell: Cell) -> Patch[str]:
    """Something that only the phase as a whole takes back."""
    name = f"{cell.state['owner']}-{cell.step}"
    note(f"open {name}")
    Path(os.environ["KILL_FOLDER"], name).write_text("open")
    return Patch(name, {"rounds": cell.state["rounds"] - 1})


@step(name="saga-kill:close", lost_limit=1000)
def close_account(of: Compensation) -> None:
    """Take it back: the very one that the row has opened."""
    note(f"close {of.lanes['bank']}")
    Path(os.environ["KILL_FOLDER"], of.lanes["bank"]).unlink(missing_ok=True)


@step(name="saga-kill:settle", lost_limit=1000)
def settle(of: Compensation) -> None:
    """Follows in another lane of the same phase."""
    note(f"settle {of.lanes['bank']}")


accounts = Phases(
    Phase("account", {"bank": open_account}, policy="again", compensate="closing"),
    policies={"again": [Rule.repeat(when="state.rounds > 0"), Rule.stop()]},
    compensations=[Phase("closing", {"bank": close_account, "books": settle})],
    state={"owner": "", "rounds": 0},
    id="accounts",
)


@step(name="saga-kill:second", lost_limit=1000)
def second_time(name: str, after: str | None) -> None:
    """Fails the first time, so that its row is undone before it is tried again."""
    note(f"second {name}")
    if Path(os.environ["KILL_LOG"]).read_text().count(f"second {name}\n") == 1:
        raise RuntimeError("not yet")


def rows(name: str) -> Any:
    """A row that is unwound before it is tried again, with a gather and a branch in it."""

    def lane() -> Any:
        many = gather([f"{name}-x", f"{name}-y"], write, id="many")
        way = case(holds("len(many) == 2", many=many), lambda: write.options(id="chosen").bind(f"{name}-way"), id="way")
        return second_time.options(id="gate").bind(name, choose(way, id="pick"))

    return Phases(
        Phase("twice", {"files": LanePlan(lane), "own": write_cell}, retry=Retry(attempts=2)),
        state={"name": name},
        id=f"{name}-rows",
    ).bind()


def look_at_cell(cell: Cell) -> str | None:
    """As `look`, for a cell."""
    return look(f"{cell.state['name']}-cell")


def put_back_cell(cell: Cell, state: str | None) -> None:
    """As `put_back`."""
    put_back(f"{cell.state['name']}-cell", state)


@step(name="saga-kill:cell", prepare=look_at_cell, undo=put_back_cell, lost_limit=1000)
def write_cell(cell: Cell) -> None:
    """Change a file of the row's own."""
    name = f"{cell.state['name']}-cell"
    note(f"write {name}")
    Path(os.environ["KILL_FOLDER"], name).write_text("x")


@step(name="saga-kill:fail", lost_limit=1000)
def fail() -> None:
    """The end of every run."""
    raise RuntimeError("the end")


@workflow(name="saga-kill:branch")
def subsidiary(owner: str, rounds: int) -> Any:
    """A run below, with a saga of its own."""
    first = write.options(id="first", after=rows(owner)).bind(f"{owner}-ledger")
    return accounts.bind(owner=owner, rounds=rounds, after=first)


@workflow(name="saga-kill:main", on_failure="unwind")
def company(rounds: int) -> Any:
    """All that can be undone, and an end that fails."""
    written = gather([f"item-{number % 3}" for number in range(rounds)], write, id="items", limit=1)
    opened = accounts.bind(owner="main", rounds=rounds, after=[written, rows("main")])
    below = [subsidiary.options(id=f"sub{n}", after=opened).bind(f"sub{n}", rounds) for n in range(2)]
    return fail.options(after=below).bind()


async def main(url: str, rounds: int) -> None:
    """Start (or attach to) the run, and execute until it has its outcome."""
    async with connect(url, slots=8, threads=4, lease=float(os.environ.get("KILL_LEASE", "15"))) as app:
        run = await app.start(company, rounds, id="victim")
        row = await run.wait()
        print(row.status, row.unwound)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
