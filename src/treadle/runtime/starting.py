"""How runs begin: from a plan and its constants to the append that makes a run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from treadle.authoring.builder import Planned
from treadle.authoring.durations import Duration, seconds_of
from treadle.core.events import Handle
from treadle.core.plan import encode_plan, plan_hash
from treadle.errors import UsageError
from treadle.runtime.payloads import Row
from treadle.store.base import Report, RunHead

if TYPE_CHECKING:
    from treadle.runtime.node import Node


class Beginning(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a new run, beside its plan. An empty id is the run's key."""

    key: str
    id: str = ""
    labels: dict[str, str] = {}
    breakpoints: Sequence[str] = ()
    not_before: float = 0.0
    parent: str = ""
    detached: bool = False
    depth: int = 0


async def begin(node: Node, planned: Planned, wanted: Beginning, report: Report | None = None) -> str:
    """Make a run. Gives the store's answer: `committed`, `exists`, `refused`, ...

    With a report, the run is made only if that leased task is live, and the task ends in the same transaction.

    Raises:
        StoreError: nothing is known of the run.
    """
    rows: list[Row] = []
    handles = await place_constants(node, planned, rows)
    plan = node.with_defaults(planned.plan)
    encoded = encode_plan(plan)
    head = RunHead(
        key=wanted.key,
        id=wanted.id or wanted.key,
        workflow=planned.plan.workflow,
        plan=plan_hash(encoded),
        constants=handles,
        breakpoints=list(wanted.breakpoints),
        labels=wanted.labels,
        parent=wanted.parent,
        detached=wanted.detached,
        input_hash=input_hash(handles),
        created_at=node.environment.clock.now(),
        not_before=wanted.not_before,
        depth=wanted.depth,
    )
    future: asyncio.Future[str] = node.loop.create_future()

    def then(status: str, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(status)

    if report is None:
        node.engine.start(head, plan, encoded, rows, then)
    else:
        node.engine.start(head, plan, encoded, rows, then, report=report)
    return await future


async def place_constants(node: Node, planned: Planned, rows: list[Row]) -> list[Handle]:
    """The handles of a plan's constants; adds the rows to be written with the run."""
    constants = planned.constants
    if all(len(text) <= 1024 for text in constants):
        return ["=" + text for text in constants]
    return [await node.payloads.place(text, rows) for text in constants]


def input_hash(handles: list[Handle]) -> str:
    """The hash by which two starts of one id are seen to be the same."""
    return hashlib.sha256(msgspec.json.encode(handles)).hexdigest()[:32]


def opening_time(now: float, delay: Duration | None, run_at: datetime | None) -> float:
    """When the first steps of a run may start; 0 is at once.

    Raises:
        UsageError: both were given, or a time without a time zone.
        DefinitionError: the delay is no duration.
    """
    if delay is not None and run_at is not None:
        raise UsageError("delay= and run_at= exclude each other; give one of them")
    if run_at is not None:
        if run_at.tzinfo is None:
            raise UsageError(f"run_at={run_at} has no time zone; give one, such as datetime.UTC")
        at = run_at.timestamp()
        return at if at > now else 0.0
    seconds = seconds_of(delay, "delay") if delay is not None else 0.0
    return now + seconds if seconds > 0 else 0.0
