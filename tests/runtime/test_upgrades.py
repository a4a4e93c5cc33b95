"""Two versions of Treadle on one store, as while machines are upgraded one by one.

The newer one is this one with a format of runs of its own, and with a migration more. It decides what it has started;
the steps are executed by the older one, which cannot read those runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.postgres_kit import query, shared_server, url_of
from tests.runtime.upgrade_kit import OLDER, life, make_newer
from tests.runtime.upgrade_target import LENGTH

from treadle import connect
from treadle.errors import SchemaVersionError

SECONDS = 60.0
EDITS = (
    ("store/base.py", r"\nFORMAT = 1\n", "\nFORMAT = 2\n"),
    ("store/sqlite/store.py", r'(from_url.*kernel: str = )"0.1.0"', r'\1"0.2.0"'),
    ("store/postgres/store.py", r'(from_url.*kernel: str = )"0.1.0"', r'\1"0.2.0"'),
    (
        "store/sqlite/schema.py",
        r"\nMIGRATIONS = \((.*)\)\n",
        r'\nMIGRATIONS = (\1, "ALTER TABLE runs ADD COLUMN colour TEXT NOT NULL DEFAULT \'\'")\n',
    ),
    (
        "store/postgres/schema.py",
        r"\nMIGRATIONS: (.*) = \((.*)\)\n",
        r'\nMIGRATIONS: \1 = (\2, ("ALTER TABLE @runs ADD COLUMN colour text NOT NULL DEFAULT \'\'",))\n',
    ),
)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the newer version is imported from."""
    return make_newer(tmp_path_factory.mktemp("newer"), EDITS)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/runs.db"
        return
    request.getfixturevalue("postgres_server")
    # Of its own: the newer version leaves it as others cannot use it again.
    schema = f"upgraded{os.getpid()}"
    yield url_of(shared_server(), schema)
    query(shared_server(), f"DROP SCHEMA {schema} CASCADE")


def told(url: str, sql: str) -> list[tuple[Any, ...]]:
    """What the views tell."""
    if url.startswith("sqlite"):
        with closing(apsw.Connection(url.removeprefix("sqlite:///"))) as con:
            return list(con.execute(sql))
    schema = url.partition("schema=")[2].partition("&")[0]
    return query(shared_server(), sql.replace("FROM ", f"FROM {schema}."))


async def test_a_store_that_a_newer_version_has_made_serves_an_older_one(newer: Path, url: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()

    with life(newer, url, gate, "client", "b0"), life(OLDER, url, gate, "worker", "a0"):
        async with connect(url, worker=False) as app, asyncio.timeout(SECONDS):
            for run_id in ("a0", "b0"):
                await app.run(run_id).wait()
            rows = await app.runs()

    assert {row.id: row.status for row in rows} == {"a0": "succeeded", "b0": "succeeded"}


async def test_an_older_version_works_beside_a_newer_one_and_leaves_its_runs_alone(
    newer: Path, url: str, tmp_path: Path
) -> None:
    older, gate = OLDER, tmp_path / "gate"
    ids = {"a0", "a1", "a2", "b0", "b1"}

    with ExitStack() as lives:
        first = lives.enter_context(life(older, url, gate, "worker", "a0", "a1"))
        # The newer version migrates the store, and only decides.
        starter = lives.enter_context(life(newer, url, gate, "client", "b0", "b1"))
        lives.enter_context(life(newer, url, gate, "client"))
        # The older one can still open the store.
        lives.enter_context(life(older, url, gate, "worker", "a2"))
        for process in (first, starter):
            process.kill()
            process.wait()
        gate.touch()
        async with connect(url, worker=False) as app, asyncio.timeout(SECONDS):
            for run_id in sorted(ids):
                await app.run(run_id).wait()
            rows = await app.runs()

    async with connect(url, worker=False) as app:
        with pytest.raises(SchemaVersionError, match="has format 2, this Treadle decides up to 1; upgrade it"):
            await app.run("b0").rewind("s3")
    assert {row.id: row.status for row in rows} == dict.fromkeys(ids, "succeeded")
    assert told(url, "SELECT DISTINCT kernel FROM v_events WHERE run LIKE 'b%'") == [("0.2.0",)]
    ends = told(url, "SELECT run, at, count(*) FROM v_events WHERE kind = 'step_succeeded' GROUP BY run, at")
    assert len(ends) == len(ids) * LENGTH
    assert {count for _run, _at, count in ends} == {1}
