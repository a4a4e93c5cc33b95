"""The examination of a PostgreSQL store that `treadle doctor` shows."""

from __future__ import annotations

from treadle.errors import StoreError
from treadle.store.base import Health
from treadle.store.postgres.connection import Link

# Each finds rows that nothing should have left behind.
_LEFTOVERS = {
    **{
        f"rows of {table} belong to no run": (
            f"SELECT count(*) FROM @{table} x WHERE NOT EXISTS (SELECT 1 FROM @runs r WHERE r.n = x.run)"
        )
        for table in ("heads", "journal", "labels", "steps", "tasks", "payloads", "inbox")
    },
    "runs have no head": "SELECT count(*) FROM @runs r WHERE NOT EXISTS (SELECT 1 FROM @heads h WHERE h.run = r.n)",
    "runs have no plan": "SELECT count(*) FROM @runs r WHERE NOT EXISTS (SELECT 1 FROM @plans p WHERE p.n = r.plan)",
    "runs have gaps in their journal": (
        "SELECT count(*) FROM @runs r WHERE r.version <>"
        " (SELECT count(*) FROM @journal j WHERE j.run = r.n AND j.version BETWEEN 1 AND r.version)"
    ),
    "journal rows are above their run's version": (
        "SELECT count(*) FROM @journal j JOIN @runs r ON r.n = j.run WHERE j.version > r.version"
    ),
    "tasks are leased to no living session": (
        "SELECT count(*) FROM @tasks t WHERE t.state = 3"
        " AND NOT EXISTS (SELECT 1 FROM @sessions s WHERE s.n = t.session AND NOT s.ended)"
    ),
    "tasks do not count for the limits of their queue": (
        "SELECT count(*) FROM @tasks t JOIN @queues q ON q.name = t.queue WHERE t.gate <> q.n"
    ),
    "runs use a deleted run's number": "SELECT count(*) FROM @runs r JOIN @tombstones t ON t.n = r.n",
}

_SETTINGS = ("server_version", "synchronous_commit", "fsync", "full_page_writes", "max_connections")


def describe_durability(settings: dict[str, str]) -> str:
    """What a commit of this connection survives, said as the server is configured."""
    level = settings["synchronous_commit"]
    if settings["fsync"] != "on":
        return "PostgreSQL, fsync=off: survives any crash of processes; a power cut may destroy the whole database"
    if level == "off":
        return (
            "PostgreSQL, synchronous_commit=off: survives any crash of this process; a crash of the server may take the"
            " last commits"
        )
    standbys = settings["synchronous_standby_names"]
    if not standbys or level == "local":
        return f"PostgreSQL, synchronous_commit={level}: on the server's disk before it is answered"
    what = {
        "on": "on the disks of the server and of its synchronous standbys",
        "remote_apply": "on the disks of the server and of its synchronous standbys, and visible there,",
        "remote_write": "on the server's disk, and handed to the operating systems of its synchronous standbys,",
    }[level]
    return f"PostgreSQL, synchronous_commit={level}: {what} before it is answered"


def settings_of(link: Link) -> dict[str, str]:
    """The settings of the server, as this connection has them."""
    names = (*_SETTINGS, "synchronous_standby_names")
    columns = ", ".join(f"current_setting('{name}')" for name in names)
    ((*values,),) = link.all(f"SELECT {columns}")
    return dict(zip(names, values, strict=True))


def examine(link: Link) -> Health:
    """Check references and configuration; what cannot be read is a finding, not an error."""
    problems: list[str] = []
    facts = {"store": "postgres", "server": link.location.shown, "schema": link.location.schema}
    try:
        _examine(link, problems, facts)
    except StoreError as error:
        problems.append(str(error))
    return Health(problems, facts)


def _examine(link: Link, problems: list[str], facts: dict[str, str]) -> None:
    where = f"schema {link.location.schema}"
    settings = settings_of(link)
    facts |= {name.replace("_", " "): settings[name] for name in _SETTINGS}
    facts["durability"] = describe_durability(settings)
    for name, danger in (("fsync", "a power cut"), ("full_page_writes", "a power cut")):
        if settings[name] != "on":
            problems.append(f"{where}: {name} is {settings[name]}: {danger} may destroy the database; set it on")
    queries = [(sql, ()) for sql in _LEFTOVERS.values()]
    for what, found in zip(_LEFTOVERS, link.read(*queries), strict=True):
        ((count,),) = found
        if count:
            problems.append(f"{where}: {count} {what}")
    tables = ("runs", "tasks", "inbox")
    counts = link.read(
        *((f"SELECT count(*) FROM @{table}", ()) for table in tables),
        ("SELECT count(*) FROM @sessions WHERE NOT ended", ()),
        ("SELECT version FROM @meta", ()),
        (
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace"
            " WHERE s.nspname = %s AND c.relkind = 'r'",
            (link.location.schema,),
        ),
    )
    names = (*tables, "sessions", "schema version", "bytes")
    facts |= {name: str(found[0][0]) for name, found in zip(names, counts, strict=True)}
