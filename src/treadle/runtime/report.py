"""Text reports of a snapshot: they render what they are given and read nothing themselves.

The text is for people: its layout may change between releases, the snapshot's fields are the interface.
Everything that a user's program put into a run (ids, messages, labels) is shown with its control characters
escaped, so that no text can move the reader's cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from treadle.core.events import Arg, ArgList, ArgMap, Handle, Pick
from treadle.core.tables import CANCELLED, DISPATCHED, FAILED, NONE, OPEN, READY, RUNNING, SKIPPED, SUCCEEDED, WAITING
from treadle.core.values import key_id_of
from treadle.runtime.coding import HIDDEN
from treadle.runtime.inspection import RETRYING, UNWOUND, Blocked, BreakpointView, SignalView, Snapshot, StepView
from treadle.runtime.scopes import DecisionView, GatherFacts, ScopeView
from treadle.runtime.trees import More, Row, tree_rows

GLYPHS: Final[dict[str, str]] = {
    SUCCEEDED: "✓",
    FAILED: "✗",
    SKIPPED: "⊘",
    CANCELLED: "■",
    RUNNING: "▶",
    RETRYING: "↻",
    DISPATCHED: "⋯",
    READY: "○",
    OPEN: "▷",
    WAITING: "·",
}
UNKNOWN: Final = "—"

# So many names are shown in one row; the snapshot has all.
NAMES = 5
PREVIEW = 60
# So many decisions are listed, the newest.
DECISIONS = 20


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
    if key_id_of(handle):
        return HIDDEN
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
        *([UNWOUND[snapshot.unwound]] if snapshot.unwound else []),
        f"workflow {clean(snapshot.workflow)}",
        *(["dry run"] if snapshot.dry_run else []),
        f"created {duration(max(snapshot.now - snapshot.created_at, 0.0))} ago",
    ]
    if snapshot.paused_at is not None:
        parts.append(f"paused {duration(max(snapshot.now - snapshot.paused_at, 0.0))} ago")
    if snapshot.deadline is not None and snapshot.finished_at is None:
        left = snapshot.deadline - snapshot.now
        parts.append(f"deadline in {duration(left)}" if left > 0 else "deadline passed")
    if snapshot.total_seconds is not None:
        parts.append(f"total {duration(snapshot.total_seconds)}")
    if stands:
        parts.append(f"⦿ {stands} at a breakpoint")
    if waits:
        parts.append(f"⚑ {waits} waiting for a signal")
    return "  ".join(parts)


def counts_line(snapshot: Snapshot) -> str:
    """The numbers of steps by shown status, and by the status of their undo; those that are not zero."""
    said = [f"{count} {status}" for status, count in snapshot.counts.items() if count]
    text = f"{len(snapshot.steps)} steps" + (": " + " · ".join(said) if said else "")
    undos = " · ".join(f"{count} {status}" for status, count in snapshot.undos.items())
    return f"{text}; undo: {undos}" if undos else text


# The steps by which blocks find something out, by the last segment of their address.
_EVALUATIONS: Final[dict[str, str]] = {
    "~items": "finds the items",
    "~rule": "evaluates a rule",
    "~when": "evaluates a branch's condition",
    "~wait": "lets time pass until the row is tried again",
}


def failure_line(code: str, message: str, attempt: int) -> str:
    """A failure on one line. Those of no attempt are the kernel's, and may go on with a picture of the place."""
    return clean(f"{code}: {message if attempt else message.partition(chr(10))[0]}")


def annotations_of(step: StepView) -> list[str]:
    """What is worth saying of a step beside its times."""
    said = [word for word, holds in (("optional", step.optional), ("detached", step.detached)) if holds]
    # No id of the user's has a bare ~ in an address.
    said += [text for name, text in _EVALUATIONS.items() if f"/{name}" in step.address and step.id == name]
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
    """Why the step failed, was skipped or stands, and what became of its undo."""
    said: list[str] = []
    if step.failure is not None:
        said.append(cut(failure_line(step.failure.code, step.failure.message, step.attempt), 2 * PREVIEW))
    if step.skip_reason:
        causes = [name for name in step.skip_causes if name != step.address]
        said.append(f"({step.skip_reason})" + (f" because of {names(causes)}" if causes else ""))
    said += _undo_of(step)
    if step.breakpoint:
        said.append(f"⦿ {step.breakpoint}")
    if step.missing_signals:
        said.append(f"⚑ {names(step.missing_signals)}")
    return said


def _undo_of(item: StepView | ScopeView) -> list[str]:
    """What became of an undo, if there is one."""
    if item.undo == NONE:
        return []
    return [f"undo {item.undo}" + (f" ({cut(clean(item.undo_reason), PREVIEW)})" if item.undo_reason else "")]


# -- scopes ------------------------------------------------------------------------------------------------------------


def title_of(item: StepView | ScopeView) -> str:
    """The address, with a sign of what kind of scope it is."""
    text = clean(item.address)
    if isinstance(item, StepView) or item.kind == "iteration":
        return text
    return f"{text}[]" if item.kind == "gather" else f"{text}/"


def facts_of(scope: ScopeView) -> list[str]:
    """What is worth saying of a scope beside its status."""
    said = _progress_of(scope)
    said += [word for word, holds in (("optional", scope.optional), ("detached", scope.detached)) if holds]
    if scope.failure is not None:
        said.append(cut(failure_line(scope.failure.code, scope.failure.message, 0), 2 * PREVIEW))
    said += _undo_of(scope)
    if scope.status == SKIPPED and scope.causes:
        said.append(f"because of {names(scope.causes)}")
    if scope.waiting_on and scope.status == WAITING:
        said.append(f"waits for {names(scope.waiting_on)}")
    if scope.missing_signals:
        said.append(f"⚑ {names(scope.missing_signals)}")
    return said


def _progress_of(scope: ScopeView) -> list[str]:
    if scope.gather is not None:
        return [_gather_line(scope.gather)] if scope.gather.opened or scope.status != WAITING else []
    if scope.phases is not None:
        facts = scope.phases
        said = [f"at {clean(facts.phase)} (step {facts.step})"] if scope.status == OPEN and facts.phase else []
        if facts.pending:
            said.append("pending: " + ", ".join(f"{clean(lane)} {count}" for lane, count in facts.pending.items()))
        return said
    if scope.kind == "choose" and scope.branch is not None:
        return [f"→ {clean(scope.branch)}" if scope.branch else "no branch"]
    if scope.kind == "compensation":
        return [f"compensates {clean(scope.compensates)}"]
    if scope.kind == "row":
        return [f"step {scope.index}", *(["tried again"] if scope.again else [])]
    return []


def _gather_line(facts: GatherFacts) -> str:
    if facts.count is None:
        return "its items are not known yet"
    said = [f"opened {facts.opened:,} of {facts.count:,}" if facts.opened < facts.count else f"{facts.count:,} items"]
    said += [f"{count:,} {status}" for status, count in facts.iterations.items()]
    return " · ".join(said)


def more_line(more: More) -> str:
    """How many iterations or rows are not listed."""
    count = sum(more.counts.values())
    said = " · ".join(f"{number:,} {status}" for status, number in more.counts.items())
    return f"… {count:,} more {more.kind}{'' if count == 1 else 's'}: {said}"


def decision_line(view: DecisionView) -> str:
    """What followed a row, and why."""
    said = [
        f"{clean(view.at)}: {clean(view.phase)} (step {view.step}) → {clean(view.target) or 'the end'}  {view.move}"
    ]
    if view.rule:
        said.append(f"by rule {clean(view.rule)}" + (f" of {clean(view.policy)}" if view.policy else ""))
    if view.failure is not None:
        said = [f"{clean(view.at)}: {clean(view.phase)} (step {view.step}) ✗ "]
        said.append(failure_line(view.failure.code, view.failure.message, 0))
    if view.overwritten:
        said.append(f"overwritten: {names(view.overwritten)}")
    return "  ".join(said)


def _block_lines(scopes: Sequence[ScopeView], decisions: Sequence[DecisionView]) -> list[str]:
    """Decisions, the newest of many, and the state of the Phases blocks among the scopes."""
    lines: list[str] = []
    if decisions:
        lines += ["", "decisions:"]
        left_out = len(decisions) - DECISIONS
        if left_out > 0:
            lines.append(f"  … {left_out:,} earlier")
        lines += [f"  {decision_line(view)}" for view in decisions[-DECISIONS:]]
    for scope in scopes:
        if scope.phases is not None and scope.phases.state:
            lines += ["", f"state of {clean(scope.address)}:"]
            lines += [f"  {clean(name)} = {preview_arg(value)}" for name, value in scope.phases.state.items()]
    return lines


def scope_text(snapshot: Snapshot, scope: ScopeView, *, whole: bool = False) -> str:
    """One scope as a page of text: itself and what it holds, and what was decided in it."""
    rows = tree_rows(snapshot, whole=whole, top=scope)
    decisions = [view for view in snapshot.decisions if view.at == scope.address]
    return "\n".join([*table_rows(rows), *_block_lines([scope], decisions)]) + "\n"


# -- the page ----------------------------------------------------------------------------------------------------------


def render_report(snapshot: Snapshot, *, whole: bool = False) -> str:
    """The run as a page of text: header, counts, labels, one row a step, what is blocked, breakpoints, signals.

    A run with scopes is shown as a tree, with the decisions and the state of its phases; `whole`: all iterations
    and rows of it.
    """
    lines = _head_lines(snapshot)
    rows = tree_rows(snapshot, whole=whole) if snapshot.scopes else [Row(0, step) for step in snapshot.steps]
    lines += ["", *table_rows(rows), *_block_lines(snapshot.scopes, snapshot.decisions)]
    if snapshot.failures:
        lines += ["", "failures (root cause first):"]
        for failure in snapshot.failures[:20]:
            why = failure_line(failure.code, failure.message, failure.attempt)
            lines.append(f"  ✗ {clean(failure.address)}  {why}" + "  (does not fail the run)" * failure.optional)
        if len(snapshot.failures) > 20:
            lines.append(f"  … and {len(snapshot.failures) - 20} more")
    lines += ["", *_blocked_lines(snapshot.blocked)]
    if snapshot.breakpoints:
        lines += ["", "breakpoints:", *(f"  {_breakpoint_line(view)}" for view in snapshot.breakpoints[:50])]
        if len(snapshot.breakpoints) > 50:
            lines.append(f"  … and {len(snapshot.breakpoints) - 50} more")
    if snapshot.signals:
        lines += ["", "signals:", *(f"  {_signal_line(view)}" for view in snapshot.signals)]
    if snapshot.missing:
        lines += ["", f"the result needs steps that did not succeed: {names(snapshot.missing)}"]
    if snapshot.status == SUCCEEDED and snapshot.result != "=null":
        lines += ["", f"result {preview_arg(snapshot.result, 2 * PREVIEW)}"]
    return "\n".join(lines) + "\n"


def _head_lines(snapshot: Snapshot) -> list[str]:
    lines = [header(snapshot), counts_line(snapshot)]
    if snapshot.parent:
        key, _, at = snapshot.parent.partition("/")
        lines.append(f"called by step {clean(at)} of run {key}")
    if snapshot.name:
        lines.append("name " + clean(snapshot.name))
    for what, pairs in (("labels", snapshot.labels), ("metadata", snapshot.metadata)):
        if pairs:
            lines.append(f"{what} " + " ".join(f"{clean(key)}={clean(value)}" for key, value in pairs.items()))
    return lines


def table_rows(rows: Sequence[Row]) -> list[str]:
    """One aligned row a step or scope."""
    if not rows:
        return ["  (no steps)"]
    cells = [_cells(row) for row in rows]
    table = [["  step", "status", "queue", "exec", ""], *(row for row in cells if len(row) > 1)]
    # One very long id must not push all other rows out of sight.
    widths = [min(max(len(row[column]) for row in table), 60) for column in range(4)]
    return [_aligned(table[0], widths), *(_aligned(row, widths) if len(row) > 1 else row[0] for row in cells)]


def _aligned(row: list[str], widths: list[int]) -> str:
    return "  " + "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()


def _cells(row: Row) -> list[str]:
    """The cells of a step or scope; one text for what is left out."""
    pad = "  " * row.depth
    match row.item:
        case More():
            return [f"  {pad}{more_line(row.item)}"]
        case ScopeView() as scope:
            spent = None
            if scope.opened_at is not None and scope.finished_at is not None:
                spent = max(scope.finished_at - scope.opened_at, 0.0)
            title = f"{pad}{GLYPHS.get(scope.status, '?')} {title_of(scope)}"
            return [title, scope.status, "", duration(spent) if spent is not None else "", "  ".join(facts_of(scope))]
        case step:
            return [
                f"{pad}{GLYPHS.get(step.shown, '?')} {clean(step.address)}",
                step.shown,
                duration(step.queue_seconds),
                duration(step.exec_seconds),
                "  ".join(annotations_of(step)),
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


def render_tree(snapshot: Snapshot, *, whole: bool = False) -> str:
    """The run as an indented tree: scopes around what they hold, steps below what they need; each step once."""
    lines = [f"Run {clean(snapshot.id)} [{snapshot.status}]"]
    lines += ["  " * (row.depth + 1) + _tree_text(row) for row in tree_rows(snapshot, whole=whole)]
    return "\n".join(lines) + "\n"


def _tree_text(row: Row) -> str:
    match row.item:
        case More():
            return more_line(row.item)
        case ScopeView() as scope:
            return "  ".join([f"{GLYPHS.get(scope.status, '?')} {title_of(scope)}", *facts_of(scope)])
        case step:
            marks = " ⦿" if step.breakpoint else ""
            extra = f"  {duration(step.exec_seconds)}" if step.exec_seconds is not None else ""
            lane = "  detached" if step.detached else ""
            return f"{GLYPHS.get(step.shown, '?')} {clean(step.address)}{marks}{extra}{lane}"
