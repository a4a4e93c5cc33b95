"""What analysis says, as documents and tables: levels, and the critical path of a plan or a run."""

from __future__ import annotations

from typing import Any

from treadle.cli.output import plainly, table
from treadle.core.graph_analysis import Analysis
from treadle.runtime.inspection import Snapshot
from treadle.runtime.report import duration, names
from treadle.runtime.run_analysis import Forecast, RunAnalysis

Shown = tuple[dict[str, Any], str]


def levels(workflow: str, analysis: Analysis) -> Shown:
    """The levels of a plan, as a document and as a table."""
    found = analysis.levels()
    rows = [[str(number), str(len(steps)), names(steps)] for number, steps in enumerate(found, start=1)]
    return {"workflow": workflow, "levels": found}, table(("LEVEL", "STEPS", "WHICH"), rows)


def critical_path(workflow: str, analysis: Analysis) -> Shown:
    """The longest chain of a plan by the number of its steps."""
    path = analysis.critical_path()
    rows = [[str(number), step] for number, step in enumerate(path, start=1)]
    said = f"{len(path)} of {_steps(len(analysis))}, one after the other\n"
    return {"workflow": workflow, "steps": len(analysis), "critical_path": path}, table(("", "STEP"), rows) + said


def run_critical_path(snapshot: Snapshot, analysis: RunAnalysis) -> Shown:
    """The chain of steps that took a run longest, and when an open run will have finished."""
    measured, forecast = analysis.measured(), analysis.forecast()
    document = {
        "id": snapshot.id,
        "status": snapshot.status,
        **plainly(measured),
        "forecast": plainly(forecast) if analysis.finished_at is None else None,
    }
    shown = {view.address: view.shown for view in snapshot.steps}
    starts = {span.step: span.start for span in measured.spans}
    rows = [
        [step, shown.get(step, ""), duration(starts[step]), duration(analysis.seconds.get(step))]
        for step in measured.critical_path
    ]
    text = table(("STEP", "STATUS", "AFTER", "TOOK"), rows, status=1, empty="no steps")
    text += f"{duration(measured.seconds)} on the critical path, of {_steps(len(analysis))}\n"
    return document, text + (_outlook(forecast) if analysis.finished_at is None else "")


def _outlook(forecast: Forecast) -> str:
    left = duration(forecast.seconds_left)
    if forecast.unknown:
        return f"at least {left} to go; nothing is known of {names(forecast.unknown)}\n"
    return f"about {left} to go, if nothing else holds it\n"


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"
