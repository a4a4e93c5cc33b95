"""Plans as HTML, for notebooks: what people see when a cell ends with a plan. Everything in it is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from treadle.core.plan import Block, Choose, Gather, Group, Phases, Plan, Step

# A plan of more blocks is cut: a page is for reading.
SHOWN = 200


def plan_html(plan: Plan) -> str:
    """A table of the plan's blocks, nested ones indented."""
    rows: list[str] = []
    _rows(plan.blocks, 0, rows)
    cut = f"<tr><td colspan=3>… {len(rows) - SHOWN} more</td></tr>" if len(rows) > SHOWN else ""
    head = "<tr><th>block</th><th>action</th><th>after</th></tr>"
    return f"<b>plan of {escape(plan.workflow)}</b><table>{head}{''.join(rows[:SHOWN])}{cut}</table>"


def _rows(blocks: Sequence[Block], depth: int, rows: list[str]) -> None:
    for block in blocks:
        action = block.action if isinstance(block, Step) else type(block).__name__.lower()
        name = "&nbsp;" * 4 * depth + escape(block.id)
        after = escape(", ".join([*block.after, *(f"{one}?" for one in block.after_any)]))
        rows.append(f"<tr><td>{name}</td><td>{escape(action)}</td><td>{after}</td></tr>")
        for inner in _inside(block):
            _rows(inner, depth + 1, rows)


def _inside(block: Block) -> list[Sequence[Block]]:
    match block:
        case Group():
            return [block.blocks]
        case Gather():
            return [block.body.blocks]
        case Choose():
            return [branch.blocks for branch in block.branches]
        case Phases():
            return [phase.blocks for phase in block.phases]
        case Step():
            return []
