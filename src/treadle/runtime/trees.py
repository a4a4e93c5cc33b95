"""The tree in which a run is shown: scopes around what they hold, steps below what they need, long lists cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from treadle.core.tables import FAILED, OPEN, OUTCOMES
from treadle.runtime.inspection import Snapshot, StepView
from treadle.runtime.scopes import ScopeView

# So many iterations of a gather, and rows of a Phases block, are listed; the rest is counted.
LISTED: Final = 10


class More(NamedTuple):
    """Iterations or rows that are not listed, by status."""

    kind: str
    counts: dict[str, int]


class Row(NamedTuple):
    """One line of the tree."""

    depth: int
    item: StepView | ScopeView | More


def tree_rows(snapshot: Snapshot, *, whole: bool = False, top: ScopeView | None = None) -> list[Row]:
    """The run as lines of a tree: each step once, below the first step of its scope that it needs, else its adder.

    Of many iterations or rows only some are listed (`whole`: all), those first that matter most: what failed, what
    is open, what ended last. Evaluations are listed while they have no success. `top`: only that scope.
    """
    below = _below(snapshot, whole=whole)
    rows: list[Row] = []
    stack = [Row(0, item) for item in reversed(below.get("", []) if top is None else [top])]
    while stack:
        row = stack.pop()
        rows.append(row)
        if not isinstance(row.item, More):
            inner = below.get(row.item.address, [])
            listed = inner if whole else _cut(row.item, inner)
            stack += [Row(row.depth + 1, item) for item in reversed(listed)]
    return rows


def _below(snapshot: Snapshot, *, whole: bool) -> dict[str, list[StepView | ScopeView]]:
    """Address -> what is shown directly below it, in the order it came into the run."""
    places = {step.address: step.scope for step in snapshot.steps}
    asked = [step for step in snapshot.evaluations if whole or step.status not in OUTCOMES or step.status == FAILED]
    items: list[StepView | ScopeView] = [*snapshot.steps, *asked, *snapshot.scopes]
    items.sort(key=lambda item: item.number)
    below: dict[str, list[StepView | ScopeView]] = {}
    for item in items:
        parent = item.scope
        if isinstance(item, StepView):
            above = (at.rstrip("/") for at in (*item.needs, item.added_by))
            parent = next((at for at in above if at and places.get(at) == item.scope), item.scope)
        below.setdefault(parent, []).append(item)
    return below


def _cut(parent: StepView | ScopeView, inner: Sequence[StepView | ScopeView]) -> Sequence[StepView | ScopeView | More]:
    if not isinstance(parent, ScopeView) or parent.kind not in ("gather", "phases"):
        return inner
    scopes = [item for item in inner if isinstance(item, ScopeView)]
    if len(scopes) <= LISTED:
        return inner
    others = [item for item in inner if not isinstance(item, ScopeView)]
    if parent.kind == "phases":
        return [*others, _more("earlier row", scopes[:-LISTED]), *scopes[-LISTED:]]
    ranked = sorted(scopes, key=_rank)
    listed = sorted(ranked[:LISTED], key=lambda scope: scope.number)
    return [*others, *listed, _more("iteration", ranked[LISTED:])]


def _rank(scope: ScopeView) -> tuple[int, float]:
    first = 0 if scope.status == FAILED else 1 if scope.status == OPEN else 2
    return first, -(scope.finished_at or 0.0)


def _more(kind: str, scopes: Sequence[ScopeView]) -> More:
    counts: dict[str, int] = {}
    for scope in scopes:
        counts[scope.status] = counts.get(scope.status, 0) + 1
    return More(kind, counts)


def listed_steps(rows: Sequence[Row]) -> Iterator[StepView]:
    """The steps among the lines."""
    for row in rows:
        if isinstance(row.item, StepView):
            yield row.item
