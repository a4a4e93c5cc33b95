"""A process that claims and ends tasks of a queue with limits, among others: started by `test_postgres_limits`.

What it holds it enters into a table of the test while it holds it, and then looks how many tasks all processes hold. It
prints the most that it saw of the queue, the most of a key, how many tasks it had, and how many it made.
"""

from __future__ import annotations

import sys

import psycopg

from treadle.core.commands import Task
from treadle.store.postgres import PostgresStore
from treadle.testing.contract_kit import NOW, Party, key_of, report_of, task_of

KEYS = "ab"


def main(url: str, conninfo: str, number: int, count: int, processes: int) -> None:
    store = PostgresStore.from_url(url)
    store.open()
    party = Party(store, f"s{number}")
    run = key_of(number)
    most = most_of_key = had = 0
    with psycopg.connect(conninfo, autocommit=True) as con:
        con.execute("INSERT INTO begun VALUES (%s)", (number,))
        while con.execute("SELECT count(*) < %s FROM begun", (processes,)).fetchall() == [(True,)]:
            # All begin at the same time.
            pass
        start = [task_of(run, n, key=KEYS[n % 2]) for n in range(count // 2)]
        leased = party.start(run, tasks=start, slots=2).leased
        coming = count // 2
        while leased or con.execute("SELECT 1 FROM treadle.tasks LIMIT 1").fetchall():
            for task in leased:
                con.execute("INSERT INTO held VALUES (%s, %s, %s)", (task.run, task.number, task.key))
            ((all_, of_key),) = con.execute(
                "SELECT coalesce(sum(n), 0), coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM held GROUP BY key) k"
            ).fetchall()
            most, most_of_key, had = max(most, int(all_)), max(most_of_key, of_key), had + len(leased)
            for task in leased:
                con.execute("DELETE FROM held WHERE run = %s AND number = %s", (task.run, task.number))
            own = [task.number for task in leased if task.run == run]
            others = [task for task in leased if task.run != run]
            party.report(*map(report_of, others))
            again: list[Task] = []
            if own and coming < count:
                again = [task_of(run, coming, key=KEYS[coming % 2])]
                coming += 1
            handed = party.append(run, ended=own, tasks=again, slots=2).leased if own else ()
            leased = [*handed, *party.claim(2, now=NOW)]
    store.close()
    print(most, most_of_key, had, coming)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
