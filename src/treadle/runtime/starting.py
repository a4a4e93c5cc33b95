"""How a run begins: its head, made of a plan and of what the run is started with, all of it checked first."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from treadle.authoring import codec
from treadle.authoring.adapters import TAG
from treadle.authoring.builder import Planned, raise_all
from treadle.authoring.context import step_context
from treadle.authoring.durations import Duration, seconds_of
from treadle.authoring.registry import Registry
from treadle.authoring.secrets import refuse_secret, refuse_secret_results, refuse_secrets, with_secrets
from treadle.core.addresses import check_id
from treadle.core.events import Handle
from treadle.core.plan import Plan, encode_plan, plan_hash
from treadle.core.run_data import Need, needs_of
from treadle.core.singletons import Enters
from treadle.core.values import Window
from treadle.errors import DecodeError, DefinitionError, EncodeError, SlotError, UsageError
from treadle.ports import PayloadCodec
from treadle.runtime.coding import hidden_digest, refuse_keys, shown_digest, steps_of
from treadle.runtime.payloads import Payloads, Row, plain_handle
from treadle.store.base import FORMAT, Answer, Report, RunHead
from treadle.store.committer import resolve

if TYPE_CHECKING:
    from treadle.runtime.node import Node


# So many plans are known to give no secrets, before they are looked at again.
PLAIN_PLANS = 1000
# A time, or a duration from now.
Deadline = Duration | datetime
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Start(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a run is started with, beside its workflow and the workflow's arguments. An empty id is the run's key."""

    key: str = ""
    id: str = ""
    # No step starts before it; 0 is at once.
    not_before: float = 0.0
    # No attempt begins or goes on after it; 0 is never.
    deadline: float = 0.0
    # A W3C `traceparent`; "" for none.
    trace: str = ""
    # Of a run that a step calls: who calls it, whether nobody waits for it, and how deep the calls are.
    parent: str = ""
    detached: bool = False
    depth: int = 0
    # These go before what the workflow says of its run; an empty name is the workflow's.
    name: str = ""
    labels: dict[str, str] = {}
    # Labels of the run that calls this one; what the run itself is labelled with goes before them.
    inherited: dict[str, str] = {}
    metadata: dict[str, str] = {}
    breakpoints: Sequence[str] = ()
    # The run's data as the text of one JSON object ("" for none), and the names in it.
    data: str = ""
    names: Sequence[str] = ()
    dry_run: bool = False
    # What overrides the plan's word on what follows from a failure.
    on_failure: str = ""
    # A name that one run at a time holds, until it is closed; "" for none.
    singleton: str = ""
    # How it collects triggers before its work begins, and the name of the first.
    window: Window | None = None
    trigger: str = ""


class Input(msgspec.Struct, frozen=True):
    """The input of a run as it is stored: constants and data as handles, and the rows that go with them."""

    constants: list[Handle]
    data: Handle
    rows: list[Row]
    digest: str


def data_text(data: Mapping[Any, Any]) -> str:
    """A run's data as the text of one JSON object.

    Raises:
        DefinitionError: a name is none, or a value cannot be stored; all of them at once.
    """
    errors: list[DefinitionError] = []
    for name, value in data.items():
        try:
            _check_name(name)
            with_secrets(codec.encode, value)
        except DefinitionError as error:
            errors.append(error)
        except EncodeError as error:
            errors.append(SlotError(f"data {name!r}: {error}"))
    raise_all(errors, "the run's data")
    # In one order, so that equal data give equal texts.
    return with_secrets(codec.encode, dict(sorted(data.items()))) if data else ""


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise DefinitionError(f"data name {name!r} is no text; the run's data are a mapping of names to values")
    check_id(name, "data name")
    if name == TAG:
        raise DefinitionError(f"the name {TAG!r} is Treadle's own; give this datum another one")


async def input_of(payloads: Payloads, planned: Planned, start: Start) -> Input:
    """Place the constants of a plan, and the run's data, where their sizes belong."""
    rows: list[Row] = []
    constants = planned.constants
    if payloads.codec is not None:
        return await _encoded_input(payloads, payloads.codec, constants, start, rows)
    if all(len(text) <= 1024 for text in constants):
        handles = ["=" + text for text in constants]
    else:
        handles = [await payloads.place(text, rows) for text in constants]
    data = await payloads.place(start.data, rows) if start.data else ""
    return Input(handles, data, rows, _digest(handles, data, start))


async def _encoded_input(
    payloads: Payloads, codec_: PayloadCodec, constants: list[str], start: Start, rows: list[Row]
) -> Input:
    handles = [await payloads.place(text, rows) for text in constants]
    data = await payloads.place(start.data, rows) if start.data else ""
    # Of what the handles would be without a codec: encoding a value again gives another one.
    plain = _digest([plain_handle(text) for text in constants], plain_handle(start.data) if start.data else "", start)
    return Input(handles, data, rows, hidden_digest(codec_, plain))


def _digest(constants: list[Handle], data: Handle, start: Start) -> str:
    """The hash by which two starts of one id are seen to be the same."""
    told: list[Any] = constants if not data and not start.dry_run else [constants, data, start.dry_run]
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:32]


async def begin(
    node: Node, planned: Planned, start: Start, report: Report | None = None, enters: Enters = "take"
) -> Answer:
    """Make a run. Gives the store's answer.

    With a report, the run is made only if that leased task is live, and the task ends in the same transaction. `enters`
    is how it enters the line of its singleton.

    Raises:
        DefinitionError, EncodeError: as `made`.
        StoreError: nothing is known of the run.
    """
    head, plan, encoded, rows = await made(node, planned, start)
    future: asyncio.Future[Answer] = node.loop.create_future()
    node.engine.start(head, plan, encoded, rows, partial(resolve, future), report, enters)
    return await future


async def made(node: Node, planned: Planned, start: Start) -> tuple[RunHead, Plan, bytes, list[Row]]:
    """What a new run is made of: its head, its plan, also encoded, and the rows of its values.

    Raises:
        DefinitionError: the plan cannot run, needs data that the run does not have, or holds a secret that would be
            stored in clear; all mistakes at once.
        EncodeError: the run's data hold such a secret.
    """
    plan = node.with_defaults(planned.plan)
    encoded, hash_ = _stored(planned, plan)
    needs = needs_of(node.engine.graphs.of(hash_, encoded, plan), encoded)
    if needs:
        _check_data(needs, start, node.registry, plan.workflow)
    if node.payloads.codec is not None:
        refuse_keys(steps_of(plan.blocks))
        _refuse_singleton(planned, start)
    if not node.payloads.hides:
        _refuse_secrets(node, planned, start, plan, hash_)
    given = await input_of(node.payloads, planned, start)
    head = RunHead(
        format=FORMAT,
        key=start.key,
        id=start.id or start.key,
        workflow=plan.workflow,
        plan=hash_,
        constants=given.constants,
        breakpoints=start.breakpoints,
        name=start.name or planned.about.name or node.titles.get(plan.workflow, ""),
        labels={**start.inherited, **planned.about.labels, **start.labels},
        metadata={**planned.about.metadata, **start.metadata},
        parent=start.parent,
        detached=start.detached,
        input_hash=given.digest,
        created_at=node.environment.clock.now(),
        not_before=start.not_before,
        deadline=start.deadline,
        trace=start.trace,
        depth=start.depth,
        data=given.data,
        data_names=start.names,
        dry_run=start.dry_run,
        on_failure=start.on_failure,
        singleton=start.singleton,
        window=start.window,
        trigger=start.trigger,
    )
    return head, plan, encoded, given.rows


def _stored(planned: Planned, plan: Plan) -> tuple[bytes, str]:
    """A plan as it is stored, and its content hash: those of the planned one if the node has no defaults to add."""
    if plan is not planned.plan:
        encoded = encode_plan(plan)
        return encoded, plan_hash(encoded)
    if not planned.hash:
        planned.encoded = encode_plan(plan)
        planned.hash = plan_hash(planned.encoded)
    return planned.encoded, planned.hash


def _refuse_secrets(node: Node, planned: Planned, start: Start, plan: Plan, hash_: str) -> None:
    """Raise for secrets that would be stored in clear."""
    refuse_secrets(plan.blocks, planned.constants)
    refuse_secret(start.data, "the run's data")
    known = node.payloads.plain_plans
    if hash_ not in known:
        # What is stored of steps: results, and undo states.
        names: dict[str, None] = {}
        for step in steps_of(plan.blocks):
            names[step.action] = None
            if step.undo is not None:
                names[step.undo.prepare] = None
        refuse_secret_results(names, node.registry)
        if len(known) >= PLAIN_PLANS:
            known.clear()
        known[hash_] = None


def _refuse_singleton(planned: Planned, start: Start) -> None:
    """Raise for a singleton whose key is read from arguments, which the payload codec encodes."""
    if "/" in planned.singleton and start.singleton == planned.singleton:
        raise DefinitionError(
            f"the singleton key of workflow {planned.workflow!r} is read from its arguments, which the payload codec"
            " encodes, and stores have to read it; give singleton= with the start, or use a store without a codec"
        )


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


def closing_time(now: float, deadline: Deadline | None) -> float:
    """When the last attempt has to be over; 0 is never.

    Raises:
        UsageError: a time without a time zone.
        DefinitionError: it is no duration.
    """
    if deadline is None:
        return 0.0
    if isinstance(deadline, datetime):
        if deadline.tzinfo is None:
            raise UsageError(f"deadline={deadline} has no time zone; give one, such as datetime.UTC")
        return deadline.timestamp()
    return now + seconds_of(deadline, "deadline")


def trace_of(given: str | None) -> str:
    """The trace of a new run: the given one, else that of the step which starts it.

    Raises:
        UsageError: it is no `traceparent` of the W3C's Trace Context.
    """
    if given is None:
        step = step_context.get(None)
        return step.trace if step is not None else ""
    if given and not _TRACEPARENT.fullmatch(given):
        raise UsageError(f"trace={given!r} is no traceparent; one looks like 00-{'ab' * 16}-{'cd' * 8}-01")
    return given


async def is_same(node: Node, head: RunHead, planned: Planned, start: Start) -> bool:
    """Whether an existing run is what was to be started: the same workflow, input, data and kind of run."""
    if head.plan != _stored(planned, node.with_defaults(planned.plan))[1]:
        return False
    codec_ = node.payloads.codec
    given = (await input_of(node.payloads, planned, start)).digest
    return shown_digest(codec_, head.input_hash) == shown_digest(codec_, given)


def _check_data(needs: tuple[Need, ...], start: Start, registry: Registry, workflow: str) -> None:
    """Raise for what the steps take from the run's data and do not find there, or not of their type."""
    tree = codec.plain(start.data or "{}")
    errors: list[DefinitionError] = []
    for need in needs:
        if need.name not in start.names:
            errors.append(SlotError(need.complaint()))
            continue
        definition = registry.find(need.action)
        parameter = definition.parameters.get(need.parameter) if definition is not None else None
        if parameter is None or not need.whole:
            # A worker elsewhere knows the function.
            continue
        try:
            parameter.adapter.convert(codec.part(tree, need.name))
        except DecodeError as error:
            said = str(error).removeprefix("at `$`: ")
            errors.append(
                SlotError(
                    f"step {need.address!r}: parameter {need.parameter!r} of {need.action!r} does not fit "
                    f"{need.name!r} of the run's data: {said}"
                )
            )
    raise_all(errors, f"the data of workflow {workflow!r}")
