"""How a run begins: its head, made of a plan and of what the run is started with, all of it checked first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from treadle.authoring import codec
from treadle.authoring.adapters import TAG
from treadle.authoring.builder import Planned, raise_all
from treadle.authoring.registry import Registry
from treadle.core.addresses import check_id
from treadle.core.events import Handle
from treadle.core.plan import Plan, encode_plan, plan_hash
from treadle.core.run_data import Need, needs_of
from treadle.errors import DecodeError, DefinitionError, EncodeError, SlotError
from treadle.runtime.payloads import Payloads, Row
from treadle.store.base import RunHead

if TYPE_CHECKING:
    from treadle.runtime.node import Node


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is started with, beside its workflow and the workflow's arguments."""

    id: str | None = None
    labels: dict[str, str] = {}
    breakpoints: list[str] = []
    # The run's data as the text of one JSON object ("" for none), and the names in it.
    data: str = ""
    names: list[str] = []
    dry_run: bool = False
    # What overrides the plan's word on what follows from a failure.
    on_failure: str = ""


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
            codec.encode(value)
        except DefinitionError as error:
            errors.append(error)
        except EncodeError as error:
            errors.append(SlotError(f"data {name!r}: {error}"))
    raise_all(errors, "the run's data")
    # In one order, so that equal data give equal texts.
    return codec.encode(dict(sorted(data.items()))) if data else ""


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
    if all(len(text) <= 1024 for text in constants):
        handles = ["=" + text for text in constants]
    else:
        handles = [await payloads.place(text, rows) for text in constants]
    data = await payloads.place(start.data, rows) if start.data else ""
    told: list[Any] = handles if not data and not start.dry_run else [handles, data, start.dry_run]
    # By the hash two starts of one id are seen to be the same.
    return Input(handles, data, rows, hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:32])


async def begin(node: Node, planned: Planned, start: Start) -> tuple[RunHead, Plan, bytes, list[Row]]:
    """The head of a new run, its plan with its stored bytes, and the payload rows to write with it.

    Raises:
        DefinitionError: the plan cannot run, or needs data that the run does not have; all mistakes at once.
    """
    plan = node.with_defaults(planned.plan)
    encoded = encode_plan(plan)
    hash_ = plan_hash(encoded)
    needs = needs_of(node.engine.graph(hash_, encoded, plan))
    if needs:
        _check_data(needs, start, node.registry, plan.workflow)
    given = await input_of(node.payloads, planned, start)
    key = node.environment.ids.key()
    head = RunHead(
        key=key,
        id=key if start.id is None else start.id,
        workflow=plan.workflow,
        plan=hash_,
        constants=given.constants,
        breakpoints=start.breakpoints,
        labels=start.labels,
        input_hash=given.digest,
        created_at=node.environment.clock.now(),
        data=given.data,
        data_names=start.names,
        dry_run=start.dry_run,
        on_failure=start.on_failure,
    )
    return head, plan, encoded, given.rows


async def is_same(node: Node, head: RunHead, planned: Planned, start: Start) -> bool:
    """Whether an existing run is what was to be started: the same workflow, input, data and kind of run."""
    if head.plan != plan_hash(encode_plan(node.with_defaults(planned.plan))):
        return False
    return head.input_hash == (await input_of(node.payloads, planned, start)).digest


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
