"""Placement: the target that a task is for, worked out at every dispatch from what the journal tells.

So any process decides alike, and a step whose run is loaded again goes where it went before. A target is a name; the
store gives the task to a session that has it among its own. Each worker has its id among them.
"""

from __future__ import annotations

from treadle.core.blocks import content_of
from treadle.core.graph import Node
from treadle.core.plan import Block, Placement, Step
from treadle.core.resolve import UnresolvedError
from treadle.core.state import RunState, StepState
from treadle.core.tables import SUCCEEDED


def target_of(run: RunState, step: StepState) -> str:
    """What a session must have among its targets to execute the step; empty if any may.

    Raises:
        UnresolvedError: the journal does not tell where that is.
    """
    node, placed = step.node, step.spec.placement
    while placed is not None:
        if placed.mode == "target":
            return placed.target
        if placed.mode == "here":
            return _adder_of(run, node)
        other = _named(run, node, placed)
        if placed.mode == "with":
            return _worker_of(run, other, node)
        node, placed = other.node, other.spec.placement
    return ""


def _named(run: RunState, node: Node, placed: Placement) -> StepState:
    """The step that a placement names."""
    number = node.refs.get(placed.step, -1)
    state = run.states[number] if number >= 0 else None
    if not isinstance(state, StepState):
        raise UnresolvedError(f"{node.address!r} is placed by {placed.step!r}, which was not executed")
    return state


def _worker_of(run: RunState, step: StepState, node: Node) -> str:
    """The id of the worker that made the last attempt of a step."""
    worker = run.workers.get(step.worker, "")
    if not worker:
        raise UnresolvedError(
            f"{node.address!r} runs where {step.node.address!r} did, and the journal does not tell where that was; "
            f"rewind {step.node.address!r}"
        )
    return worker


def _adder_of(run: RunState, placed: Node) -> str:
    """The worker of the step that has added a node, or what the node lies in: where it succeeded, else where it was."""
    node: Node | None = placed
    while node is not None and node.number not in run.added_on:
        node = node.scope
    if node is None:
        raise UnresolvedError(f"{placed.address!r} runs where it was added, and the journal does not tell where")
    adder = run.states[run.adder[node.number]]
    if isinstance(adder, StepState) and adder.status == SUCCEEDED and adder.worker in run.workers:
        return run.workers[adder.worker]
    return run.added_on[node.number]


def new_worker(run: RunState, session: str, worker: str) -> str:
    """The id of a session's worker for the event that names the session; empty if the journal has told it before."""
    return "" if run.workers.get(session) == worker else worker


def runs_here(block: Block) -> bool:
    """Whether a block, or one in it, is to run where it is added."""
    if isinstance(block, Step):
        return block.placement is not None and block.placement.mode == "here"
    return any(runs_here(inner) for blocks, _ in content_of(block) for inner in blocks)
