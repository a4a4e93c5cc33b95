"""The targets of a worker: names whose steps it executes, beside its own id. They may change while it works.

A callable is asked before the session opens, and again whenever the session has been renewed: never for a step. What
it raises then is logged, and what it said last goes on. A target that is given up ends no attempt.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from treadle.errors import LeaseLostError, StoreError, UsageError

if TYPE_CHECKING:
    from treadle.runtime.node import Node
    from treadle.store.base import Renewal

_log = logging.getLogger("treadle.targets")
# What `connect` takes: names, or a function (async or not) that gives them.
Targets: TypeAlias = "Iterable[str] | Callable[[], Iterable[str] | Awaitable[Iterable[str]]]"


def check_targets(given: Targets) -> Targets:
    """Names as a tuple, each once and none empty; a callable as it is.

    Raises:
        UsageError: it is neither.
    """
    return given if callable(given) else names_of(given, "targets")


def names_of(given: object, what: str) -> tuple[str, ...]:
    """The names that were given, without blanks around them, each once.

    Raises:
        UsageError: they are no names.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise UsageError(f"{what}: {given!r} is no list of names; write [{str(given)!r}] for one")
    found: dict[str, None] = {}
    for name in cast("Iterable[object]", given):
        if not isinstance(name, str):
            raise UsageError(f"{what}: {name!r} is no name; targets are texts")
        if name.strip():
            found[name.strip()] = None
    return tuple(found)


class OwnTargets:
    """What a node's worker offers, and how it comes to the store."""

    def __init__(self, node: Node, given: Targets) -> None:
        self._node = node
        self._given = given
        # Beside the worker's id.
        self.names: tuple[str, ...] = ()
        self._reading = False
        # What the session's row names may be older.
        self._stale = False

    def offered(self) -> list[str]:
        """All names that the worker goes by."""
        return list(dict.fromkeys((self._node.name, *self.names)))

    async def read(self) -> None:
        """Find out what is offered now.

        Raises:
            UsageError: a callable gives no names.
        """
        found: Any = self._given
        if callable(found):
            # It may ask the machine, or another one.
            found = await self._node.beside(found)
            if inspect.isawaitable(found):
                found = await found
            self.names = names_of(found, "the callable given as targets=")
        else:
            self.names = names_of(found, "targets")

    async def change(self, given: Targets) -> None:
        """Offer these from now on.

        Raises:
            UsageError: they are no names.
            StoreError: the store does not answer. They are offered, and the store is told later.
        """
        self._given = check_targets(given)
        await self.read()
        await self._tell()

    def renewed(self, renewal: Renewal | None, error: BaseException | None) -> None:
        """The committer has renewed the session, as it does from time to time: see whether the targets have changed."""
        self._node.renewed(renewal, error)
        if renewal is None or not self._node.settings.worker:
            return
        if (self._stale or callable(self._given)) and not self._reading:
            self._reading = True
            self._node.spawn(self._again())

    async def _again(self) -> None:
        before = self.names
        try:
            await self.read()
        except Exception as error:  # noqa: BLE001 - whatever user code raises; the worker goes on with what it has
            _log.warning("the targets are as before (%s), since asking for them failed: %r", list(before), error)
        try:
            if self._stale or self.names != before:
                await self._tell()
        except StoreError as error:
            _log.warning("the store was not told of the targets yet: %s", error)
        finally:
            self._reading = False

    async def _tell(self) -> None:
        """Let the offers and the session's row go by the names, and look for what waited for them."""
        node = self._node
        names, session = self.offered(), node.session
        node.slots.aim(names)
        self._stale = True
        try:
            await node.committer.call(lambda store: store.set_targets(session, names))
        except LeaseLostError:
            # The next session begins with them.
            return
        self._stale = False
        node.look_for_tasks()
