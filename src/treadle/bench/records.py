"""`records`: steps give records to a projection; measured against inserting the same rows without an engine."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from treadle.authoring.builder import PlanBuilder
from treadle.authoring.context import context
from treadle.authoring.decorators import step
from treadle.authoring.projections import Projection
from treadle.authoring.registry import Registry
from treadle.bench.ceilings import raw_inserts
from treadle.connect import connect

registry = Registry()
# Records of a step.
EACH = 10
_APPLY = (
    "INSERT INTO bench_pages (url, status) VALUES (:key, CAST(:data ->> 'status' AS INTEGER))"
    " ON CONFLICT (url) DO UPDATE SET status = excluded.status"
)
_TABLE = "CREATE TABLE bench_pages (url TEXT PRIMARY KEY, status INTEGER)"


@step(registry=registry, name="bench:record")
async def give(first: int) -> None:
    """Give a few records."""
    own = context()
    for number in range(first, first + EACH):
        own.record("page", f"http://localhost/{number}", {"status": 200, "links": [number]})


async def records(store: str, size: int) -> tuple[float, int, list[float], float, str]:
    """Start runs of ten steps of ten records each, and wait until the projection has all."""
    pages = Projection("bench_pages", migrations=[_TABLE])
    pages.collection("page", _APPLY)
    plans: list[Any] = []
    for begin in range(0, size, EACH * 10):
        builder = PlanBuilder("records", registry=registry)
        for first in range(begin, min(begin + EACH * 10, size), EACH):
            builder.step(f"s{first}", give, first)
        plans.append(builder.build())
    amount = -(-size // EACH) * EACH
    async with connect(store, registry=registry, projections=[pages], rebuild=True) as app:
        began, busy = time.perf_counter(), time.process_time()
        runs = [await app.start(plan) for plan in plans]
        await asyncio.gather(*[run.result() for run in runs])
        await app.projection("bench_pages").caught_up()
        seconds = time.perf_counter() - began
        busy = time.process_time() - busy
        [counted] = await app.projection("bench_pages").query("SELECT count(*) AS rows FROM bench_pages")
        assert counted["rows"] == amount
        durability = app.durability
    rows = [(f"http://localhost/{number}", json.dumps({"status": 200})) for number in range(amount)]
    notes = (
        f"records a second instead of steps, {EACH} a step, with the runs and steps that give them; {durability};"
        f" {amount / busy:.0f} records a second of processor time;"
        " ceiling: the same rows inserted in one transaction"
    )
    return seconds, amount, [seconds / amount], amount / _raw(store, rows), notes


def _raw(store: str, rows: list[tuple[str, str]]) -> float:
    if store.startswith("postgres"):
        from treadle.bench import postgres_ceiling

        return postgres_ceiling.raw_inserts(store, _TABLE, _APPLY, rows)
    return raw_inserts(_TABLE, _APPLY, rows)
