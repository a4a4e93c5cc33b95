"""Functions of the schema: how they are made and called. What one does is one transaction and one round trip.

Each call is a transaction of its own (or part of one that the client sends in one go). Every statement in a function
sees what was committed before that statement, so a row is locked first and what depends on it is read after.

How they refuse
- With an answer, where nothing is written yet: `lost` (the session ended, or an earlier connection of its writer is
  speaking), `behind` (other tasks wait than the client believes).
- With an error of their own, which undoes what was written: TR000 as `lost`; TR001 a run is not as the client
  believes; TR002 a task was ended that waits, in a group; TR003 as `behind`, with what waits in the detail; TR004 a
  task that an append reports is not live; TR005 a task of a queue with limits is concerned, which the client has not
  locked; TR006 the definitions of queues are others than the client knows; TR007 another run holds a name, with
  its key in the detail; TR008 a projection does not take a record, with the place of its list in the detail.

All plans are generic, and made when the tables may be empty. So rows are changed one by one, by their key, in the order
of the arrays; and where rows are joined, a LATERAL that cannot be flattened (`OFFSET 0`) says which are looked up for
which. No statistics can mislead the planner to look at a whole table for each row, and locks are taken in that order.
Where a row is looked up by its key and its state matters too, `state::integer` keeps the indexes of states out of it.
Whether a row is there is asked by a subquery with a limit: a plain EXISTS may be turned into a join that reads all.
"""

from __future__ import annotations

from treadle.store.postgres.arrays import (
    BIG,
    BIG_ARRAY,
    BOOL,
    BYTES,
    BYTES_ARRAY,
    FLOAT,
    FLOAT_ARRAY,
    INT,
    INT_ARRAY,
    TEXT,
    TEXT_ARRAY,
)

LOST = "TR000"
CHANGED = "TR001"
LATE = "TR002"
BEHIND = "TR003"
FENCED = "TR004"
GATED = "TR005"
REDEFINED = "TR006"
HELD = "TR007"
UNFIT = "TR008"

_TYPES = {
    "bigint": BIG,
    "integer": INT,
    "boolean": BOOL,
    "text": TEXT,
    "bytea": BYTES,
    "double precision": FLOAT,
    "bigint[]": BIG_ARRAY,
    "integer[]": INT_ARRAY,
    "text[]": TEXT_ARRAY,
    "bytea[]": BYTES_ARRAY,
    "double precision[]": FLOAT_ARRAY,
}

_SETTINGS = (
    "SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off"
    " SET enable_mergejoin = off"
)


class Function:
    """A function of the schema: its definition, and how it is called."""

    def __init__(
        self, name: str, parameters: str, returns: str, body: str, *, declare: str = "", settings: str = _SETTINGS
    ) -> None:
        self.name = name
        pairs = [line.strip().rstrip(",").split(" ", 1) for line in parameters.strip().splitlines()]
        self.names = [name for name, _ in pairs]
        self.kinds = [type for _, type in pairs]
        # Those that only functions call take types of the schema too.
        self.types = [_TYPES.get(type, 0) for _, type in pairs]
        signature = ", ".join(f"{name} {type}" for name, type in pairs)
        places = ", ".join(f"${place}" for place in range(1, len(pairs) + 1))
        self._call = f"SELECT @{name}({places})"
        self.definition = (
            f"CREATE OR REPLACE FUNCTION @{name}({signature}) RETURNS {returns} LANGUAGE plpgsql {settings}"
            f" AS $body$\n#variable_conflict use_variable\n{f'DECLARE {declare.strip()}' if declare else ''}\n"
            f"BEGIN\n{body.strip()}\nEND $body$"
        )

    def text(self, schema: str) -> bytes:
        """The call as a statement, with the schema's name for `@`."""
        return self._call.replace("@", schema).encode()


# The session is alive, and no later connection of its writer has spoken. It stays so until the transaction ends.
ALIVE = "PERFORM 1 FROM @sessions s WHERE s.n = me AND s.link = link AND NOT s.ended FOR SHARE;"
ALIVE_OR_ANSWER = f"{ALIVE} IF NOT FOUND THEN RETURN 'lost'; END IF;"

# The same, and the session's row tells that no queue was defined anew since the client read `definitions`. Whoever does
# that changes the rows of all sessions first, so it stays so too.
ALIVE_WITH_QUEUES = f"""
    PERFORM 1 FROM @sessions s
    WHERE s.n = me AND s.link = link AND NOT s.ended AND s.queues = definitions FOR SHARE;
    IF NOT FOUND THEN
        IF EXISTS (SELECT 1 FROM @sessions s WHERE s.n = me AND s.link = link AND NOT s.ended) THEN
            RAISE EXCEPTION 'redefined' USING ERRCODE = '{REDEFINED}';
        END IF;
        RAISE EXCEPTION 'lost' USING ERRCODE = '{LOST}';
    END IF;
"""
RAISE_GATED = f"RAISE EXCEPTION 'gated' USING ERRCODE = '{GATED}';"
