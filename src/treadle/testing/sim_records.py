"""Records in the simulation: a projection that lives in the store, or beside it, and what must be in its table.

In the store, what a success gives is applied in the transaction of the append, or the append is unfit; beside it a
follower of some node applies it. Either way each record of each success is there once, in the order of its journal.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

import msgspec

from treadle.authoring.projections import Projection
from treadle.core import events as ev
from treadle.core.effects import Given, ProjectionSpec
from treadle.core.events import Handle, decode_events
from treadle.core.values import bare
from treadle.runtime.client import App
from treadle.runtime.projections import Live
from treadle.store.base import Answer, Append
from treadle.store.memory_data import MemoryData, StoredRun
from treadle.store.projection import Recorded
from treadle.testing.invariants import RECORDS, Fail
from treadle.testing.sim_codec import decoded, inline_text
from treadle.testing.sim_conduct import PROJECTION, written_by
from treadle.testing.sim_faults import Faults
from treadle.testing.sim_loop import Life
from treadle.testing.sim_oracle import Oracle

# In calm, a follower of a live node looks at all runs that often, and more than twice.
_PATIENCE = 60.0
# A row: collection, key, data as JSON text, the run's id, the step.
_Row = tuple[str, str, str, str, str]


class Tables:
    """What all nodes of a world share of their projection."""

    def __init__(self, seed: int, seconds: float, fail: Fail, kind: str | None = None) -> None:
        # Drawn apart, so that the other worlds are what they were.
        rng = random.Random(f"records of {seed}")
        drawn = rng.choice(("", "", "", "hosted", "beside"))
        self.kind = drawn if kind is None else kind
        # When an operator has the table made anew; in the store that is for its own database to do.
        count = rng.choice((0, 0, 1, 3)) if self.kind == "beside" else 0
        self.rebuilt_at = [seconds * rng.random() for _ in range(count)]
        self._fail = fail
        # By run key: what was recorded and written, and up to which version a follower has brought it.
        self.rows: dict[str, list[_Row]] = {}
        self.writes: dict[str, list[tuple[str, list[Any]]]] = {}
        self.positions: dict[str, int] = {}

    def live(self, faults: Faults, life: Life) -> Mapping[str, Live]:
        """The projection as a node has it."""
        if not self.kind:
            return {}
        projection = Projection(PROJECTION, migrations=["things"])
        projection.collection(PROJECTION, "put")
        return {PROJECTION: Live(projection, _Database(self, faults, life), hosted=self.kind == "hosted")}

    @staticmethod
    async def rebuild(app: App) -> None:
        """What an operator does who has the table made anew."""
        await app.projection(PROJECTION).rebuild()

    # -- in the store --------------------------------------------------------------------------------------------------

    def unfit(self, append: Append, run: StoredRun | None) -> Answer | None:
        """The answer to an append of which a record is refused; None if all are taken."""
        for given in append.given if self.kind == "hosted" and run is not None else ():
            for collection, key, _data in _records(append, run, given):
                if refuses(collection, key):
                    return Answer("unfit", unfit=(given.lease, f"no {key}"))
        return None

    def take(self, append: Append, run: StoredRun) -> None:
        """Apply what a committed append gives."""
        for given in append.given if self.kind == "hosted" else ():
            rows = self.rows.setdefault(append.key, [])
            for collection, key, data in _records(append, run, given):
                rows.append((collection, key, data, run.head.id, given.at))
            self.writes.setdefault(append.key, []).extend((given.at, one.values) for one in given.writes)

    # -- at the end ----------------------------------------------------------------------------------------------------

    async def settle(self, data: MemoryData, now: Callable[[], float]) -> None:
        """Wait until the followers have brought all."""
        deadline = now() + _PATIENCE
        while self.kind == "beside" and any(self.positions.get(key, 0) < run.version for key, run in data.runs.items()):
            if now() > deadline:
                self._fail(RECORDS, "the last records do not come")
                return
            await asyncio.sleep(1.0)

    def judge(self, oracles: Mapping[str, Oracle], data: MemoryData) -> None:
        """Compare the table with the journals of the runs that are there."""
        if not self.kind:
            return
        for key, run in data.runs.items():
            oracle = oracles[key]
            found = [(*row[:2], msgspec.json.decode(row[2]), *row[3:]) for row in self.rows.get(key, ())]
            expected = [
                (*record, run.head.id, event.at)
                for event in _successes(run)
                for handle in (event.effects.records if event.effects is not None else ())
                for record in oracle.value(handle)
            ]
            if found != expected:
                self._fail(
                    RECORDS, f"{run.head.id}: {len(found)} of {len(expected)} are there: {_first(found, expected)}"
                )
            if self.kind == "hosted":
                self._check_writes(key, oracle, expected)

    def _check_writes(self, key: str, oracle: Oracle, recorded: Iterable[Sequence[Any]]) -> None:
        expected = [(event.at, written_by(name, event.attempt)) for event, name in oracle.made]
        expected = [(at, values) for at, values in expected if values is not None]
        if self.writes.get(key, []) != expected:
            found = self.writes.get(key, [])
            self._fail(RECORDS, f"{oracle.run.head.id}: it wrote {_first(found, expected)}")
        for collection, name, *_ in recorded:
            if refuses(collection, name):
                self._fail(RECORDS, f"{oracle.run.head.id} succeeded with {name}, which was refused")


def refuses(collection: str, key: str) -> bool:
    """Whether a projection in the store takes no such record."""
    return crc32(f"{collection} {key}".encode()) % 150 == 0


def _successes(run: StoredRun) -> Iterable[ev.StepSucceeded]:
    for row in run.rows:
        for event in decode_events(row.events) if isinstance(row.events, str) else row.events:
            if isinstance(event, ev.StepSucceeded):
                yield event


def _records(append: Append, run: StoredRun | None, given: Given) -> Iterable[tuple[str, str, str]]:
    rows = {**(run.payloads if run is not None else {}), **dict(append.payloads)}
    for handle in given.records:
        for collection, key, data in msgspec.json.decode(_text(handle, rows), type=list[tuple[str, str, msgspec.Raw]]):
            yield collection, key, bytes(data).decode()


def _text(handle: Handle, rows: Mapping[str, bytes]) -> str:
    where = bare(handle)
    return inline_text(handle) if where[0] == "=" else decoded(rows[where[1:]]).decode()


def _first(found: Sequence[Any], expected: Sequence[Any]) -> str:
    for number, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return f"number {number} is {one}, not {other}"[:400]
    return f"{found[len(expected) :]} too many, {expected[len(found) :]} missing"[:400]


class _Database:
    """The projection's database, as one node reaches it. Each call may fail, before or after it took effect."""

    def __init__(self, tables: Tables, faults: Faults, life: Life) -> None:
        self._tables = tables
        self._faults = faults
        self._life = life

    def define(self, spec: ProjectionSpec) -> None:
        """It is there."""

    def rebuild(self, spec: ProjectionSpec) -> None:
        """Forget all, so that followers bring it again; what lives in the store is there already."""
        if self._tables.kind == "beside":
            self._faults.call(self._life, "rebuild", self._clear)

    def _clear(self) -> None:
        self._tables.rows.clear()
        self._tables.positions.clear()

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """All rows."""
        names = ("collection", "key", "data", "run", "step")
        return [dict(zip(names, row, strict=True)) for rows in self._tables.rows.values() for row in rows]

    def execute(self, name: str, sql: str, values: Sequence[Any] = ()) -> int:
        """Nothing is changed."""
        return 0

    def check(self, name: str, sql: str) -> None:
        """Any statement is right."""

    def position(self, name: str, run: str) -> int:
        """How far a follower has brought a run."""
        return self._faults.call(self._life, "position", lambda: self._tables.positions.get(run, 0))

    def apply(self, spec: ProjectionSpec, run: str, after: int, version: int, records: Sequence[Recorded]) -> bool:
        """Add rows, and note the position, if that is what the follower thinks it is."""

        def apply() -> bool:
            tables = self._tables
            if tables.positions.get(run, 0) != after:
                return False
            tables.positions[run] = version
            tables.rows.setdefault(run, []).extend((r.collection, r.key, r.data, r.run, r.step) for r in records)
            return True

        return self._faults.call(self._life, "apply_records", apply)

    def close(self) -> None:
        """Nothing is open."""
