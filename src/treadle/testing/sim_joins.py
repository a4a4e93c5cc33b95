"""Starts that join a transaction of the caller, in the simulation: his row and the run are both there, or neither.

The transaction keeps what was written in it and does all of it at its end, if nothing is in the way by then; else it is
rolled back. Its commit may fail before or after it took effect, and whoever has it open may die, like at any call.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from treadle.core.tables import LIVE
from treadle.errors import StoreUnavailableError, TreadleError
from treadle.runtime.client import App
from treadle.store.joined import JoinedInput, JoinedStart
from treadle.store.memory_data import MemoryData, Row, StoredRun
from treadle.store.memory_names import change_names
from treadle.testing.invariants import DURABLE, JOINED, Fail, Watch
from treadle.testing.sim_codec import inline_text
from treadle.testing.sim_faults import Faults
from treadle.testing.sim_loop import Life
from treadle.testing.sim_steps import called
from treadle.testing.sim_workload import SIGNALS


class Join(msgspec.Struct):
    """A start in a transaction: when and where, and what becomes of the transaction."""

    name: str
    at: float
    node: int
    # How long the transaction stays open after the start.
    open_for: float = 0.0
    rolls_back: bool = False
    # Whether one of these runs at a time goes on.
    in_line: bool = False
    # The id of another run, to which a signal is sent in the same transaction.
    tells: str = ""

    @property
    def id(self) -> str:
        """The id of the run, and of the caller's row."""
        return f"j/{self.name}"


class Transaction:
    """What a caller writes beside the runs that he starts: rows of his own."""

    def __init__(self, data: MemoryData, rows: dict[str, None]) -> None:
        self._data = data
        self._rows = rows
        self._row = ""
        self.starts: list[JoinedStart] = []
        self.inputs: list[JoinedInput] = []

    def write(self, row: str) -> None:
        """Write a row."""
        self._row = row

    def join(self, start: JoinedStart) -> str:
        """What a store answers: the run is written here, unless what is committed by now is in its way."""
        if (answer := self._in_the_way(start)) != "made":
            return answer
        self.starts.append(start)
        return "made"

    def tell(self, given: JoinedInput) -> str:
        """What a store answers: the input is written here, if there is such a run, and it goes on."""
        run = self._data.runs.get(given.item.key)
        if run is None:
            return "missing"
        if run.status not in LIVE:
            return run.status
        self.inputs.append(given)
        return "posted"

    def _in_the_way(self, start: JoinedStart) -> str:
        for name in start.queues:
            if self._data.waiting.is_full(name, start.time):
                return f"full {name}"
        for name, verb in start.names:
            line = self._data.lines.get(name)
            if verb == "take" and line:
                return f"held {line[0]}"
        return "exists" if start.head.id in self._data.ids else "made"

    def wakes(self) -> list[str]:
        """Who is to be woken at its end."""
        return [start.wake for start in self.starts] + [given.wake for given in self.inputs]

    def commit(self) -> None:
        """All of it takes effect, or nothing does."""
        for start in self.starts:
            if (answer := self._in_the_way(start)) != "made":
                raise StoreUnavailableError(f"the transaction is rolled back: {start.head.id} {answer}")
        self._rows[self._row] = None
        for start in self.starts:
            self._make(start)
        for given in self.inputs:
            if (run := self._data.runs.get(given.item.key)) is not None:
                self._data.put_input(run, given.item)

    def _make(self, start: JoinedStart) -> None:
        data, head = self._data, start.head
        run = data.runs[head.key] = StoredRun(head, start.plan)
        data.ids[head.id] = run.key
        run.version = 1
        run.rows.append(Row(1, start.commit_id, start.time, start.events))
        run.payloads.update(start.payloads)
        run.updated_at = start.time
        data.put_input(run, start.look)
        change_names(data, run, start.names)


class Joins:
    """The joined starts of a world, and the caller's rows."""

    def __init__(
        self, seed: int, seconds: float, nodes: int, watch: Watch, fail: Fail, joins: Sequence[Join] | None = None
    ) -> None:
        self._watch = watch
        self._data = watch.data
        self._fail = fail
        rng = random.Random(f"joins of {seed}")
        drawn = joins is None and rng.random() < 0.2
        self.joins = _joins(rng, seconds, nodes) if drawn else list(joins or ())
        self.rows: dict[str, None] = {}
        # Keys of the runs whose transaction was committed, by the id of the row.
        self._told: dict[str, str] = {}

    def joining(
        self, join: Join, faults: Faults, life: Callable[[], Life | None], wake: Callable[[str], None]
    ) -> Callable[[App], Any]:
        """What a client does that starts a run in a transaction."""

        async def work(app: App) -> None:
            own = life()
            assert own is not None
            transaction = Transaction(self._data, self.rows)
            transaction.write(join.id)
            conduct: Mapping[str, Any] = {"name": join.name, "sleep": 1.0}
            below = {"first": conduct, "undo": False, "retry": False, "inner": None, "detached": False}
            run = await app.start(
                called,
                below,
                [],
                id=join.id,
                singleton="joined" if join.in_line else None,
                on_conflict="queue" if join.in_line else "reuse",
                transaction=transaction,
            )
            if join.tells:
                with suppress(TreadleError):
                    await app.run(join.tells).signal(SIGNALS[0], join.name, transaction=transaction)
            await asyncio.sleep(join.open_for)
            if join.rolls_back:
                return
            faults.call(own, "commit_joined", lambda: self._commit(transaction, own))
            key = await run.key()
            self._told[join.id] = key
            if key not in self._watch.journals:
                self._fail(DURABLE, f"{join.id} was committed with run {key}, which is not stored")
            for address in transaction.wakes():
                wake(address)
            await run.result()

        return work

    def _commit(self, transaction: Transaction, life: Life) -> None:
        transaction.commit()
        self._watch.wrote(life, "commit_joined", [])
        for start in transaction.starts:
            self._watch.look(start.head.key)

    def missing(self) -> list[Join]:
        """Those that are to be committed and that no client knows to be."""
        return [join for join in self.joins if not join.rolls_back and join.id not in self._told]

    def judge(self) -> None:
        """A row and its run are both there, or neither is."""
        for join in self.joins:
            # It may have been deleted since.
            has_run = any(journal.run.head.id == join.id for journal in self._watch.journals.values())
            has_row = join.id in self.rows
            if has_run != has_row:
                self._fail(JOINED, f"{join.id}: its row is there: {has_row}, its run is: {has_run}")
            if join.rolls_back and (has_row or self._is_told(join)):
                self._fail(JOINED, f"{join.id} was rolled back, and is there")

    def _is_told(self, join: Join) -> bool:
        said = f'"{join.name}"'
        signals = [text for journal in self._watch.journals.values() for text in journal.signals.values()]
        return said in map(inline_text, signals)


def _joins(rng: random.Random, seconds: float, nodes: int) -> list[Join]:
    return [
        Join(
            f"join{number}",
            rng.random() * seconds,
            rng.randrange(nodes),
            rng.choice((0.0, 0.1, 3.0)),
            rolls_back=rng.random() < 0.2,
            in_line=rng.random() < 0.4,
            tells=rng.choice(("", "", "r0", "r1")),
        )
        for number in range(rng.choice((1, 3, 6)))
    ]
