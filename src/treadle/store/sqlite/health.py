"""The examination of a SQLite store that `treadle doctor` shows."""

from __future__ import annotations

import os

import apsw

from treadle.errors import StoreError
from treadle.store.base import Health
from treadle.store.sqlite.connection import Database, map_exceptions
from treadle.store.sqlite.schema import VERSION, pragma

_SYNCHRONOUS = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}
_MOST_PROBLEMS = 100

# Each finds rows that nothing should have left behind.
_LEFTOVERS = {
    **{
        f"rows of {table} belong to no run": f"SELECT count(*) FROM {table} WHERE run NOT IN (SELECT n FROM runs)"
        for table in ("heads", "journal", "labels", "steps", "tasks", "payloads", "inbox")
    },
    "runs have no head": "SELECT count(*) FROM runs WHERE n NOT IN (SELECT run FROM heads)",
    "runs have no plan": "SELECT count(*) FROM runs WHERE plan NOT IN (SELECT n FROM plans)",
    "plans miscount their runs": (
        "SELECT count(*) FROM plans p WHERE p.uses != (SELECT count(*) FROM runs r WHERE r.plan = p.n)"
    ),
    "runs have gaps in their journal": (
        "SELECT count(*) FROM runs r WHERE r.version !="
        " (SELECT count(*) FROM journal j WHERE j.run = r.n AND j.version BETWEEN 1 AND r.version)"
    ),
    "journal rows are above their run's version": (
        "SELECT count(*) FROM journal j JOIN runs r ON r.n = j.run WHERE j.version > r.version"
    ),
    "tasks are leased to no living session": (
        "SELECT count(*) FROM tasks WHERE state = 3 AND session NOT IN (SELECT n FROM sessions WHERE ended = 0)"
    ),
    "runs use a deleted run's number": "SELECT count(*) FROM runs WHERE n IN (SELECT n FROM tombstones)",
}


def examine(con: Database, path: str) -> Health:
    """Check structure, references and configuration; a damaged file is a finding, not an error."""
    problems: list[str] = []
    facts = {"store": "sqlite", "path": os.path.abspath(path)}
    try:
        with map_exceptions(path):
            _examine(con, path, problems, facts)
    except StoreError as error:
        problems.append(str(error))
    return Health(problems, facts)


def _examine(con: Database, path: str, problems: list[str], facts: dict[str, str]) -> None:
    facts["sqlite"] = apsw.sqlite_lib_version()
    facts["apsw"] = apsw.apsw_version()
    facts["journal mode"] = str(con.pragma("journal_mode"))
    facts["synchronous"] = _SYNCHRONOUS[pragma(con, "synchronous")]
    facts["schema version"] = f"{pragma(con, 'user_version')} of {VERSION}"
    facts["page size"] = str(pragma(con, "page_size"))
    for name, suffix in (("file bytes", ""), ("wal bytes", "-wal")):
        try:
            facts[name] = str(os.path.getsize(path + suffix))
        except OSError:
            facts[name] = "0"
    facts["free pages"] = str(pragma(con, "freelist_count"))
    if facts["journal mode"] != "wal":
        problems.append(f"{path}: the journal mode is {facts['journal mode']}, not wal")
    for (text,) in con.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})").fetchall():
        if text != "ok":
            problems.append(f"{path}: {text}")
    if problems:
        # What refers to what means little in a damaged file.
        return
    for what, sql in _LEFTOVERS.items():
        ((count,),) = con.execute(sql).fetchall()
        if count:
            problems.append(f"{path}: {count} {what}")
    for table in ("runs", "tasks", "inbox", "sessions"):
        ((count,),) = con.execute(f"SELECT count(*) FROM {table}").fetchall()
        facts[table] = str(count)
