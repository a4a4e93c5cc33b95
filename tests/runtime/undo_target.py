"""The program that the kill tests of undo start again and again: a run that changes files, fails, and is unwound."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from treadle import PlanBuilder, Planned, connect, step


def note(what: str) -> None:
    """Append one line to the log, atomically."""
    descriptor = os.open(os.environ["KILL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{what}\n".encode())
    finally:
        os.close(descriptor)


def look(path: str) -> str | None:
    """What is there before the step."""
    note(f"prepare {path}")
    file = Path(path)
    return file.read_text() if file.exists() else None


def put_back(path: str, state: str | None) -> None:
    """Make it so again."""
    note(f"undo {path}")
    if state is None:
        Path(path).unlink(missing_ok=True)
    else:
        Path(path).write_text(state)


@step(name="undo-kill:write", prepare=look, undo=put_back, lost_limit=1000)
def write(path: str, text: str) -> None:
    """Change a file, in two moves that a kill may fall between."""
    note(f"write {path}")
    file = Path(path)
    before = file.read_text() if file.exists() else ""
    file.write_text("half")
    file.write_text(before + text)


@step(name="undo-kill:fail")
def fail() -> None:
    """The end of every run."""
    raise RuntimeError("the end")


def plan(folder: str, lanes: int, length: int) -> Planned:
    """Lanes of steps that change the same files one after the other, and a step that fails."""
    builder = PlanBuilder("undo-kill", on_failure="unwind")
    ends: list[str] = []
    for lane in range(lanes):
        for place in range(length):
            before = [f"l{lane}s{place - 1}"] if place else []
            # Every second step of a lane changes the file of the one before.
            builder.step(f"l{lane}s{place}", write, f"{folder}/f{lane}-{place // 2}", f"<{place}>", after=before)
        ends.append(f"l{lane}s{length - 1}")
    builder.step("end", fail, after=ends)
    return builder.build()


async def main(url: str, folder: str, lanes: int, length: int) -> None:
    """Start (or attach to) the run, and execute until it has its outcome."""
    async with connect(url, slots=8, threads=4, lease=float(os.environ.get("KILL_LEASE", "15"))) as app:
        run = await app.start(plan(folder, lanes, length), id="victim")
        row = await run.wait()
        print(row.status, row.unwound)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
