"""What a store tells about a crawl, asked with plain SQL through the documented views (docs/stores.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw


def ask(store: Path, sql: str, *values: str | int) -> list[tuple[Any, ...]]:
    """The rows of a query on a store that others may be writing."""
    connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5000)
    try:
        return list(connection.execute(sql, values))
    finally:
        connection.close()


def recorded(store: Path, run: str) -> dict[str, list[tuple[int, float]]]:
    """Every recorded success: the page, and for each of its records the journal's version and time."""
    found: dict[str, list[tuple[int, float]]] = {}
    sql = "SELECT at, version, time FROM v_events WHERE run = ? AND kind = 'step_succeeded' ORDER BY version"
    for page, version, time in ask(store, sql, run):
        found.setdefault(page, []).append((version, time))
    return found


def pages_done(store: Path, run: str) -> int:
    """How many pages have their outcome; 0 while there is no store yet."""
    if not store.exists():
        return 0
    try:
        return int(ask(store, "SELECT count(*) FROM v_steps WHERE run = ? AND status = 'succeeded'", run)[0][0])
    except apsw.Error:
        # The first process is still making the file.
        return 0


def faults(store: Path, run: str, before: dict[str, list[tuple[int, float]]]) -> list[str]:
    """What is wrong with a finished crawl that was killed when `before` was recorded; empty if nothing is."""
    after = recorded(store, run)
    killed_at = max((version for records in before.values() for version, _ in records), default=0)
    found = [
        f"{page}: its outcome is recorded {len(records)} times" for page, records in after.items() if len(records) > 1
    ]
    found += [
        f"{page}: what was recorded before the kill has changed" for page in before if after.get(page) != before[page]
    ]
    status = ask(store, "SELECT status FROM v_runs WHERE id = ?", run)
    found += [] if status == [("succeeded",)] else [f"the run is {status}"]
    sql = "SELECT address, status FROM v_steps WHERE run = ? AND status NOT IN ('succeeded', 'failed')"
    found += [f"{page} is {status}" for page, status in ask(store, sql, run)]
    attempts = "SELECT DISTINCT address FROM v_attempts WHERE run = ? AND version > ?"
    again = before.keys() & {page for (page,) in ask(store, attempts, run, killed_at)}
    return found + [f"{page}: recorded before the kill, and fetched again" for page in sorted(again)]
