"""Plans as text: an indented tree, Mermaid, Graphviz DOT."""

from __future__ import annotations

from typing import Final

from treadle.core.analysis import Edge, edges, levels
from treadle.core.blocks import Part, outline
from treadle.core.plan import Block, Branch, Choose, Gather, Holds, Phase, Phases, Plan, Step
from treadle.runtime.report import clean, names

INDENT: Final = "  "


def tree(plan: Plan) -> str:
    """The blocks in plan order, groups around their content, each step with what it needs and its rules."""
    needs: dict[str, list[str]] = {}
    for edge in edges(plan):
        needs.setdefault(edge.target, []).append(_need(edge))
    depth = levels(plan)
    steps = sum(len(level) for level in depth)
    head = [clean(plan.workflow), f"{steps} step{'' if steps == 1 else 's'} in {len(depth)} levels"]
    head += [f"on_failure={plan.on_failure}"] if plan.on_failure else []
    head += [f"undo_limit={plan.undo_limit}"] if plan.undo_limit else []
    lines = ["  ".join(head)]
    _branch(outline(plan.blocks), 1, needs, lines)
    return "\n".join(lines) + "\n"


def _need(edge: Edge) -> str:
    return edge.name if edge.kind == "ref" else f"{edge.name} ({edge.kind})"


def _branch(parts: list[Part], depth: int, needs: dict[str, list[str]], lines: list[str]) -> None:
    for part in parts:
        waits = list(dict.fromkeys(needs.get(part.address, [])))
        said = [f"{INDENT * depth}{_title(part)}"]
        if waits:
            said.append(f"← {names(waits)}")
        said += _rules(part.spec)
        lines.append("  ".join(said))
        _branch(part.inner, depth + 1, needs, lines)


def _title(part: Part) -> str:
    """The id, with a sign of what kind of block it is."""
    if isinstance(part.spec, Gather):
        return f"{clean(part.title)}[]"
    return clean(part.title) + ("" if isinstance(part.spec, Step) else "/")


def _rules(block: Block | Phase | Branch) -> list[str]:
    """The options of a block that are not the usual ones."""
    said = ["optional"] if block.optional else []
    if not isinstance(block, Step):
        return said + _openings(block)
    if block.retry is not None:
        said.append(f"retry={block.retry.attempts or '∞'}")
    if block.timeout is not None:
        said.append(f"timeout={block.timeout:g}s")
    if block.progress_timeout is not None:
        said.append(f"progress_timeout={block.progress_timeout:g}s")
    said += _way(block)
    if block.delay:
        said.append(f"delay={block.delay:g}s")
    if block.queue != "default":
        said.append(f"queue={clean(block.queue)}")
    if block.when is not None:
        said.append("when")
    if block.signals:
        said.append(f"⚑ {names(block.signals)}")
    if block.break_before or block.break_after:
        said.append(f"⦿ {names([*block.break_before, *block.break_after])}")
    return said


def _openings(block: Block | Phase | Branch) -> list[str]:
    """What is said of blocks that open their content while the run goes on."""
    if isinstance(block, Phases):
        return ["phases"]
    if isinstance(block, Choose):
        return ["choose"]
    if isinstance(block, Gather):
        limit = [f"limit={block.limit}"] if block.limit else []
        return ["gather", *limit, *([f"mode={block.mode}"] if block.mode != "any_error" else [])]
    if isinstance(block, Phase):
        said = [f"policy={clean(block.policy)}"] if block.policy else []
        said += [f"retry={block.retry.attempts or '∞'}"] if block.retry is not None else []
        said += [f"compensate={clean(block.compensate)}"] if block.compensate else []
        return said + ([f"detached: {names(block.detached)}"] if block.detached else [])
    if isinstance(block, Branch):
        if block.when is None:
            return ["else"]
        return [f"when {clean(block.when.text)}" if isinstance(block.when, Holds) else "when"]
    return []


def _way(step: Step) -> list[str]:
    """How a step works that is no single call of a function."""
    said: list[str] = []
    if step.undo is not None:
        halves = [name for name in ("prepare", "reconcile") if getattr(step.undo, name)]
        said.append(f"undo ({', '.join(halves)})" if halves else "undo")
    if step.child is not None:
        said.append("starts a run" if step.child.detached else "a run of its own")
    if step.poll is not None:
        limit = f", timeout={step.poll.timeout:g}s" if step.poll.timeout is not None else ""
        said.append(f"wait_until(every {step.poll.interval:g}s{limit})")
    return said


def _ids(plan: Plan) -> dict[str, str]:
    """Short ids that both languages take, by address: addresses may hold any text."""
    found: dict[str, str] = {}

    def number(parts: list[Part]) -> None:
        for part in parts:
            found[part.address] = f"n{len(found)}"
            number(part.inner)

    number(outline(plan.blocks))
    return found


def _quoted(text: str) -> str:
    """Text inside a Mermaid label: its own entity codes for what it would read as syntax."""
    return "".join(c if c.isalnum() or c in " _-.,:/" else f"#{ord(c)};" for c in clean(text))


def mermaid(plan: Plan) -> str:
    """The graph as a Mermaid flowchart; dotted edges do not require success."""
    ids = _ids(plan)
    lines = ["flowchart TD"]

    def draw(parts: list[Part], depth: int) -> None:
        pad = INDENT * depth
        for part in parts:
            shown = f'{ids[part.address]}["{_quoted(_title(part))}"]'
            if part.inner:
                lines.append(f"{pad}subgraph {shown}")
                draw(part.inner, depth + 1)
                lines.append(f"{pad}end")
            else:
                lines.append(f"{pad}{shown}")

    draw(outline(plan.blocks), 1)
    for edge in _distinct(plan):
        arrow = "-.->" if edge.kind in ("default", "after_any") else "-->"
        lines.append(f"{INDENT}{ids[edge.source]} {arrow} {ids[edge.target]}")
    return "\n".join(lines) + "\n"


def dot(plan: Plan) -> str:
    """The graph for Graphviz; dashed edges do not require success, an edge of a group ends at its border."""
    ids = _ids(plan)
    first: dict[str, str] = {}
    lines = [f"digraph {_string(plan.workflow)} {{", f"{INDENT}compound=true; node [shape=box];"]

    def draw(parts: list[Part], depth: int) -> str:
        pad = INDENT * depth
        inner = ""
        for part in parts:
            name = ids[part.address]
            if part.inner:
                lines.append(f"{pad}subgraph cluster_{name} {{ label={_string(_title(part))};")
                first[part.address] = draw(part.inner, depth + 1)
                lines.append(f"{pad}}}")
            else:
                first[part.address] = name
                lines.append(f"{pad}{name} [label={_string(_title(part))}];")
            inner = inner or first[part.address]
        return inner

    draw(outline(plan.blocks), 1)
    for edge in _distinct(plan):
        marks = ["style=dashed"] if edge.kind in ("default", "after_any") else []
        if first[edge.source] != ids[edge.source]:
            marks.append(f"ltail=cluster_{ids[edge.source]}")
        if first[edge.target] != ids[edge.target]:
            marks.append(f"lhead=cluster_{ids[edge.target]}")
        suffix = f" [{', '.join(marks)}]" if marks else ""
        lines.append(f"{INDENT}{first[edge.source]} -> {first[edge.target]}{suffix};")
    return "\n".join([*lines, "}"]) + "\n"


def _distinct(plan: Plan) -> list[Edge]:
    """One edge for each pair; the one that requires most."""
    order = {"ref": 0, "when": 1, "placement": 2, "after": 3, "default": 4, "after_any": 5}
    found: dict[tuple[str, str], Edge] = {}
    for edge in edges(plan):
        pair = (edge.source, edge.target)
        known = found.get(pair)
        if known is None or order[edge.kind] < order[known.kind]:
            found[pair] = edge
    return list(found.values())


def _string(text: str) -> str:
    quoted = clean(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'
