"""Text reports of a snapshot: they render what they are given and read nothing themselves.

The text is for people: its layout may change between releases, the snapshot's fields are the interface.
Everything that a user's program put into a run (ids, messages, labels) is shown with its control characters
escaped, so that no text can move the reader's cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from treadle.core.events import Arg, ArgList, ArgMap, Handle, Pick
from treadle.core.tables import CANCELLED, DISPATCHED, FAILED, READY, RUNNING, SKIPPED, SUCCEEDED, WAITING
from treadle.runtime.inspection import RETRYING, Blocked, BreakpointView, SignalView, Snapshot, StepView

GLYPHS: Final[dict[str, str]] = {
    SUCCEEDED: "✓",
    FAILED: "✗",
    SKIPPED: "⊘",
    CANCELLED: "■",
    RUNNING: "▶",
    RETRYING: "↻",
    DISPATCHED: "⋯",
    READY: "○",
    WAITING: "·",
}
UNKNOWN: Final = "—"

# So many names are shown in one row; the snapshot has all.
NAMES = 5
PREVIEW = 60


def clean(text: str) -> str:
    """The text on one line, with control characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, length: int) -> str:
    """The text in at most `length` characters."""
    return text if len(text) <= length else text[: max(length - 1, 0)] + "…"


def duration(seconds: float | None) -> str:
    """A duration as people say it: µs and ms with one decimal, seconds with two, longer ones in whole units."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return _short(seconds)
    whole = int(seconds)
    units = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    parts: list[str] = []
    for size, unit in units:
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return "".join(parts[:3])


def _short(seconds: float) -> str:
    if seconds <= 0:
        return "0s"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f}µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f}ms"
    return f"{seconds:.2f}s"


def preview(handle: Handle, length: int = PREVIEW) -> str:
    """A handle as people read it: a small value as its JSON text, a larger one by its digest."""
    if handle.startswith("="):
        return cut(clean(handle[1:]), length)
    return f"<stored: {cut(clean(handle[1:]), 24)}>" if handle else ""


def preview_arg(arg: Arg, length: int = PREVIEW) -> str:
    """An argument's template with its handles previewed."""
    match arg:
        case str():
            return preview(arg, length)
        case Pick(value=value, path=path):
            return cut(preview(value, length) + "".join(f"[{part!r}]" for part in path), length)
        case ArgList(items=items):
            return cut("[" + ", ".join(preview_arg(item, length) for item in items) + "]", length)
        case ArgMap(items=fields):
            inner = ", ".join(f"{clean(name)}: {preview_arg(item, length)}" for name, item in fields.items())
            return cut("{" + inner + "}", length)


def names(items: Sequence[str], limit: int = NAMES) -> str:
    """Names in one row, with the number of those left out."""
    shown = ", ".join(clean(item) for item in items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def header(snapshot: Snapshot) -> str:
    """The line that names the run: status, age, total time, and what it stands at."""
    stands = sum(1 for view in snapshot.breakpoints if view.state == "blocked")
    waits = sum(1 for step in snapshot.steps if step.missing_signals)
    parts = [
        f"Run {clean(snapshot.id)}",
        f"[{snapshot.status.upper()}]",
        f"workflow {clean(snapshot.workflow)}",
        f"created {duration(max(snapshot.now - snapshot.created_at, 0.0))} ago",
    ]
    if snapshot.paused_at is not None:
        parts.append(f"paused {duration(max(snapshot.now - snapshot.paused_at, 0.0))} ago")
    if snapshot.total_seconds is not None:
        parts.append(f"total {duration(snapshot.total_seconds)}")
    if stands:
        parts.append(f"⦿ {stands} at a breakpoint")
    if waits:
        parts.append(f"⚑ {waits} waiting for a signal")
    return "  ".join(parts)


def counts_line(snapshot: Snapshot) -> str:
    """The numbers of steps by shown status, those that are not zero."""
    said = [f"{count} {status}" for status, count in snapshot.counts.items() if count]
    return f"{len(snapshot.steps)} steps" + (": " + " · ".join(said) if said else "")


def annotations_of(step: StepView) -> list[str]:
    """What is worth saying of a step beside its times."""
    said = ["optional"] if step.optional else []
    numbers = (("attempts", step.attempt, 1), ("generation", step.generation, 1), ("lost", step.lost, 0))
    said += [f"{name}={number}" for name, number, usual in numbers if number > usual]
    if step.worker and step.shown == RUNNING:
        said.append(f"worker={clean(step.worker)}")
    if step.child:
        said.append(f"calls {clean(step.child)}")
    if step.probes:
        said.append(f"probes={step.probes}")
    if step.progress:
        said.append(f"progress={cut(clean(step.progress), PREVIEW)}")
    if step.placement:
        said.append(f"placed {clean(step.placement)}")
    said += [f"{clean(name)}={cut(clean(value), PREVIEW)}" for name, value in step.annotations.items()]
    return [*said, *_marks(step)]


def _marks(step: StepView) -> list[str]:
    """Why the step failed, was skipped or stands."""
    said: list[str] = []
    if step.failure is not None:
        said.append(cut(clean(f"{step.failure.code}: {step.failure.message}"), 2 * PREVIEW))
    if step.skip_reason:
        causes = [name for name in step.skip_causes if name != step.address]
        said.append(f"({step.skip_reason})" + (f" because of {names(causes)}" if causes else ""))
    if step.breakpoint:
        said.append(f"⦿ {step.breakpoint}")
    if step.missing_signals:
        said.append(f"⚑ {names(step.missing_signals)}")
    return said


def render_report(snapshot: Snapshot) -> str:
    """The run as a page of text: header, counts, labels, one row a step, what is blocked, breakpoints, signals."""
    lines = [header(snapshot), counts_line(snapshot)]
    if snapshot.parent:
        key, _, at = snapshot.parent.partition("/")
        lines.append(f"called by step {clean(at)} of run {key}")
    if snapshot.labels:
        lines.append("labels " + " ".join(f"{clean(key)}={clean(value)}" for key, value in snapshot.labels.items()))
    lines += ["", *step_rows(snapshot.steps)]
    if snapshot.failures:
        lines += ["", "failures (root cause first):"]
        lines += [f"  ✗ {clean(f.address)}  {clean(f.code)}: {clean(f.message)}" for f in snapshot.failures[:20]]
        if len(snapshot.failures) > 20:
            lines.append(f"  … and {len(snapshot.failures) - 20} more")
    lines += ["", *_blocked_lines(snapshot.blocked)]
    if snapshot.breakpoints:
        lines += ["", "breakpoints:", *(f"  {_breakpoint_line(view)}" for view in snapshot.breakpoints)]
    if snapshot.signals:
        lines += ["", "signals:", *(f"  {_signal_line(view)}" for view in snapshot.signals)]
    if snapshot.missing:
        lines += ["", f"the result needs steps that did not succeed: {names(snapshot.missing)}"]
    if snapshot.status == SUCCEEDED and snapshot.result != "=null":
        lines += ["", f"result {preview_arg(snapshot.result, 2 * PREVIEW)}"]
    return "\n".join(lines) + "\n"


def step_rows(steps: list[StepView]) -> list[str]:
    """One aligned row a step."""
    rows = [
        [
            f"{GLYPHS.get(step.shown, '?')} {clean(step.address)}",
            step.shown,
            duration(step.queue_seconds),
            duration(step.exec_seconds),
            "  ".join(annotations_of(step)),
        ]
        for step in steps
    ]
    if not rows:
        return ["  (no steps)"]
    table = [["  step", "status", "queue", "exec", ""], *rows]
    # One very long id must not push all other rows out of sight.
    widths = [min(max(len(row[column]) for row in table), 60) for column in range(4)]
    return [
        "  " + "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in table
    ]


def _blocked_lines(blocked: list[Blocked]) -> list[str]:
    if not blocked:
        return ["blocked: none"]
    lines = [f"blocked: {len(blocked)}"]
    for item in blocked[:50]:
        parts: list[str] = []
        if item.waiting_on:
            parts.append(f"waits for {names(item.waiting_on)}")
        if item.held_by:
            parts.append(f"held after {names(item.held_by)}")
        if item.missing_signals:
            parts.append(f"⚑ {names(item.missing_signals)}")
        if item.breakpoint:
            parts.append(f"⦿ {names(item.breakpoint)}")
        lines.append(f"  {clean(item.address)}  {'; '.join(parts)}")
    if len(blocked) > 50:
        lines.append(f"  … and {len(blocked) - 50} more")
    return lines


def _breakpoint_line(view: BreakpointView) -> str:
    state = view.state or ("armed" if view.armed else "not armed")
    text = f"⦿ {clean(view.address)}  {view.position}  [{names(view.labels)}]  {state}"
    return f"{text}  holding {names(view.holding)}" if view.holding and view.position == "after" else text


def _signal_line(view: SignalView) -> str:
    if view.delivered:
        return f"⚑ {clean(view.name)}  delivered  {preview(view.payload)}"
    return f"⚑ {clean(view.name)}  waited for by {names(view.waiting)}" if view.waiting else f"⚑ {clean(view.name)}"


def tree_rows(steps: list[StepView]) -> list[tuple[int, StepView]]:
    """The steps with their depth: each once, below the first step it needs, else below the step that added it."""
    known = {step.address for step in steps}
    below: dict[str, list[StepView]] = {}
    for step in steps:
        parents = [at.rstrip("/") for at in (*step.needs, step.added_by) if at.rstrip("/") in known]
        below.setdefault(parents[0] if parents else "", []).append(step)
    rows: list[tuple[int, StepView]] = []
    stack = [(0, step) for step in reversed(below.get("", []))]
    while stack:
        depth, step = stack.pop()
        rows.append((depth, step))
        stack += [(depth + 1, child) for child in reversed(below.get(step.address, []))]
    return rows


def render_tree(snapshot: Snapshot) -> str:
    """The run as an indented tree over what steps need; each step once."""
    lines = [f"Run {clean(snapshot.id)} [{snapshot.status}]"]
    for depth, step in tree_rows(snapshot.steps):
        marks = " ⦿" if step.breakpoint else ""
        extra = f"  {duration(step.exec_seconds)}" if step.exec_seconds is not None else ""
        lines.append(f"{'  ' * (depth + 1)}{GLYPHS.get(step.shown, '?')} {clean(step.address)}{marks}{extra}")
    return "\n".join(lines) + "\n"
