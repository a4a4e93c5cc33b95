"""Changes of what is stored of queues: their limits, their pauses, and how their tasks are lined up for them.

Whoever changes a definition changes the rows of all living sessions first. That waits for what they have under way, and
what they begin later finds out; so within any transaction of a session the definitions stay as it knows them.
"""

from __future__ import annotations

from collections.abc import Sequence

from treadle.store.ledger import Definition, Gate, in_force, redefined
from treadle.store.postgres.connection import Link
from treadle.store.postgres.limits import Entry, Limits
from treadle.store.queues import Bucket, QueueChange, full_at

BUCKETS = "SELECT b.key, b.allowance, b.at FROM @buckets b JOIN @queues q ON q.n = b.queue WHERE q.name = %s"


def set_queues(limits: Limits, changes: Sequence[QueueChange], now: float) -> list[bool]:
    """Change definitions; whether each changed anything. What is leased stays leased."""
    try:
        answers: list[bool] = limits.link.repeated(lambda: _change(limits, changes, now))
    except BaseException:
        limits.forget_definitions()
        raise
    limits.room = limits.room or any(answers)
    return answers


def _change(limits: Limits, changes: Sequence[QueueChange], now: float) -> list[bool]:
    link = limits.link
    # One at a time; a session that is entered meanwhile waits too.
    link.all("SELECT 1 FROM @meta FOR UPDATE")
    found = link.all("SELECT name, defined, override, paused FROM @queues")
    definitions: dict[str, Definition] = {
        name: (defined, override, paused) for name, defined, override, paused in found
    }
    answers: list[bool] = []
    changed: dict[str, Definition] = {}
    buckets: dict[str, dict[str, Bucket]] = {}
    for change in changes:
        before = definitions.get(change.name, (None, None, False))
        after = redefined(before, change)
        kept = change.kept(in_force(after[0], after[1]))
        if kept is not None and kept != _buckets(link, change.name):
            buckets[change.name] = kept
        answers.append(before != after or change.name in buckets)
        if answers[-1]:
            definitions[change.name] = changed[change.name] = after
    if changed:
        # Before any queue is touched, which those who have begun may want to lock.
        link.all("SELECT 1 FROM @sessions WHERE NOT ended ORDER BY n FOR UPDATE")
        ((version,),) = link.all("UPDATE @meta SET queues = queues + 1 RETURNING queues")
        link.run("UPDATE @sessions SET queues = %s WHERE NOT ended", (version,))
        for name, definition in sorted(changed.items()):
            _write(limits, name, definition)
        limits.read()
        gates = [limits.gates[name] for name in sorted(changed)]
        for gate in gates:
            _line_up(limits, gate)
            if gate.name in buckets:
                _put_buckets(link, gate, buckets[gate.name])
        _settle(limits, gates, now)
    return answers


def _buckets(link: Link, name: str) -> dict[str, Bucket]:
    return {key: Bucket(allowance, at) for key, allowance, at in link.all(BUCKETS, (name,))}


def _put_buckets(link: Link, gate: Gate, buckets: dict[str, Bucket]) -> None:
    """Let the rates of a queue allow this, and nothing else."""
    link.run("DELETE FROM @buckets WHERE queue = %s", (gate.n,))
    for key, bucket in buckets.items():
        rules = gate.limits
        rate, burst = (rules.key_rate, rules.key_burst) if key else (rules.rate, rules.burst)
        link.run(
            "INSERT INTO @buckets (queue, key, allowance, at, full_at, opens_at) VALUES (%s, %s, %s, %s, %s, NULL)",
            (gate.n, key, bucket.allowance, bucket.at, full_at(bucket, rate, burst)),
        )


def _write(limits: Limits, name: str, definition: Definition) -> None:
    limits.link.run(
        "INSERT INTO @queues AS q (name, defined, override, paused, version) VALUES (%s, %s, %s, %s, 1)"
        " ON CONFLICT (name) DO UPDATE SET defined = excluded.defined, override = excluded.override,"
        " paused = excluded.paused, version = q.version + 1",
        (name, *definition),
    )


def _line_up(limits: Limits, gate: Gate) -> None:
    """Let the tasks of a queue wait as the limits that hold now want it."""
    link, n, rules = limits.link, gate.n, gate.limits
    link.run("UPDATE @tasks SET gate = %s WHERE queue = %s AND gate = 0", (n, gate.name))
    if not rules.rate:
        link.run("DELETE FROM @buckets WHERE queue = %s AND key = ''", (n,))
    if not rules.key_rate:
        link.run("DELETE FROM @buckets WHERE queue = %s AND key <> ''", (n,))
    if not rules.fair:
        link.run("UPDATE @tasks SET turn = 0 WHERE gate = %s AND turn <> 0", (n,))
        link.run("DELETE FROM @shares WHERE queue = %s", (n,))
        link.run("DELETE FROM @turns WHERE queue = %s", (n,))
    if rules.by_key:
        link.run("UPDATE @tasks SET state = -1 WHERE gate = %s AND gate <> 0 AND state = 0 AND key <> ''", (n,))
    else:
        link.run("UPDATE @tasks SET state = 0 WHERE gate = %s AND gate <> 0 AND state = -1", (n,))


def _settle(limits: Limits, gates: Sequence[Gate], now: float) -> None:
    """Let the first tasks of all keys wait in front that may start."""
    found = limits.link.all(
        "SELECT DISTINCT gate, key FROM @tasks WHERE gate = ANY (%s) AND gate <> 0 AND state = -1",
        ([gate.n for gate in gates],),
    )
    numbers = limits.definitions.numbers
    lined = [(numbers[n], key) for n, key in found]
    _, facts = limits.enter(None, Entry(gates=[*((gate, "") for gate in gates), *lined]), at=now, begins=False)
    for gate, key in lined:
        facts.touch(gate.n, key)
    limits.call(facts.settling(limits.schema, now))
