"""Triggers: many asks for a workflow become one run, by what they say (batch) or by the last of them (debounce)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

import msgspec

from treadle.authoring import codec
from treadle.authoring.builder import Planned, raise_all
from treadle.authoring.conflicts import Collecting, checked_key, key_from, name_of
from treadle.authoring.drafts import literal
from treadle.authoring.durations import Duration, seconds_of
from treadle.authoring.registry import WorkflowDefinition
from treadle.authoring.sleep import SLEEP
from treadle.core.plan import Child, Const, Plan, Ref, Slot, Step, Triggers
from treadle.core.values import Window
from treadle.core.windows import TIMER, WORK
from treadle.errors import DecodeError, DefinitionError, EncodeError, SlotError

# What a batch's key is an expression over.
_ITEM = "item"


class Debounce(msgspec.Struct, frozen=True):
    """One run for triggers that come within a `period` of each other, with the arguments of the last.

    `timeout` is the longest that the first one waits (None: without end). With `key`, a parameter's name or an
    expression over the parameters, each value of it has a window of its own.
    """

    period: Duration
    timeout: Duration | None = None
    key: str | None = None


class Batch(msgspec.Struct, frozen=True):
    """One run for up to `size` triggers; it begins when there are so many, or `timeout` after the first.

    The workflow takes them as its one parameter, a list. `key` is an expression over `item`, one trigger.
    """

    size: int
    timeout: Duration
    key: str | None = None


def collecting_of(policy: Debounce | Batch | None, function: Callable[..., Any]) -> Collecting | None:
    """A policy as it is kept.

    Raises:
        DefinitionError: it makes no sense, or not for this function; all mistakes at once.
    """
    if policy is None:
        return None
    if isinstance(policy, Batch):
        return _batch(policy, function)
    if not isinstance(policy, Debounce):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
        raise DefinitionError(f"triggers={policy!r}: a Debounce or a Batch")
    period = _positive(policy.period, "period")
    timeout = 0.0 if policy.timeout is None else _positive(policy.timeout, "timeout")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in inspect.signature(function).parameters.values()):
        raise DefinitionError("triggers=: a workflow with *args or **kwargs cannot be triggered; name its parameters")
    return Collecting(period, timeout, 0, checked_key("key", policy.key, function) or "")


def _batch(policy: Batch, function: Callable[..., Any]) -> Collecting:
    parameters = list(inspect.signature(function).parameters)
    if len(parameters) != 1:
        raise DefinitionError(
            f"triggers=Batch(...): the workflow takes the collected triggers as its one parameter, and it has"
            f" {len(parameters)}"
        )
    if type(policy.size) is not int or policy.size < 2:
        raise DefinitionError(f"triggers=Batch(size={policy.size!r}): a number from 2")
    key = checked_key("key", policy.key, _of_item) or ""
    return Collecting(0.0, _positive(policy.timeout, "timeout"), policy.size, key, parameters[0])


def _of_item(item: Any) -> None:
    """What a batch's key may name."""


def _positive(value: Duration, what: str) -> float:
    seconds = seconds_of(value, f"triggers=: {what}")
    if seconds <= 0:
        raise DefinitionError(f"triggers=: {what}={value!r}: a duration above zero")
    return seconds


class Triggering(msgspec.Struct, frozen=True):
    """A trigger, ready to be sent: the window that it is for, its arguments, and the run that opens the window."""

    window: Window
    texts: list[str]
    planned: Planned


def triggering(definition: WorkflowDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Triggering:
    """What a trigger with these arguments is.

    Raises:
        DefinitionError: the workflow has no `triggers=`.
        SlotError: an argument does not fit.
    """
    how = definition.triggers
    if how is None:
        raise DefinitionError(
            f"workflow {definition.name!r} collects no triggers; give it triggers=Debounce(...) or Batch(...), or start"
            " it"
        )
    texts, values = _item_text(definition, how, args, kwargs) if how.size else _texts(definition, args, kwargs)
    function = _of_item if how.size else definition.function
    key = key_from("key", how.key, function, values)
    window = Window(name_of("window", definition.name, key), how.period, how.timeout, how.size)
    return Triggering(window, list(texts.values()), _planned(definition, how, texts))


def _texts(
    definition: WorkflowDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """The arguments by parameter as JSON texts, defaults included, so that each trigger has the same ones."""
    complaints: list[str] = []
    values = definition.signature.assign(args, dict(kwargs), complaints)
    for name, parameter in inspect.signature(definition.function).parameters.items():
        if name not in values and parameter.default is not inspect.Parameter.empty:
            values[name] = parameter.default
    texts = {
        name: literal(values[name], parameter, f"argument {name!r}", complaints)
        for name, parameter in definition.parameters.items()
        if name in values
    }
    _complain(definition, complaints)
    return texts, values


def _item_text(
    definition: WorkflowDefinition, how: Collecting, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    complaints: list[str] = []
    if len(args) != 1 or kwargs:
        complaints.append(f"a trigger of a batch is one argument, an item of {how.parameter!r}")
    item = args[0] if args else None
    annotation = definition.parameters[how.parameter].annotation
    inner = get_args(annotation)[0] if get_origin(annotation) in (list, tuple) and get_args(annotation) else Any
    adapter = codec.adapter(inner)
    text = ""
    try:
        text = adapter.encode(item)
        adapter.decode(text)
    except (EncodeError, DecodeError) as error:
        complaints.append(f"an item of {how.parameter!r}: {error}")
    _complain(definition, complaints)
    return {how.parameter: text}, {_ITEM: item}


def _complain(definition: WorkflowDefinition, complaints: list[str]) -> None:
    what = f"a trigger of workflow {definition.name!r}"
    raise_all([SlotError(f"{what}: {text}") for text in complaints], what)


def _planned(definition: WorkflowDefinition, how: Collecting, texts: Mapping[str, str]) -> Planned:
    """The plan of the run that collects: a timer, then the call of the workflow."""
    slots: dict[str, Slot] = {name: Const(index) for index, name in enumerate(texts)}
    if how.size:
        slots = {how.parameter: Triggers()}
    first = how.timeout if how.size else min(how.period, how.timeout or how.period)
    blocks = [
        Step(id=TIMER, action=SLEEP, delay=first),
        Step(id=WORK, action=definition.name, slots=slots, after=(TIMER,), child=Child()),
    ]
    plan = Plan(workflow=f"{definition.name}~window", blocks=list(blocks), output=Ref(WORK))
    return Planned(plan, list(texts.values()), definition.result)
