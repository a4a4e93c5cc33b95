"""How a run is watched: a live tree on a terminal, plain lines elsewhere. Both are talk, so both go to stderr."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, Protocol

from treadle.cli.output import colourful, say
from treadle.runtime.inspection import Snapshot
from treadle.runtime.output import OUTPUT
from treadle.runtime.report import (
    GLYPHS,
    annotations_of,
    clean,
    counts_line,
    cut,
    decision_line,
    duration,
    facts_of,
    failure_line,
    header,
    more_line,
    title_of,
)
from treadle.runtime.scopes import ScopeView
from treadle.runtime.trees import More, Row, listed_steps, tree_rows

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from treadle.runtime.run import Run

# Seconds between two looks at the run: on a terminal, and for plain lines.
LIVE_SECONDS: Final = 0.2
PLAIN_SECONDS: Final = 1.0
# Watching may take this part of a processor: reading a run costs time in proportion to its length.
SHARE: Final = 0.05
# Without news, running times are still to grow.
REFRESH_SECONDS: Final = 1.0

_STYLES: Final[dict[str, str]] = {
    "succeeded": "green",
    "failed": "bold red",
    "skipped": "bright_black",
    "cancelled": "magenta",
    "running": "bold cyan",
    "retrying": "yellow",
}
_BUSY: Final = ("running", "retrying", "failed", "open")


class View(Protocol):
    """Something that shows snapshots."""

    seconds: float

    def update(self, snapshot: Snapshot) -> None:
        """Show the run as it is now."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class LineView(View, Protocol):
    """A view that shows lines of steps too."""

    def line(self, step: str, text: str) -> None:
        """Show a line that a step wrote. May be called from any thread."""
        ...


def view_for(*, quiet: bool = False) -> LineView:
    """The live tree if stderr is a terminal that can, else plain lines."""
    if quiet:
        return QuietView()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return LiveView()
    return PlainView()


class QuietView:
    """Shows nothing."""

    seconds = PLAIN_SECONDS

    def update(self, snapshot: Snapshot) -> None:
        """Show nothing."""

    def line(self, step: str, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainView:
    """A line with the counts when they change, one for each step that failed or is tried again, and each decision."""

    seconds = PLAIN_SECONDS

    def __init__(self) -> None:
        self._said = ""
        self._told: set[tuple[str, int, str]] = set()
        self._decided = 0

    def update(self, snapshot: Snapshot) -> None:
        """Say what is new."""
        for step in snapshot.steps:
            if step.shown in ("failed", "retrying"):
                mark = (step.address, step.attempt, step.shown)
                if mark not in self._told:
                    self._told.add(mark)
                    say(f"{GLYPHS[step.shown]} {clean(step.address)}  {step.shown}  {'  '.join(annotations_of(step))}")
        for failure in snapshot.failures:
            # Attempts are told above.
            mark = (failure.address, 0, "failed")
            if failure.attempt == 0 and mark not in self._told:
                self._told.add(mark)
                why = failure_line(failure.code, failure.message, 0)
                say(f"{GLYPHS['failed']} {clean(failure.address)}  failed  {why}")
        for decision in snapshot.decisions[self._decided :]:
            say(decision_line(decision))
        self._decided = len(snapshot.decisions)
        line = f"[{snapshot.status}] {counts_line(snapshot)}"
        if line != self._said:
            self._said = line
            say(line)

    def line(self, step: str, text: str) -> None:
        """Say it, with the step in front."""
        say(f"{clean(step)} | {clean(text)}")

    def close(self) -> None:
        """Do nothing."""


class LiveView:
    """A tree of steps that is drawn again in place; as tall as the terminal allows, what is busy first."""

    seconds = LIVE_SECONDS

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, no_color=not colourful(sys.stderr), highlight=False, markup=False)
        self._live: Live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def update(self, snapshot: Snapshot) -> None:
        """Draw the run."""
        self._live.update(self._draw(snapshot), refresh=True)

    def line(self, step: str, text: str) -> None:
        """Print it above the picture, with the step in front."""
        self._console.print(f"{clean(step)} | {clean(text)}", soft_wrap=True)

    def close(self) -> None:
        """Leave the last picture standing."""
        self._live.stop()

    def _draw(self, snapshot: Snapshot) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        size = self._console.size
        lines: list[Any] = [
            Text(cut(header(snapshot), size.width - 1), style="bold"),
            Text(cut(counts_line(snapshot), size.width - 1)),
        ]
        rows = fitting(tree_rows(snapshot), max(size.height - 5, 3))
        lines += [Text(cut(row_text(row), size.width - 1), style=_STYLES.get(status_of(row), "")) for row in rows]
        left_out = len(snapshot.steps) - sum(1 for _ in listed_steps(rows))
        if left_out > 0:
            lines.append(Text(f"  … {left_out} more steps", style="bright_black"))
        return Group(*lines)


def status_of(row: Row) -> str:
    """The shown status of what a row is about; empty for what is left out."""
    match row.item:
        case More():
            return ""
        case ScopeView() as scope:
            return scope.status
        case step:
            return step.shown


def row_text(row: Row) -> str:
    """One row of the tree."""
    pad = "  " * (row.depth + 1)
    match row.item:
        case More():
            return pad + more_line(row.item)
        case ScopeView() as scope:
            return "  ".join([f"{pad}{GLYPHS.get(scope.status, '?')} {title_of(scope)}", *facts_of(scope)])
        case step:
            parts = [f"{pad}{GLYPHS.get(step.shown, '?')} {clean(step.address)}"]
            if step.exec_seconds is not None:
                parts.append(duration(step.exec_seconds))
            return "  ".join([*parts, *annotations_of(step)])


def fitting(rows: list[Row], height: int) -> list[Row]:
    """At most `height` rows: all of a small tree; of a large one what is busy, then what ended last, then the next."""
    if len(rows) <= height:
        return rows

    def rank(place: int) -> tuple[int, float]:
        item = rows[place].item
        if status_of(rows[place]) in _BUSY:
            return 0, float(place)
        if isinstance(item, More) or item.finished_at is None:
            return 2, float(place)
        return 1, -item.finished_at

    chosen = sorted(sorted(range(len(rows)), key=rank)[:height])
    # The lines around may be missing, so that depths would mislead; addresses say where a line belongs.
    return [Row(0, rows[place].item) for place in chosen]


class _LineHandler(logging.Handler):
    """Passes the lines that steps of one run write on to a view."""

    def __init__(self, run_id: str, view: LineView) -> None:
        super().__init__()
        self._run_id = run_id
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line of the run."""
        facts = vars(record)
        if facts.get("run_id") == self._run_id:
            self._view.line(str(facts["step"]), record.getMessage())


@contextlib.contextmanager
def lines_shown(run_id: str, view: LineView) -> Generator[None]:
    """Show what steps of a run that this process executes write to `context().out`."""
    former = OUTPUT.level
    handler = _LineHandler(run_id, view)
    OUTPUT.addHandler(handler)
    OUTPUT.setLevel(logging.INFO)
    try:
        yield
    finally:
        OUTPUT.removeHandler(handler)
        OUTPUT.setLevel(former)


async def follow(run: Run[Any], view: View) -> None:
    """Show the run whenever it changes, for ever; the caller cancels. The last picture is the caller's."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    async def listen() -> None:
        async for _ in run.changes():
            changed.set()

    listener = asyncio.create_task(listen())
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS):
                    await changed.wait()
            changed.clear()
            if listener.done():
                # It ends by an error only: the run is gone, or the store.
                listener.result()
            before = loop.time()
            view.update(await run.inspect())
            await asyncio.sleep(max(view.seconds, (loop.time() - before) / SHARE))
    finally:
        listener.cancel()
