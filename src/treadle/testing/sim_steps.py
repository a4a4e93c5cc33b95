"""The step functions of the simulation, and the workflow that its steps call.

They are deterministic in what they return, so that the invariants can compute from the journal what every result must
be; whether an attempt fails, and how long it takes, depends on its name and number.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, Protocol

from treadle.authoring.context import StepContext, context
from treadle.authoring.decorators import predicate, step, workflow
from treadle.authoring.options import Retry
from treadle.authoring.registry import Registry
from treadle.errors import NotCompensable, Permanent, Retryable, RetryLater, StepInterrupt
from treadle.testing.sim_conduct import (
    Conduct,
    fraction,
    make_artifacts,
    make_artifacts_in_thread,
    spread,
    spreads,
    truth_of,
    value_of,
)

registry = Registry()
# Names of the functions below.
# Those that make artifacts.
EFFECTIVE = frozenset({"sim:work", "sim:toil", "sim:make", "sim:build"})
OWN = EFFECTIVE | {"sim:boxed", "sim:probe", "sim:sip", "sim:truth", "sim:heavy-truth"}


class Observer(Protocol):
    """Who is told what the step functions do."""

    def began(self, step: StepContext) -> int:
        """An attempt's code starts; gives its number."""
        ...

    def ended(self, number: int, value: object) -> None:
        """An attempt's code returns `value`."""
        ...

    def added(self, step: StepContext, ids: list[str]) -> None:
        """Steps were added at once, and the call came back."""
        ...

    def asked(self, step: StepContext, role: str, error: str) -> None:
        """The code of a prepare, reconcile or undo starts; `error` is what is wrong with what it was given."""
        ...


OBSERVER: ContextVar[Observer] = ContextVar("treadle_sim_observer")


# -- what steps do -------------------------------------------------------------------------------------------------


def _fail(conduct: Conduct, step: StepContext) -> None:
    """Raise if this attempt is one that fails."""
    # By the address too: the iterations of a gather are not all alike.
    if fraction("fails", conduct["name"], step.step, step.generation, step.attempt) >= conduct.get("fails", 0.0):
        return
    kind = fraction("kind", conduct["name"], step.attempt)
    text = f"{conduct['name']} fails in attempt {step.attempt}"
    if kind < 0.35:
        raise ValueError(text)
    if kind < 0.6:
        raise Retryable(text)
    if kind < 0.8:
        raise RetryLater(0.3 + 3 * fraction(text))
    if kind < 0.95:
        raise Permanent(text)
    raise SystemExit(3)


def _additions(conduct: Conduct) -> list[tuple[Conduct, Any, bool]]:
    """The steps that a step adds: each with its place and whether at once."""
    return [(child, child.get("into"), bool(child.get("now"))) for child in conduct.get("adds", ())]


def _bound(child: Conduct) -> Any:
    """The planned step of a child's conduct."""
    functions = (build, toil) if child.get("sync") else (make, work)
    function: Any = functions[0 if child.get("undo") else 1]
    own = {key: part for key, part in child.items() if key not in ("into", "now", "retry", "dedup", "undo")}
    options: dict[str, Any] = {
        "id": child["id"],
        "retry": Retry(attempts=3, initial=0.5) if child.get("retry") else None,
    }
    if child.get("dedup"):
        options["dedup"] = child["dedup"]
    return function.options(**options).bind(own, [])


@step(registry=registry, name="sim:work")
async def work(conduct: Conduct, values: list[Any]) -> dict[str, Any]:
    """An async step."""
    return await _work(conduct, values)


async def _work(conduct: Conduct, values: list[Any]) -> dict[str, Any]:
    own = context()
    observer = OBSERVER.get()
    number = observer.began(own)
    await _sleep(conduct, conduct["sleep"] * fraction("sleep", conduct["name"], own.attempt))
    if conduct.get("progress"):
        own.progress(f"half of {conduct['name']} in {own.attempt}")
    await make_artifacts(conduct, own)
    now: list[str] = []
    for child, into, at_once in _additions(conduct):
        bound = _bound(child)
        if at_once:
            await own.add(bound, into=into, now=True)
            if not child.get("dedup"):
                now.append(child["id"])
        else:
            own.add(bound, into=into)
    if spreads(conduct):
        await own.add(lambda: spread(conduct, work), now=fraction("now", conduct["name"]) < 0.3)
    observer.added(own, now)
    _fail(conduct, own)
    value = value_of(conduct, values)
    observer.ended(number, value)
    return value


async def _sleep(conduct: Conduct, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        try:
            await asyncio.sleep(until - loop.time())
            return
        except asyncio.CancelledError:
            if not conduct.get("stubborn"):
                raise
            # Code that swallows its cancellation, and then ends later than it was told.
            until = max(until, loop.time() + 1.0)


@step(registry=registry, name="sim:toil")
def toil(conduct: Conduct, values: list[Any]) -> dict[str, Any]:
    """A sync step: all of it happens at one instant of its thread."""
    return _toil(conduct, values)


@step(registry=registry, name="sim:boxed", process=True)
def boxed(conduct: Conduct, values: list[Any]) -> dict[str, Any]:
    """A step in a process of its own, which has neither artifacts nor records."""
    if fraction("memory", conduct["name"], context().attempt) < 0.05:
        raise MemoryError
    return _toil(conduct, values, effects=False)


def _toil(conduct: Conduct, values: list[Any], *, effects: bool = True) -> dict[str, Any]:
    own = context()
    observer = OBSERVER.get()
    number = observer.began(own)
    if own.cancelled and not conduct.get("stubborn"):
        raise StepInterrupt
    for child, into, _ in _additions(conduct):
        own.add(_bound(child), into=into)
    if spreads(conduct):
        own.add(lambda: spread(conduct, toil))
    if effects:
        make_artifacts_in_thread(conduct, own)
    _fail(conduct, own)
    value = value_of(conduct, values)
    observer.ended(number, value)
    return value


@step(registry=registry, name="sim:probe")
async def probe(conduct: Conduct, values: list[Any]) -> dict[str, Any] | None:
    """A step that is asked again."""
    own = context()
    observer = OBSERVER.get()
    number = observer.began(own)
    await _sleep(conduct, min(conduct["sleep"], 1.0) * fraction("sleep", conduct["name"], own.probe))
    _fail(conduct, own)
    if own.probe <= conduct["probes"]:
        return None
    value = value_of(conduct, values)
    observer.ended(number, value)
    return value


# -- what undoes them ------------------------------------------------------------------------------------------------


async def _prepare(conduct: Conduct) -> dict[str, Any]:
    own = context()
    OBSERVER.get().asked(own, "prepares", "")
    await asyncio.sleep(conduct["sleep"] * fraction("prepare", conduct["name"], own.attempt))
    _fail_to("prepare", conduct, own)
    return {"of": conduct["name"], "pad": "x" * conduct.get("size", 0)}


def _reconcile(conduct: Conduct, state: dict[str, Any]) -> bool:
    own = context()
    OBSERVER.get().asked(own, "checks", "" if state["of"] == conduct["name"] else f"its undo state is {state}")
    return fraction("drift", conduct["name"]) > 0.1


async def _unmake(conduct: Conduct, state: dict[str, Any], result: Any) -> None:
    own = context()
    wrong = state["of"] != conduct["name"] or (result is not None and result["of"] != conduct["name"])
    OBSERVER.get().asked(own, "undoes", f"its state is {state}, its result {result}" if wrong else "")
    await _sleep(conduct, conduct["sleep"] * fraction("undo", conduct["name"], own.attempt))
    _fail_to("undo", conduct, own)


def _unbuild(conduct: Conduct) -> None:
    own = context()
    OBSERVER.get().asked(own, "undoes", "")
    _fail_to("undo", conduct, own)


def _fail_to(role: str, conduct: Conduct, step: StepContext) -> None:
    """Raise, now and then."""
    if fraction(role, conduct["name"], step.generation, step.attempt) >= conduct.get("fails", 0.0):
        return
    kind = fraction("kind", role, conduct["name"], step.attempt)
    if kind < 0.3:
        raise NotCompensable(role)
    if kind < 0.6:
        raise RetryLater(0.3 + kind)
    raise ValueError(role)


@step(registry=registry, name="sim:make", prepare=_prepare, reconcile=_reconcile, undo=_unmake)
async def make(conduct: Conduct, values: list[Any]) -> dict[str, Any]:
    """An async step with two halves."""
    return await _work(conduct, values)


@step(registry=registry, name="sim:build", undo=_unbuild, resource="yard")
def build(conduct: Conduct, values: list[Any]) -> dict[str, Any]:
    """A sync step whose undo needs no state."""
    return _toil(conduct, values)


@predicate(registry=registry, name="sim:truth")
async def truth(value: Any, salt: int) -> bool:
    """A condition; now and then it cannot tell."""
    own = context()
    await asyncio.sleep(fraction("truth", own.step, own.attempt))
    if fraction("unable", own.step, salt) < 0.05:
        raise ValueError("the condition cannot be evaluated")
    return truth_of(value, salt)


@predicate(registry=registry, name="sim:heavy-truth")
def heavy_truth(value: Any, salt: int) -> bool:
    """A condition evaluated in a thread."""
    return truth_of(value, salt)


@workflow(registry=registry, name="sim:child")
def called(conduct: Conduct, values: list[Any]) -> Any:
    """A workflow that steps call: a step or two, and perhaps a call of its own."""
    policy = Retry(attempts=2, initial=0.5) if conduct["retry"] else None
    first = (make if conduct["undo"] else work).options(id="first", retry=policy).bind(conduct["first"], values)
    if conduct["inner"] is None:
        return first
    if conduct["detached"]:
        return called.detached.options(id="inner").bind(conduct["inner"], [first])
    return [first, called.options(id="inner").bind(conduct["inner"], [first])]
