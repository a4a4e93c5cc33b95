"""A document as a page of text."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from treadle.authoring.documents import inexact
from treadle.cli.output import paint, table
from treadle.cli.plans import tree
from treadle.core.documents import Compensation, Document, Fact, Outcome, RunRecord, Summary, Value
from treadle.runtime.report import GLYPHS, PREVIEW, clean, cut, duration, names

UNDONE = "↩"


def render(document: Document) -> str:
    """A receipt: the run, its steps, what was undone and decided; a plan: its tree. Then who wrote it."""
    if document.run is None:
        return f"{tree(document.plan())}\n{_origin(document)}"
    return f"{_run(document, document.run)}\n{_origin(document)}"


def summary_line(summary: Summary) -> str:
    """The counts of a receipt in one line."""
    said = " · ".join(f"{count} {status}" for status, count in sorted(summary.outcomes.items()))
    return f"{summary.steps} steps: {said}; {summary.standing} stand" if said else "no steps"


def short(value: Any) -> str:
    """A part of a document in a row; floats as people write them."""
    return cut(clean(msgspec.json.encode(inexact(value)).decode()), PREVIEW)


def _run(document: Document, run: RunRecord) -> str:
    status = f"{run.status.upper()}" + (f", {run.unwound} unwound" if run.unwound else "")
    dry = "  dry run" if run.dry_run else ""
    head = (
        f"Receipt of run {clean(run.id)}  [{paint(run.status, status)}]{dry}  workflow {clean(document.workflow)}"
        f"  created {run.created_at.isoformat(timespec='seconds')}"
    )
    if run.finished_at is not None:
        head += f"  total {duration((run.finished_at - run.created_at).total_seconds())}"
    lines = [head, summary_line(run.summary)]
    if run.labels:
        lines.append("labels " + " ".join(f"{clean(key)}={clean(value)}" for key, value in run.labels.items()))
    lines += ["", table(("STEP", "STATUS", "UNDO", "TRIES", "TOOK", ""), [_row(step) for step in run.steps]).rstrip()]
    if run.compensations:
        lines += ["", "compensations:", *(f"  {_compensation(one)}" for one in run.compensations)]
    for title, facts in (("decisions", run.decisions), ("undo", run.undo), ("also", run.facts)):
        if facts:
            lines += ["", f"{title}:", *(f"  {_fact(fact)}" for fact in facts)]
    if run.failures:
        lines += ["", f"failed (root cause first): {names(run.failures)}"]
    if run.result is not None:
        lines += ["", f"result {_value(run.result)}"]
    return "\n".join(lines) + "\n"


def _row(step: Outcome) -> list[str]:
    undone = step.undo == "undone" or step.compensated
    said: list[str] = []
    if step.failure is not None:
        said.append(cut(f"{step.failure.code}: {step.failure.message}", 2 * PREVIEW))
    if step.skip_reason:
        causes = [name for name in step.skip_causes if name != step.address]
        said.append(f"({step.skip_reason})" + (f" because of {names(causes)}" if causes else ""))
    if step.result is not None and not undone:
        said.append(f"= {_value(step.result)}")
    if step.compensates:
        said.append(f"compensates {clean(step.compensates)}")
    return [
        f"{UNDONE if undone else GLYPHS.get(step.status, '?')} {step.address}",
        step.status,
        step.undo if step.undo != "none" else "compensated" if step.compensated else "",
        str(len(step.attempts) or ""),
        duration(_seconds(step.started_at, step.finished_at)),
        "  ".join(said),
    ]


def _compensation(one: Compensation) -> str:
    said = f"{clean(one.row)} by {clean(one.by)}  {one.status}"
    if one.executed:
        said += f"  at {names(one.executed)}"
    if one.failure is not None:
        said += f"  {cut(clean(f'{one.failure.code}: {one.failure.message}'), 2 * PREVIEW)}"
    return f"{said}  ({clean(one.reason)})" if one.reason else said


def _seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return (end - begin).total_seconds() if begin is not None and end is not None else None


def _value(value: Value) -> str:
    if value.key_id:
        return f"<encrypted with {clean(value.key_id)}>"
    return f"<{value.digest}>" if value.digest else short(value.value)


def _fact(fact: Fact) -> str:
    about = "  ".join(f"{clean(name)}={short(part)}" for name, part in fact.about.items())
    return "  ".join(
        part for part in (fact.time.isoformat(timespec="seconds"), fact.kind, clean(fact.at), about) if part
    )


def _origin(document: Document) -> str:
    written = document.provenance
    platform = written.platform
    time = written.created_at.isoformat(timespec="seconds")
    lines = [
        f"written by {clean(written.tool)} {clean(written.version)} at {time}"
        f" on {clean(platform.os)} {clean(platform.arch)}, Python {clean(platform.python)}"
    ]
    lines += [f"context {clean(name)}={clean(value)}" for name, value in written.context.items()]
    lines.append(f"hash {document.hash}")
    signers = [] if document.signature is None else [clean(one.keyid) for one in document.signature.signatures]
    lines.append(
        f"signed by {names(signers)} (not checked here: `treadle receipt verify`)" if signers else "not signed"
    )
    return "\n".join(lines) + "\n"
