"""Options of steps: what people may write, and the fields of `core.plan.Step` that it becomes.

Options are read once, when they are given; a mistake among them is kept as text and reported when the step is planned,
together with all other mistakes of the workflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypedDict

from treadle.authoring.durations import Duration, seconds_of
from treadle.core import plan
from treadle.core.addresses import check_id
from treadle.core.expressions import parse
from treadle.core.plan import Placement, RetryPolicy
from treadle.errors import DefinitionError, ExpressionSyntaxError

Labels = str | Iterable[str]
# What a failed run does about what its steps have done.
OnFailure = Literal["stop", "unwind"]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often and when a failed attempt is tried again.

    Args:
        attempts: attempts in all; 0 means without end.
        initial: the delay after the first failure.
        backoff: how delays grow: not at all, by `initial` each time, or `factor`-fold each time.
        factor: of the exponential growth.
        cap: no delay is longer.
        jitter: the part of a delay (0 to 1) that is spread.
        never: failure codes that are not tried again.
    """

    attempts: int = 5
    initial: Duration = 1.0
    backoff: Literal["fixed", "linear", "exponential"] = "exponential"
    factor: float = 2.0
    cap: Duration = 60.0
    jitter: float = 0.0
    never: Labels = ()


@dataclass(frozen=True)
class Poll:
    """How a step is asked again until its value is true.

    Args:
        interval: from the end of a probe to the next one.
        timeout: when the step fails with the code `timeout`, counted from when it is asked first; None is without end.
            The last probe is made when the time is up.
    """

    interval: Duration
    timeout: Duration | None = None


class StaticOptions(TypedDict, total=False):
    """Options that hold for every use of a step; `@step` takes them too."""

    retry: Retry | int | None
    timeout: Duration | None
    delay: Duration
    queue: str
    # What the queue's limits by key go by: a parameter's name, or an expression over the arguments.
    key: str
    priority: int
    optional: bool
    signals: Labels
    break_before: Labels
    break_after: Labels
    # Run on the target (a worker's or a machine's name) ...
    on: str
    annotations: Mapping[str, str]
    # How many lost attempts (their worker died) fail the step.
    lost_limit: int
    # An attempt that reports no progress for so long fails with the code `timeout`.
    progress_timeout: Duration | None
    # Ask again until the value is true; `wait_until` says the same.
    poll: Poll | None


class StepOptions(StaticOptions, total=False):
    """Options of one use of a step."""

    id: str | None
    # Planned values, groups, `scope(...)`, ids, or lists of them.
    after: object
    after_any: object
    # A planned bool, a predicate's `.bind`, or a signal's value.
    when: bool
    # ... or by the worker that ran a step, by the target a step was given, or (for added steps) by this worker.
    beside: object
    follow: object
    here: bool
    dedup: str
    # For added steps: the scope they go to, "root" or an address; the adding step's own without it.
    into: object


class CallOptions(TypedDict, total=False):
    """Options of a step that calls a workflow; how its own steps run is the workflow's business."""

    id: str | None
    after: object
    after_any: object
    when: bool
    optional: bool
    delay: Duration
    queue: str
    priority: int
    signals: Labels
    break_before: Labels
    break_after: Labels
    annotations: Mapping[str, str]
    dedup: str
    into: object
    # Whether what is armed in the run that calls is armed in the run that is called.
    breakpoints: bool


class Chosen:
    """Options as they were understood. `fields` are those of the planned step; `links` name other steps."""

    __slots__ = ("fields", "id", "into", "links", "mistakes")

    def __init__(
        self,
        fields: dict[str, Any],
        links: dict[str, Any],
        id_: str | None = None,
        into: object = None,
        mistakes: tuple[str, ...] = (),
    ) -> None:
        self.fields = fields
        self.links = links
        self.id = id_
        self.into = into
        self.mistakes = mistakes


NOTHING: Final = Chosen({}, {})


def choose(base: Chosen, given: Mapping[str, Any]) -> Chosen:
    """The options of `base` with the given ones over them.

    Raises:
        TypeError: an option has no such name, as for any unknown keyword argument.
    """
    chosen = Chosen(dict(base.fields), base.links, base.id, base.into, base.mistakes)
    if not _PLACEMENTS.isdisjoint(given):
        # A nearer choice of a place replaces the one before it.
        chosen.fields.pop("placement", None)
        chosen.links = {name: value for name, value in base.links.items() if name not in _PLACEMENTS}
        _check_placement(chosen, given)
    for name, value in given.items():
        read = _READERS.get(name)
        if read is not None:
            try:
                chosen.fields["placement" if name == "on" else name] = read(value)
            except DefinitionError as error:
                chosen.mistakes += (f"{name}={value!r}: {error}",)
        elif name in _LINKS:
            chosen.links = {**chosen.links, name: value}
        elif name == "id":
            _choose_id(chosen, value)
        elif name == "into":
            chosen.into = value
        else:
            known = ", ".join(sorted([*_READERS, *_LINKS, "id", "into"]))
            raise TypeError(f"a step has no option {name!r}; there are {known}")
    return chosen


def _choose_id(chosen: Chosen, value: object) -> None:
    if value is None or isinstance(value, str):
        chosen.id = value
    else:
        chosen.mistakes += (f"id={value!r}: an id is text",)


def _check_placement(chosen: Chosen, given: Mapping[str, Any]) -> None:
    # Not by `in`: a planned value refuses to be compared.
    unset = (None, False)
    ways = sorted(name for name in _PLACEMENTS.intersection(given) if not any(given[name] is one for one in unset))
    if len(ways) > 1:
        chosen.mistakes += (f"{'= and '.join(ways)}= exclude each other; a step runs in one place",)


def _own_policy(value: Retry | RetryPolicy | int | None) -> RetryPolicy | None:
    """The policy that a step asks for itself; None is one attempt, whatever the workflow's default is."""
    return RetryPolicy(attempts=1) if value is None else policy_of(value)


def policy_of(value: Retry | RetryPolicy | int | None) -> RetryPolicy | None:
    """The stored form of a retry policy; a number is the number of attempts.

    Raises:
        DefinitionError: a number is out of its range.
    """
    if value is None or isinstance(value, RetryPolicy):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        value = Retry(attempts=value)
    if not isinstance(value, Retry):
        raise DefinitionError("give Retry(...) or a number of attempts")
    if not _is_whole(value.attempts) or value.attempts < 0:
        raise DefinitionError(f"attempts={value.attempts!r}: a number from 1, or 0 for no end")
    if value.backoff not in ("fixed", "linear", "exponential"):
        raise DefinitionError(f"backoff={value.backoff!r}: fixed, linear or exponential")
    initial, cap = seconds_of(value.initial, "initial"), seconds_of(value.cap, "cap")
    if initial > cap:
        raise DefinitionError(
            f"initial={value.initial!r} is longer than any delay may be; give a larger cap= ({cap:g} s)"
        )
    return RetryPolicy(
        attempts=value.attempts,
        backoff=value.backoff,
        initial=initial,
        factor=_between(value.factor, "factor", 1.0, math.inf),
        cap=cap,
        jitter=_between(value.jitter, "jitter", 0.0, 1.0),
        never=_labels(value.never),
    )


def on_failure_of(value: OnFailure | None) -> OnFailure | Literal[""]:
    """What a failed run does, as it is stored: "" leaves it to its blocks.

    Raises:
        DefinitionError: it is no such word.
    """
    if value is None:
        return ""
    if value not in ("stop", "unwind"):
        raise DefinitionError(f"on_failure={value!r}: stop or unwind")
    return value


def undo_limit_of(value: int | None) -> int:
    """How many undos may run together, as it is stored: 0 is no limit.

    Raises:
        DefinitionError: it is no number from 1.
    """
    if value is None:
        return 0
    if not _is_whole(value) or value < 1:
        raise DefinitionError(f"undo_limit={value!r}: a number from 1, or None for no limit")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _between(value: object, what: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or value == math.inf:
        raise DefinitionError(
            f"{what}={value!r}: a number from {least:g}" + ("" if most == math.inf else f" to {most:g}")
        )
    return float(value)


def _labels(value: Labels) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else list(value)
    for name in names:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
            raise DefinitionError(f"{name!r} is no text")
        if not name.strip():
            raise DefinitionError("an empty name stands for nothing; remove it or write one")
        check_id(name, "name")
    # Twice the same is once, in the order written.
    return tuple(dict.fromkeys(names))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DefinitionError("give a text that is not empty")
    return check_id(value, "name")


def _whole(value: object) -> Any:
    if not _is_whole(value):
        raise DefinitionError("give a whole number")
    return value


def _positive(value: object) -> Any:
    if _whole(value) < 1:
        raise DefinitionError("give a number from 1")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise DefinitionError("give True or False")
    return value


def _timeout(value: Duration | None, what: str = "timeout") -> float | None:
    if value is None:
        return None
    seconds = seconds_of(value, what)
    if seconds == 0:
        raise DefinitionError(f"no attempt ends in no time; leave {what}= out for no limit")
    return seconds


def _poll(value: object) -> plan.Poll | None:
    if value is None:
        return None
    if not isinstance(value, Poll):
        raise DefinitionError("give Poll(interval, timeout=...)")
    interval = seconds_of(value.interval, "interval")
    if interval == 0:
        raise DefinitionError("probes without a pause would keep a worker busy; give an interval")
    timeout = None if value.timeout is None else seconds_of(value.timeout, "timeout")
    if timeout == 0:
        raise DefinitionError("timeout=0 is over before the first probe; leave it out for no limit")
    return plan.Poll(interval, timeout)


def _delay(value: Duration) -> float:
    return seconds_of(value, "delay")


def _target(value: object) -> Placement:
    return Placement(mode="target", target=_text(value))


def _key(value: object) -> str:
    try:
        return parse(_text(value)).text
    except ExpressionSyntaxError as error:
        raise DefinitionError(f"a key is a parameter's name or an expression: {error}") from error


def check_key(chosen: Chosen, parameters: Iterable[str]) -> list[str]:
    """What is wrong with a key for a function of these parameters."""
    text = chosen.fields.get("key")
    if not text:
        return []
    known = list(parameters)
    unknown = {str(path[0]) for path in parse(text).names()}.difference(known)
    return [f"key={text!r}: there is no parameter {name!r}; there are {', '.join(known)}" for name in sorted(unknown)]


def _annotations(value: Mapping[str, str]) -> dict[str, str]:
    notes: dict[Any, Any] = dict(value)
    if not all(isinstance(text, str) for pair in notes.items() for text in pair):
        raise DefinitionError("keys and values are text")
    return notes


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "annotations": _annotations,
    "break_after": _labels,
    "break_before": _labels,
    "dedup": _text,
    "delay": _delay,
    "key": _key,
    "lost_limit": _positive,
    "on": _target,
    "optional": _truth,
    "poll": _poll,
    "priority": _whole,
    "progress_timeout": partial(_timeout, what="progress_timeout"),
    "queue": _text,
    "retry": _own_policy,
    "signals": _labels,
    "timeout": _timeout,
}
_LINKS: Final = frozenset({"after", "after_any", "beside", "follow", "here", "when"})
_PLACEMENTS: Final = frozenset({"beside", "follow", "here", "on"})
# What makes sense once for all uses of a function.
STATIC_NAMES: Final = frozenset(_READERS) - {"dedup"}
