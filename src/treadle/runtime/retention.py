"""Retention: closed runs are deleted when they are old enough, and not among the last of their workflow."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from treadle.authoring.durations import Duration, seconds_of
from treadle.core.tables import CANCELLED, FAILED, SUCCEEDED
from treadle.errors import DefinitionError, LeaseLostError, StoreError
from treadle.store.base import RunQuery, RunRow, Store

if TYPE_CHECKING:
    from treadle.runtime.node import Node

_log = logging.getLogger("treadle.retention")
CLOSED: Final = (SUCCEEDED, FAILED, CANCELLED)
# One session of all does it, so often.
EVERY_SECONDS = 600.0
ROLE = "retention"
_PAGE = 200


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which closed runs are kept.

    Args:
        older_than: a run that has changed since is kept.
        keep: so many runs of each workflow are kept, the newest ones, however old.
        status: only runs with one of these outcomes are deleted.
    """

    older_than: Duration = "30d"
    keep: int = 0
    status: Sequence[str] = CLOSED


class Removal(msgspec.Struct, frozen=True):
    """What was deleted, or would delete, and what it had to leave since something of it is still open."""

    deleted: list[RunRow]
    left: list[RunRow] = []


class Rule(msgspec.Struct, frozen=True):
    """A checked retention."""

    seconds: float
    keep: int
    status: frozenset[str]


def rule_of(retention: Retention) -> Rule:
    """The checked form.

    Raises:
        DefinitionError: a part of it makes no sense; all mistakes at once.
    """
    mistakes: list[str] = []
    seconds = 0.0
    try:
        seconds = seconds_of(retention.older_than, "older_than")
    except DefinitionError as error:
        mistakes.append(str(error))
    if not isinstance(retention.keep, int) or isinstance(retention.keep, bool) or retention.keep < 0:  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
        mistakes.append(f"keep={retention.keep!r}: a number from 0")
    status = (retention.status,) if isinstance(retention.status, str) else tuple(retention.status)
    if unknown := [one for one in status if one not in CLOSED]:
        mistakes.append(f"status={unknown!r}: only closed runs are deleted: {', '.join(CLOSED)}")
    if mistakes:
        raise DefinitionError("retention: " + "; ".join(mistakes))
    return Rule(seconds, retention.keep, frozenset(status))


async def remove(node: Node, rule: Rule, *, dry_run: bool) -> Removal:
    """Delete what the rule lets go. A run goes with the runs that its steps called; those are never deleted alone."""
    deleted: list[RunRow] = []
    left: list[RunRow] = []
    async for row in _to_go(node, rule):
        if dry_run:
            deleted.append(row)
            continue
        answer = await node.committer.call(partial(_delete, row.key))
        if answer != "missing":
            (deleted if answer == "deleted" else left).append(row)
    return Removal(deleted, left)


def _elect(session: str, store: Store) -> bool:
    return store.elect(ROLE, session)


def _delete(key: str, store: Store) -> str:
    return store.delete(key)


async def _to_go(node: Node, rule: Rule) -> AsyncGenerator[RunRow, None]:
    before = node.environment.clock.now() - rule.seconds
    seen: Counter[str] = Counter()
    after = ""
    while True:
        # To know the newest of each workflow, all closed ones are looked at; else the store leaves the young out.
        query = RunQuery(after=after, limit=_PAGE, before=0.0 if rule.keep else before)
        rows = await node.read(partial(node.reader.runs, query))
        for row in rows:
            if row.status not in CLOSED:
                continue
            seen[row.workflow] += 1
            if row.status in rule.status and row.updated_at < before and seen[row.workflow] > rule.keep:
                if row.parent and not await _is_detached(node, row.key):
                    continue
                yield row
        if len(rows) < _PAGE:
            return
        after = rows[-1].key


async def _is_detached(node: Node, key: str) -> bool:
    found = await node.read(partial(node.reader.head, key))
    return found is not None and found[0].detached


async def retain(node: Node, rule: Rule) -> None:
    """Delete again and again, for the session that is elected to it."""
    while True:
        try:
            if await node.committer.call(partial(_elect, node.session)):
                done = await remove(node, rule, dry_run=False)
                if done.deleted:
                    _log.info("deleted %d closed runs", len(done.deleted))
        except LeaseLostError:
            # A new session begins by itself.
            pass
        except StoreError as error:
            _log.warning("closed runs were not deleted, it is tried again: %s", error)
        await asyncio.sleep(EVERY_SECONDS)
