"""Runs as HTML, for notebooks. Everything that a program or a person put into a run is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.runtime.inspection import Snapshot

# A run of more steps is cut: a page is for reading.
SHOWN = 200
_COLOURS = {"succeeded": "green", "failed": "crimson", "cancelled": "grey", "skipped": "grey", "running": "royalblue"}


def coloured(status: str) -> str:
    """A status in its colour; the word itself says it too."""
    return f'<span style="color:{_COLOURS.get(status, "inherit")}">{escape(status)}</span>'


def snapshot_html(snapshot: Snapshot) -> str:
    """A run as a heading, its failures, and a table of its steps."""
    title = f"{escape(snapshot.name)} " if snapshot.name else ""
    facts = [f"<b>run {title}{escape(snapshot.id)}</b> of {escape(snapshot.workflow)}: {coloured(snapshot.status)}"]
    pairs = {**snapshot.labels, **snapshot.metadata}
    if pairs:
        facts.append(escape(", ".join(f"{key}={value}" for key, value in pairs.items())))
    facts += [
        f"{escape(failure.address)}: {escape(failure.code)}: {escape(failure.message)}" for failure in snapshot.failures
    ]
    rows = [
        f"<tr><td>{escape(step.address)}</td><td>{coloured(step.shown)}</td><td>{step.attempt or ''}</td>"
        f"<td>{escape(step.progress.removeprefix('='))}</td></tr>"
        for step in snapshot.steps[:SHOWN]
    ]
    if len(snapshot.steps) > SHOWN:
        rows.append(f"<tr><td colspan=4>… {len(snapshot.steps) - SHOWN} more</td></tr>")
    head = "<tr><th>step</th><th>status</th><th>attempt</th><th>progress</th></tr>"
    return f"{'<br>'.join(facts)}<table>{head}{''.join(rows)}</table>"
