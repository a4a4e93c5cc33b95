"""Hooks: observers of the boundaries of runs, scopes, steps and attempts. They watch, and never fail a run.

Who calls them, and when:

- Boundaries of runs, scopes and steps are told by the process that committed them, after the commit, in journal
  order. Each is told once; if that process dies before, nobody tells it. The journal has them all.
- Boundaries of attempts are told by the process whose worker executes them. An attempt's end is the worker's word:
  what counts is the end of the step. An attempt that is given up with its session has no end.
- In one process, hooks are called one at a time: for each boundary in the order of registration, and an async hook is
  awaited before the next one. They run beside the runs; a slow hook lags behind and holds nothing up.
- An exception in a hook is logged to `treadle.hooks` and counted (`app.hook_failures`), and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from treadle.core.events import Failure
from treadle.errors import UsageError

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Boundary(msgspec.Struct, frozen=True, kw_only=True):
    """The start or the end of a run, scope, step or attempt, as a hook sees it."""

    run_id: str
    run_key: str
    # Seconds since the epoch: of the journal, or for an attempt of its worker's clock.
    time: float
    # Empty for an attempt: a worker needs no run.
    workflow: str = ""
    # The path of the scope or step, with those of groups and iterations around it; empty for the run.
    address: str = ""
    # What the address names: `step`, `group`, ...; empty for the run.
    block: str = ""
    # Of steps and attempts. `attempt` is 0 for a step that ends without any.
    action: str = ""
    generation: int = 1
    attempt: int = 0
    # The worker's name, of attempts.
    worker: str = ""
    dry_run: bool = False
    # At the start of a step or attempt: what its function is called with, by parameter.
    arguments: Mapping[str, Any] = _NOTHING
    # At an end: succeeded, failed, skipped or cancelled, with the result, or the failure, or the steps behind it.
    outcome: str = ""
    result: Any = None
    failure: Failure | None = None
    causes: Sequence[str] = ()


class Hooks:
    """Override what you want to be told of, by `def` or by `async def`; see the module for who calls it and when.

    A plain `def` runs on the event loop, so it must not block. What is not overridden costs nothing.
    """

    def run_started(self, run: Boundary) -> Awaitable[None] | None:
        """A run was made."""

    def run_ended(self, run: Boundary) -> Awaitable[None] | None:
        """A run has its outcome; again after an operator's retry or rewind."""

    def scope_started(self, scope: Boundary) -> Awaitable[None] | None:
        """What a group, or another block with content, waits for is there; its content may start."""

    def scope_ended(self, scope: Boundary) -> Awaitable[None] | None:
        """All content of a group, or of another block, is settled."""

    def step_started(self, step: Boundary) -> Awaitable[None] | None:
        """A step's first attempt may start; again after a retry or rewind by an operator."""

    def step_ended(self, step: Boundary) -> Awaitable[None] | None:
        """A step has its outcome. One that is skipped, or cancelled early, ends without having started."""

    def attempt_started(self, attempt: Boundary) -> Awaitable[None] | None:
        """This process begins to execute an attempt."""

    def attempt_ended(self, attempt: Boundary) -> Awaitable[None] | None:
        """An attempt has ended in this process, whatever becomes of the step."""


NAMES: Final = tuple(name for name in vars(Hooks) if not name.startswith("_"))


def overridden(hooks: Hooks) -> list[str]:
    """The names of the methods that a hooks object has of its own."""
    return [name for name in NAMES if getattr(type(hooks), name) is not getattr(Hooks, name) or name in vars(hooks)]


def check_hooks(given: Sequence[object]) -> None:
    """Refuse what is never told anything.

    Raises:
        UsageError: naming all that is no `Hooks` object, or overrides none of its methods.
    """
    wrong = [repr(one) for one in given if not isinstance(one, Hooks) or not overridden(one)]
    if wrong:
        names = ", ".join(NAMES)
        raise UsageError(f"hooks are objects of classes made from Hooks, with some of {names}; not {', '.join(wrong)}")
