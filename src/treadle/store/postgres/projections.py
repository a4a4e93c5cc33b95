"""Projections in PostgreSQL databases: in the store's own, where records are applied with the outcomes, or in others.

They live in one schema: their tables, what is known of them (`treadle_projections`), positions of followers, and a
function for each, by which records are applied (`giving`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec

from treadle.errors import ProjectionError, StoreUnavailableError
from treadle.store.postgres.arrays import FLOAT, TEXT, small
from treadle.store.postgres.connection import Guest, GuestError, Link, Record, Statement, TakenBackError
from treadle.store.postgres.giving import (
    DEFINE_LOCK,
    FOLLOW,
    PARAMETERS,
    TABLES,
    Lists,
    apply_function,
    apply_name,
    bodies_of,
    body_in,
)
from treadle.store.postgres.location import Location
from treadle.store.postgres.sql_text import count_places, first_word, named, numbered, quote_of
from treadle.store.projection import (
    REGISTERS,
    Known,
    Opened,
    Projections,
    ProjectionSpec,
    Recorded,
    StatementError,
    belongs,
    recorded,
    text_of,
)

# Programs before this version of the store's schema give nothing to projections.
GIVES: Final = 6
_JSONB: Final = 3802
_TYPES: Final = {"text": TEXT, "jsonb": _JSONB, "float8": FLOAT}
_READS: Final = ("SELECT", "WITH", "VALUES", "TABLE", "SHOW", "EXPLAIN")
_CHANGES: Final = ("INSERT", "UPDATE", "DELETE", "MERGE", "WITH")
# The server cuts longer names; `treadle_apply_` comes before those of functions.
_NAME_BYTES: Final = 48
# So many statements are known to be good; more are looked at again.
_CHECKED: Final = 1000
_PAGE: Final = 500

_RELATIONS: Final = "SELECT c.relname FROM pg_class c WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind <> 't'"
# Of which kinds something can be dropped with its kind's name, in an order in which little depends on what goes.
_DROPS: Final = (
    (
        "SELECT c.oid::regclass::text, c.relname, CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'"
        " WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'S' THEN 'SEQUENCE' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END"
        " FROM pg_class c WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind = ANY ('{v,m,r,p,f,S,c}')"
        " ORDER BY position(c.relkind::text IN 'vmrpfSc')"
    ),
    (
        "SELECT p.oid::regprocedure::text, p.proname, 'ROUTINE' FROM pg_proc p"
        " WHERE p.pronamespace = to_regnamespace(%s)"
    ),
    (
        "SELECT t.oid::regtype::text, t.typname, 'TYPE' FROM pg_type t"
        " WHERE t.typnamespace = to_regnamespace(%s) AND t.typtype IN ('e', 'd')"
    ),
)
_PAST: Final = (
    "DECLARE treadle_past NO SCROLL CURSOR FOR SELECT r.key, r.id, j.time, j.events FROM @journal j"
    " JOIN @runs r ON r.n = j.run WHERE strpos(j.events, '\"records\":') > 0 ORDER BY j.time, j.run, j.version"
)
_encode = msgspec.json.Encoder().encode


class PostgresProjections(Projections):
    """Projections in one schema of a database. `hosted`: it is the store's."""

    def __init__(self, location: Location, *, hosted: bool, opened: Opened | None = None) -> None:
        self.shown = location.shown
        self.hosted = hosted
        self._register = REGISTERS[hosted]
        self._opened = opened
        self._lock = threading.RLock()
        self._checked: set[tuple[str, str]] = set()
        self._link = Link(location, name="treadle projections")
        self._schema = self._link.schema.removesuffix(".")

    # -- what `Projections` asks for -----------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Generator[None, None, None]:
        link = self._link
        with self._lock:
            try:
                with link.transaction():
                    link.all(f"SELECT {DEFINE_LOCK}")
                    link.all("SELECT set_config('search_path', %s, true)", (link.search_path,))
                    if not self._is_ready():
                        self._make_schema()
                    yield
            except TakenBackError as error:
                raise StoreUnavailableError(f"{self.shown}: rivals have taken it back; try again") from error

    def _is_ready(self) -> bool:
        found = self._link.all("SELECT to_regclass(%s) IS NOT NULL", (f"{self._link.schema}{self._register}",))
        return bool(found[0][0])

    def _make_schema(self) -> None:
        link = self._link
        if not link.all("SELECT to_regnamespace(%s) IS NOT NULL", (self._schema,))[0][0]:
            link.script(f"CREATE SCHEMA {self._schema}")
        link.script(TABLES)
        link.script(FOLLOW.definition)

    def _known(self, name: str) -> Known | None:
        with self._lock:
            if not self._is_ready():
                return None
            sql = f"SELECT migrations, statements FROM @{self._register} WHERE name = %s"
            found = self._link.all(sql, (name,))
        return Known(json.loads(found[0][0]), json.loads(found[0][1])) if found else None

    def _names(self) -> list[str]:
        return [name for (name,) in self._link.all(f"SELECT name FROM @{self._register}")]

    def _tables(self) -> set[str]:
        return {name for (name,) in self._link.all(_RELATIONS, (self._schema,))}

    def _script(self, name: str, text: str) -> None:
        before = self._changed()
        # Inside a function nothing can end the transaction, or be kept out of it.
        inner = quote_of(text)
        outer = quote_of(text + inner)
        try:
            self._link.call(Guest(f"DO {outer} BEGIN EXECUTE {inner}{text}{inner}; END {outer}".encode()))
        except GuestError as error:
            raise StatementError(error.message) from error
        for table, count in self._changed().items():
            if not belongs(name, table) and count != before.get(table):
                raise StatementError(f"it changes rows of {table!r}, which is not the projection's")

    def _changed(self) -> dict[str, int]:
        """How many rows of tables the open transaction has changed."""
        rows = self._link.all(
            "SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_xact_user_tables"
            " WHERE n_tup_ins + n_tup_upd + n_tup_del > 0"
        )
        return dict(rows)

    def _enter(self, spec: ProjectionSpec, known: Known) -> None:
        if len(spec.name) > _NAME_BYTES:
            raise ProjectionError(f"projection {spec.name!r} has a name of more than {_NAME_BYTES} characters")
        places = {name: f"${place}" for place, name in enumerate(PARAMETERS, 1)}
        types = [_TYPES[kind] for kind in PARAMETERS.values()]
        for collection, sql in spec.statements.items():
            what = f"the statement of {spec.name!r} for {collection!r}"
            plan = self._compile(spec.name, named(sql, places), types, what)
            if first_word(sql) not in _CHANGES or "Output" in plan:
                raise ProjectionError(f"{what} gives rows, or changes none; write an INSERT, UPDATE, DELETE or MERGE")
        try:
            self._link.call(Guest(apply_function(spec, self._link.schema).encode()))
        except GuestError as error:
            raise ProjectionError(f"the statements of {spec.name!r} cannot be used: {error.message}") from error
        self._link.run(
            f"INSERT INTO @{self._register} (name, migrations, statements) VALUES (%s, %s, %s)"
            " ON CONFLICT (name) DO UPDATE SET migrations = excluded.migrations, statements = excluded.statements",
            (spec.name, json.dumps(known.migrations), json.dumps(known.statements)),
        )
        if self.hosted and spec.statements:
            self._link.run("UPDATE @meta SET serves = greatest(serves, %s)", (GIVES,))

    def _forget(self, name: str) -> None:
        link = self._link
        for sql in _DROPS:
            for written, own, kind in link.all(sql, (self._schema,)):
                if belongs(name, own):
                    self._drop(name, f"DROP {kind} IF EXISTS {written} CASCADE")
        self._drop(name, f"DROP FUNCTION IF EXISTS {apply_name(name, link.schema)}")
        link.run(f"DELETE FROM @{self._register} WHERE name = %s", (name,))
        link.run("DELETE FROM @treadle_positions WHERE projection = %s", (name,))

    def _drop(self, name: str, sql: str) -> None:
        try:
            self._link.call(Guest(sql.encode()))
        except GuestError as error:
            raise ProjectionError(f"projection {name!r} cannot be dropped: {error.message}") from error

    def _replay(self, spec: ProjectionSpec) -> None:
        link = self._link
        if not spec.statements:
            return
        link.run(_PAST)
        while rows := link.all(f"FETCH {_PAGE} FROM treadle_past"):
            lists = self._past(rows)
            call = f"SELECT {apply_name(spec.name, link.schema)}($1, $2, $3, $4)"
            self._give(Guest(call.encode(), lists.values(), FOLLOW.types[4:]))
        link.run("CLOSE treadle_past")

    def _past(self, rows: Sequence[Record]) -> Lists:
        """The lists of records in rows of journals."""
        found = [(key, run, time, at, handle) for key, run, time, text in rows for at, handle in recorded(text)]
        bodies = bodies_of(self._link, [(key, handle) for key, _, _, _, handle in found])
        lists = Lists()
        for key, run, time, at, handle in found:
            lists.add(text_of(run, handle, partial(body_in, bodies, key), self._opened), run, at, time)
        return lists

    def _give(self, guest: Guest) -> bytes | None:
        try:
            return self._link.call(guest)[0]
        except GuestError as error:
            raise ProjectionError(error.message) from error

    # -- statements ----------------------------------------------------------------------------------------------------

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a statement by column name; one that writes is refused."""
        if first_word(sql) not in _READS:
            raise ProjectionError(f"{self.shown}: query() changes nothing; use execute(): {sql}")
        names, rows, _ = self._ask(sql, values, reads=True)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def execute(self, name: str, sql: str, values: Sequence[Any] = ()) -> int:
        """Carry out a statement in a transaction of its own."""
        self.check(name, sql)
        return max(0, self._ask(sql, values, reads=False)[2])

    def _ask(self, sql: str, values: Sequence[Any], *, reads: bool) -> tuple[list[str], list[Record], int]:
        sent = numbered(sql)
        if (takes := count_places(sent)) != len(values):
            raise ProjectionError(f"{self.shown}: the statement takes {takes} values, {len(values)} are given: {sql}")
        with self._lock:
            try:
                return self._link.ask(sent, values, reads=reads)
            except GuestError as error:
                raise ProjectionError(f"{self.shown}: {error.message}") from error

    def check(self, name: str, sql: str) -> None:
        """Raise for a statement that cannot be planned, or that is not the projection's to carry out."""
        if (name, sql) in self._checked:
            return
        with self._lock:
            self._compile(name, numbered(sql), [], "the statement")
        if len(self._checked) < _CHECKED:
            self._checked.add((name, sql))

    def _compile(self, name: str, sql: str, types: Sequence[int], what: str) -> dict[str, Any]:
        """Let the server plan a statement, which it does not carry out; the plan."""
        if first_word(sql) not in (*_CHANGES, "SELECT", "VALUES"):
            raise ProjectionError(f"{what} is none that changes or reads rows: {sql}")
        kinds = types or [0] * count_places(sql)
        path: Statement = (b"SELECT set_config('search_path', $1, true)", [self._link.search_path.encode()], [TEXT])
        explain = Guest(f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) {sql}".encode(), [None] * len(kinds), kinds)
        try:
            _, said = self._link.call(path, explain)
        except GuestError as error:
            raise ProjectionError(f"{what} cannot be used: {error.message}: {sql}") from error
        plan: dict[str, Any] = json.loads(said or b"[]")[0]["Plan"]
        for schema, table in _targets(plan):
            if not (belongs(name, table) and schema == self._link.location.schema):
                raise ProjectionError(
                    f"{what} may change only tables called {name} or {name}_..., and nothing of the transaction: {sql}"
                )
        return plan

    # -- following -----------------------------------------------------------------------------------------------------

    def position(self, name: str, run: str) -> int:
        """Up to which version of a run's journal records were applied."""
        with self._lock:
            ((found,),) = self._link.read(
                ("SELECT version FROM @treadle_positions WHERE projection = %s AND run = %s", (name, run))
            )[0] or [(0,)]
        return int(found)

    def apply(self, spec: ProjectionSpec, run: str, after: int, version: int, records: Sequence[Recorded]) -> bool:
        """Apply a run's records, and move its position, in one transaction."""
        lists = _lists_of(records)
        values = [spec.name.encode(), run.encode(), small(after), small(version)]
        given: list[bytes | None] = [*values, *(lists.values() if lists else [None] * 4)]
        with self._lock:
            return self._give(Guest(FOLLOW.text(self._link.schema), given, FOLLOW.types)) == b"\x01"

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._link.end()


def _lists_of(records: Sequence[Recorded]) -> Lists:
    """Records in lists, each of what a step has given."""
    lists = Lists()
    place: tuple[str, str, float] | None = None
    texts: list[str] = []
    for record in (*records, None):
        now = None if record is None else (record.run, record.step, record.at)
        if now != place and place is not None:
            lists.add(f"[{','.join(texts)}]".encode(), *place)
            texts = []
        place = now
        if record is not None:
            texts.append(f"[{_encode(record.collection).decode()},{_encode(record.key).decode()},{record.data}]")
    return lists


def _targets(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The tables that a plan changes, each with its schema."""
    for own in (plan, *plan.get("Target Tables", ())):
        if plan["Node Type"] == "ModifyTable" and "Relation Name" in own:
            yield own.get("Schema", ""), own["Relation Name"]
    for below in plan.get("Plans", ()):
        yield from _targets(below)
