"""What successes bring to projections in the store: statements of users that go with `commit_2` in one transaction.

A projection is a function of the schema, which its definition makes (`treadle_apply_NAME`): it applies lists of records
by the projection's statements, with plans that the server keeps. So one statement gives all records of a group to all
projections that are there, whichever process commits.

Who defines a projection holds a lock alone that those who give share. So what was committed before is read from the
journals by the definition, and what is committed after it meets the function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

from treadle.core.effects import Given, ProjectionSpec, Write
from treadle.core.values import bare
from treadle.errors import ProjectionError
from treadle.store.base import Append
from treadle.store.postgres.arrays import chunks, floats, texts
from treadle.store.postgres.connection import Guest, GuestError, Link, Statement
from treadle.store.postgres.functions import UNFIT, Function
from treadle.store.postgres.sql_text import literal, named, numbered, quote_of
from treadle.store.projection import Opened, UnfitError, text_of

TABLES = """
CREATE TABLE IF NOT EXISTS @treadle_projections (
    name text COLLATE "C" PRIMARY KEY,
    -- Hashes of the migrations that were applied, and the statement of each collection, both as JSON.
    migrations text NOT NULL,
    statements text NOT NULL
);
-- The same of those that a follower serves.
CREATE TABLE IF NOT EXISTS @treadle_followed (LIKE @treadle_projections INCLUDING ALL);
-- How far followers, and event sinks, have got in the journals of runs.
CREATE TABLE IF NOT EXISTS @treadle_positions (
    projection text COLLATE "C" NOT NULL,
    run text COLLATE "C" NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (run, projection)
);
"""
MIGRATION = (TABLES,)

# Locks by the schema's name: alone for who defines, shared for who gives.
DEFINE_LOCK = "pg_advisory_xact_lock(hashtext('treadle projections'), hashtext('@'))"
_GIVE_LOCK = "pg_advisory_xact_lock_shared(hashtext('treadle projections'), hashtext('@'))"
_APPLY = "EXECUTE 'SELECT @' || quote_ident('treadle_apply_' || lower(projection)) || '($1, $2, $3, $4)'"

# Lists of records, each of a step, to all projections. Not by the plans of the other functions: the statements of
# projections are planned as if their users had sent them.
GIVE = Function(
    "give_1",
    """
    lists bytea[]
    keys text[]
    steps text[]
    times double precision[]
    """,
    "void",
    f"""
    PERFORM {_GIVE_LOCK};
    FOR projection IN SELECT p.name FROM @treadle_projections p ORDER BY p.name LOOP
        IF ids IS NULL THEN
            SELECT array_agg((SELECT r.id FROM @runs r WHERE r.key = u.key) ORDER BY u.place) INTO ids
            FROM unnest(keys) WITH ORDINALITY AS u (key, place);
        END IF;
        {_APPLY} USING lists, ids, steps, times;
    END LOOP;
    """,
    declare="projection text; ids text[];",
    settings="",
)

# What a step writes itself begins with this: constraints are checked by the statement that breaks them, not by the
# commit, where it would be the store's trouble.
HOST = Function(
    "host_1", "search_path text", "void",
    "PERFORM set_config('search_path', search_path, true); SET CONSTRAINTS ALL IMMEDIATE;", settings="",
)  # fmt: skip

# Records of one run, and how far they reach in its journal; whether it was where the follower believed it to be.
FOLLOW = Function(
    "treadle_follow_1",
    """
    projection text
    of_run text
    before integer
    reached integer
    lists bytea[]
    ids text[]
    steps text[]
    times double precision[]
    """,
    "boolean",
    f"""
    INSERT INTO @treadle_positions (projection, run, version) VALUES (projection, of_run, 0) ON CONFLICT DO NOTHING;
    SELECT p.version INTO was FROM @treadle_positions p
    WHERE p.projection = treadle_follow_1.projection AND p.run = of_run FOR UPDATE;
    IF was <> before THEN RETURN false; END IF;
    IF lists IS NOT NULL THEN {_APPLY} USING lists, ids, steps, times; END IF;
    UPDATE @treadle_positions p SET version = reached
    WHERE p.projection = treadle_follow_1.projection AND p.run = of_run;
    RETURN true;
    """,
    declare="was integer;",
    settings="",
)

# How a statement for records sees them, in the order of the types that it is tried with.
PARAMETERS = {"key": "text", "data": "jsonb", "collection": "text", "run": "text", "step": "text", "at": "float8"}


def apply_function(spec: ProjectionSpec, schema: str) -> str:
    """The definition of the function that is a projection."""
    variables = {name: f"treadle_{name}" for name in PARAMETERS}
    cases = "".join(
        f"WHEN {literal(collection)} THEN\n{named(sql, variables).strip().rstrip(';')}\n;\n"
        for collection, sql in spec.statements.items()
    )
    body = f"""
#variable_conflict use_variable
DECLARE
    treadle_place integer; treadle_record jsonb; treadle_key text; treadle_data jsonb; treadle_collection text;
    treadle_run text; treadle_step text; treadle_at double precision;
BEGIN
    -- What a record breaks is found out here, not by the commit, where it would be the store's trouble.
    SET CONSTRAINTS ALL IMMEDIATE;
    FOR treadle_next IN 1 .. cardinality($1) LOOP
        treadle_place := treadle_next;
        treadle_key := NULL;
        treadle_run := $2[treadle_place];
        treadle_step := $3[treadle_place];
        treadle_at := $4[treadle_place];
        FOR treadle_record IN SELECT * FROM jsonb_array_elements(convert_from($1[treadle_place], 'UTF8')::jsonb)
        LOOP
            treadle_collection := treadle_record ->> 0;
            treadle_key := treadle_record ->> 1;
            treadle_data := treadle_record -> 2;
            CASE treadle_collection
            {cases or "WHEN NULL THEN NULL;"} ELSE NULL; END CASE;
        END LOOP;
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    IF left(SQLSTATE, 2) IN ('08', '25', '40', '53', '55', '57', '58', 'XX') THEN RAISE; END IF;
    RAISE EXCEPTION USING ERRCODE = '{UNFIT}', DETAIL = treadle_place, MESSAGE = format(
        'projection %s does not take record %L of %L: %s', {literal(repr(spec.name))}, treadle_key,
        treadle_collection, SQLERRM);
END
"""
    quote = quote_of(body)
    return (
        f"CREATE OR REPLACE FUNCTION {apply_name(spec.name, schema)}(bytea[], text[], text[], double precision[])"
        f" RETURNS void LANGUAGE plpgsql SET search_path = {schema.removesuffix('.')}, public AS {quote}{body}{quote}"
    )


def apply_name(name: str, schema: str) -> str:
    """The name of a projection's function."""
    return f'{schema}"treadle_apply_{name.lower()}"'


class Lists:
    """Lists of records on their way to functions of projections, each with its run (a key or id), step and time."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        self._runs: list[str] = []
        self._steps: list[str] = []
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._bodies)

    def add(self, body: bytes, run: str, step: str, time: float) -> None:
        """One more."""
        self._bodies.append(body)
        self._runs.append(run)
        self._steps.append(step)
        self._times.append(time)

    def values(self) -> list[bytes | None]:
        """As the functions take them."""
        return [chunks(self._bodies), texts(self._runs), texts(self._steps), floats(self._times)]


class Gifts:
    """The statements of a group for what its appends give, and who is to blame for one that is refused."""

    def __init__(self, link: Link, appends: Sequence[Append], opened: Opened | None) -> None:
        """Raises UnfitError for what need not be sent to be refused, and as `text_of`."""
        self.statements: list[Statement] = []
        self._link = link
        self._opened = opened
        # Those that another session has reported are stored already.
        lists = [(append.key, handle) for append in appends for one in append.given for handle in one.records]
        brought = {(append.key, digest): body for append in appends for digest, body in append.payloads}
        self._bodies = bodies_of(link, lists, brought)
        # The givers of a statement: one of a write, one for each list of records.
        self._givers: list[tuple[Guest, list[tuple[Append, Given]]]] = []
        self._lists = Lists()
        self._of_lists: list[tuple[Append, Given]] = []
        for append in appends:
            for one in append.given:
                try:
                    self._take(append, one)
                except ProjectionError as error:
                    raise UnfitError(append, one.lease, f"{error} (ProjectionError)") from error
        self._give()

    def _take(self, append: Append, one: Given) -> None:
        if one.writes:
            # What was given before comes before.
            self._give()
            path = self._link.search_path.encode()
            self.statements.append((HOST.text(self._link.schema), [path], HOST.types))
            for write in one.writes:
                self._add(guest_of(write), [(append, one)])
        for handle in one.records:
            body = text_of(append.key, handle, partial(body_in, self._bodies, append.key), self._opened)
            self._lists.add(body, append.key, one.at, append.time)
            self._of_lists.append((append, one))

    def _give(self) -> None:
        if self._of_lists:
            self._add(Guest(GIVE.text(self._link.schema), self._lists.values(), GIVE.types), self._of_lists)
            self._lists, self._of_lists = Lists(), []

    def _add(self, guest: Guest, givers: list[tuple[Append, Given]]) -> None:
        self.statements.append(guest)
        self._givers.append((guest, givers))

    def unfit(self, error: GuestError) -> UnfitError:
        """Who has given what the server refuses."""
        givers = next(givers for guest, givers in self._givers if guest is error.guest)
        append, one = givers[int(error.detail) - 1 if len(givers) > 1 and error.detail.isdigit() else 0]
        return UnfitError(append, one.lease, error.message)


def bodies_of(
    link: Link, lists: Sequence[tuple[str, str]], known: Mapping[tuple[str, str], bytes] = MappingProxyType({})
) -> dict[tuple[str, str], bytes]:
    """What is stored of lists of records, which are named by run and handle: by run and digest."""
    found = dict(known)
    places = [(key, bare(handle)) for key, handle in lists]
    wanted = [(key, place[1:]) for key, place in places if place[0] == "@" and (key, place[1:]) not in found]
    if wanted:
        rows = link.all(
            "SELECT r.key, p.digest, p.body FROM unnest(%s::text[], %s::text[]) AS u (key, digest)"
            " JOIN @runs r ON r.key = u.key JOIN @payloads p ON p.run = r.n AND p.digest = u.digest",
            ([key for key, _ in wanted], [digest for _, digest in wanted]),
        )
        found.update({(key, digest): body for key, digest, body in rows})
    return found


def body_in(bodies: Mapping[tuple[str, str], bytes], run: str, digest: str) -> bytes | None:
    """One of them."""
    return bodies.get((run, digest))


def guest_of(write: Write) -> Guest:
    """A step's own statement. Its values are texts, as if they stood in it in quotes.

    Raises:
        ProjectionError: PostgreSQL has no null characters.
    """
    values = [None if value is None else str(value).encode() for value in write.values]
    if any(value is not None and b"\0" in value for value in values):
        raise ProjectionError(
            f"PostgreSQL has no texts with null characters, as one of the values of {write.sql!r} has"
        )
    return Guest(numbered(write.sql).encode(), values, [0] * len(values))


__all__ = [
    "DEFINE_LOCK",
    "FOLLOW",
    "GIVE",
    "HOST",
    "MIGRATION",
    "PARAMETERS",
    "TABLES",
    "Gifts",
    "Lists",
    "apply_function",
    "apply_name",
    "bodies_of",
    "body_in",
]
