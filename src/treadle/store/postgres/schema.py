"""The PostgreSQL schema: numbered migrations, and the views that people and tools may query.

Rules of the file
- A store is one schema of a database. A migration that was released is never changed; a new one is added at the end.
  `meta.version` says how many a store has had. Migrations are made under an advisory lock, in one transaction.
- Tables, sequences and functions are private and may change with any version. The views (`v_...`) are the public,
  read-only face; they are made anew by every migration, so they always fit the tables.
- Functions carry a number (`commit_1`). One that was released is never changed in what it takes or answers: a changed
  one gets the next number and the former stays where it was made, so that two versions of Treadle work side by side.
  Each version makes those that it calls, behind its migrations.
- Run keys and session ids are mapped to integers (`runs.n`, `sessions.n`) that never leave the store and are never used
  again: sequences give them out in ranges. Deleted runs leave theirs in `tombstones`, ended sessions stay as rows.
- A reference to an ended session is no reference: owners and holders count only while their session lives. So a burial
  touches the session's leased tasks and its own row, never the runs that it owned.
- `@name` stands for a name in the store's schema. Texts compare by their code points (`COLLATE "C"`), as everywhere.
- Whoever locks rows does it in this order: sessions, queues, runs and tasks by number, then what only grows. A
  row is locked before what depends on it is read. Where an order cannot be kept the server finds the deadlock, undoes
  one of the two, and that one is made again.
"""

from __future__ import annotations

from treadle.errors import SchemaVersionError, StoreCorruptError, StoreError, StoreNotFoundError, StoreReadOnlyError
from treadle.store.postgres import (
    append_functions,
    claim_functions,
    dropping,
    giving,
    joining,
    limit_functions,
    names,
    task_functions,
)
from treadle.store.postgres.connection import Link

# tasks.state
LINED = -1
WAITING = 0
DELAYED = 1
PARKED = 2
LEASED = 3

# Older ones are out of support by the PostgreSQL project.
OLDEST_SERVER = 140000

_MIGRATION_1 = (
    """
-- Numbers of sessions, and ranges of lease tokens.
CREATE SEQUENCE @numbers;
-- Ranges of run numbers.
CREATE SEQUENCE @run_ranges;
-- Tasks that wait.
CREATE SEQUENCE @ages;

CREATE TABLE @plans (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    hash text COLLATE "C" NOT NULL UNIQUE,
    body bytea NOT NULL
);

-- Room is left in each page: a run's row changes with every append, and a new version of it beside the old one costs no
-- index anything.
CREATE TABLE @runs (
    n bigint PRIMARY KEY,
    key text COLLATE "C" NOT NULL UNIQUE,
    id text COLLATE "C" NOT NULL UNIQUE,
    workflow text COLLATE "C" NOT NULL,
    plan bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    -- How much of what the run did is undone: '', 'fully' or 'partly'.
    unwound text COLLATE "C" NOT NULL,
    hold bigint NOT NULL,
    version integer NOT NULL,
    -- sessions.n, 0: nobody.
    owner bigint NOT NULL,
    -- A JSON object, empty text for no labels.
    labels text NOT NULL,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    -- The run whose step called this one, and the step's address (KEY/ADDRESS); empty for most.
    parent text COLLATE "C" NOT NULL,
    -- As in the head: what people call the run, and a JSON object of what else they are to see (empty for nothing).
    name text COLLATE "C" NOT NULL,
    metadata text COLLATE "C" NOT NULL
) WITH (fillfactor = 60);
CREATE INDEX runs_status ON @runs (status, key);
CREATE INDEX runs_plan ON @runs (plan);
CREATE INDEX runs_parent ON @runs (split_part(parent, '/', 1)) WHERE parent <> '';

-- What never changes, apart from the rows that change with every append.
CREATE TABLE @heads (
    run bigint PRIMARY KEY,
    head text NOT NULL
);

CREATE TABLE @labels (
    run bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL
);
-- By a hash, since an entry of an index has a third of a page at most.
CREATE INDEX labels_hash ON @labels (hashtextextended(value, hashtextextended(name, 0)));
CREATE INDEX labels_run ON @labels (run);

CREATE TABLE @journal (
    run bigint NOT NULL,
    version integer NOT NULL,
    commit_id bigint NOT NULL,
    time double precision NOT NULL,
    session bigint NOT NULL,
    events text NOT NULL,
    PRIMARY KEY (run, version)
);

CREATE TABLE @steps (
    run bigint NOT NULL,
    number integer NOT NULL,
    generation integer NOT NULL,
    attempt integer NOT NULL,
    added_at double precision NOT NULL,
    ready_at double precision NOT NULL,
    dispatched_at double precision NOT NULL,
    started_at double precision NOT NULL,
    finished_at double precision NOT NULL,
    address text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    result text NOT NULL,
    code text NOT NULL,
    message text NOT NULL,
    detail text NOT NULL,
    causes text NOT NULL,
    worker text NOT NULL,
    undo text COLLATE "C" NOT NULL,
    PRIMARY KEY (run, number)
);
CREATE INDEX steps_address ON @steps (run, hashtextextended(address, 0));
CREATE INDEX steps_failed ON @steps (finished_at) WHERE status = 'failed';

-- Rows come and go all the time: they are cleared away before they get in the way.
CREATE TABLE @tasks (
    run bigint NOT NULL,
    number integer NOT NULL,
    -- 0 waiting, 1 not due yet, 2 parked (a claim met it while its run was held; waits until the hold is lifted),
    -- 3 leased.
    state smallint NOT NULL,
    -- 1 the attempt is to be interrupted, 2 it may not wait again (its run's waiting tasks were taken back), else 0.
    interrupt smallint NOT NULL,
    generation integer NOT NULL,
    attempt integer NOT NULL,
    priority integer NOT NULL,
    session bigint NOT NULL,
    lease bigint NOT NULL,
    -- Claims go by priority, then age; 0 for a task that was handed over at once.
    age bigint NOT NULL,
    not_before double precision NOT NULL,
    started_at double precision NOT NULL,
    queue text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    address text COLLATE "C" NOT NULL,
    progress text NOT NULL,
    call text NOT NULL,
    PRIMARY KEY (run, number)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000);
-- By queue and action first, so that a claim never passes over tasks that its session cannot take.
CREATE INDEX tasks_waiting ON @tasks (queue, action, priority DESC, age) WHERE state = 0;
CREATE INDEX tasks_delayed ON @tasks (not_before) WHERE state = 1;
CREATE INDEX tasks_interrupted ON @tasks (session) WHERE interrupt = 1;

CREATE TABLE @payloads (
    run bigint NOT NULL,
    digest text COLLATE "C" NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (run, digest)
);

-- Values too large for a payload row. Compressed by whoever wants that.
CREATE TABLE @blobs (
    digest text COLLATE "C" PRIMARY KEY,
    body bytea NOT NULL
);
ALTER TABLE @blobs ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE @inbox (
    run bigint NOT NULL,
    id text COLLATE "C" NOT NULL,
    seq bigint GENERATED ALWAYS AS IDENTITY,
    body bytea NOT NULL,
    PRIMARY KEY (run, id)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000);

CREATE TABLE @sessions (
    n bigint PRIMARY KEY,
    id text COLLATE "C" NOT NULL,
    ended boolean NOT NULL,
    -- Counts the connections of the session's writer: what an earlier one left under way comes to nothing.
    link integer NOT NULL,
    beat bigint NOT NULL,
    waits integer NOT NULL,
    worker text NOT NULL,
    wake text NOT NULL,
    actions text NOT NULL,
    info text NOT NULL,
    kernel text NOT NULL
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX sessions_living ON @sessions (id) WHERE NOT ended;

CREATE TABLE @roles (
    role text COLLATE "C" PRIMARY KEY,
    session bigint NOT NULL
);

CREATE TABLE @tombstones (
    n bigint PRIMARY KEY,
    key text COLLATE "C" NOT NULL UNIQUE,
    id text COLLATE "C" NOT NULL
);
""",
)

_MIGRATION_2 = (
    """
-- Counts the changes of queues; sessions have the count of the last one, so that it is known at no cost.
ALTER TABLE @meta ADD COLUMN queues integer NOT NULL DEFAULT 0;
ALTER TABLE @sessions ADD COLUMN queues integer NOT NULL DEFAULT 0, ADD COLUMN targets text NOT NULL DEFAULT '[]';

-- Queues that were ever defined; the limits are JSON, NULL where there are none. Whoever changes tasks of one locks it.
CREATE TABLE @queues (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    -- By a program, and by an operator, whose word counts.
    defined text,
    override text,
    paused boolean NOT NULL,
    version integer NOT NULL
);

ALTER TABLE @tasks
    -- queues.n, 0 where the task's queue was never defined.
    ADD COLUMN gate bigint NOT NULL DEFAULT 0,
    -- Its place among the keys of a fair queue.
    ADD COLUMN turn double precision NOT NULL DEFAULT 0,
    ADD COLUMN key text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN target text COLLATE "C" NOT NULL DEFAULT '';
-- Where keys have limits, one task of each key, action and target waits (state 0), and the others are lined (-1) behind
-- it; of a key that may not start, all are. So a claim meets at most one task a key, and none of those that must wait.
DROP INDEX @tasks_waiting;
CREATE INDEX tasks_waiting ON @tasks (queue, action, target, priority DESC, turn, age) WHERE state = 0;
CREATE INDEX tasks_gated ON @tasks (gate, state, key, action, target, priority DESC, turn, age) WHERE gate <> 0;

-- What rates allow a queue (the key is empty) or a key of it; one that is not here may do all it ever may.
CREATE TABLE @buckets (
    queue bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    allowance double precision NOT NULL,
    at double precision NOT NULL,
    -- From then on it need not be kept.
    full_at double precision NOT NULL,
    -- When the key may start again, while tasks wait for that.
    opens_at double precision,
    PRIMARY KEY (queue, key)
);
CREATE INDEX buckets_full ON @buckets (full_at);
CREATE INDEX buckets_opening ON @buckets (opens_at) WHERE opens_at IS NOT NULL;

-- Fair queues: the turn of what was leased last, and the next turns of keys that are ahead of it.
CREATE TABLE @turns (
    queue bigint NOT NULL,
    priority integer NOT NULL,
    turn double precision NOT NULL,
    PRIMARY KEY (queue, priority)
);
CREATE TABLE @shares (
    queue bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    priority integer NOT NULL,
    turn double precision NOT NULL,
    PRIMARY KEY (queue, key, priority)
);
CREATE INDEX shares_turn ON @shares (queue, priority, turn);

CREATE TYPE @place AS (run bigint, number integer, ends integer);
CREATE TYPE @candidate AS (
    run bigint, number integer, gate bigint, queue text, action text, target text, key text, priority integer,
    turn double precision, age bigint, hold bigint
);
""",
)

_MIGRATION_3 = (
    """
-- When a blob was written or renewed last, by the server's clock; of those that are there that is not known.
ALTER TABLE @blobs ADD COLUMN at double precision NOT NULL
    DEFAULT extract(epoch FROM clock_timestamp())::double precision;
""",
)

_MIGRATION_5 = ("ALTER TABLE @meta ADD COLUMN serves integer NOT NULL DEFAULT 0",)

_MIGRATION_4 = names.MIGRATION

_Texts = tuple[str, ...]
# The functions are made at each migration: 7 and 8 bring new ones, and nothing else.
_LATER: tuple[_Texts, ...] = (giving.MIGRATION, (), ())

MIGRATIONS: tuple[_Texts, ...] = (_MIGRATION_1, _MIGRATION_2, _MIGRATION_3, _MIGRATION_4, _MIGRATION_5, *_LATER)
VERSION = len(MIGRATIONS)
# Programs that know this version or a later one work with a store of this version, while others are upgraded. A
# migration that only adds (tables, columns with defaults, functions of new names) leaves it as it is, any other sets
# it to its own number. So does the first projection in a store, since programs before version 6 give nothing to it.
SERVES = 5
# The same for a store that this version has made: it has no other functions than `FUNCTIONS`.
MADE_SERVES = 7

# Those that this version calls, and those that programs since `MADE_SERVES` call: one that is replaced stays. A
# function that calls others is behind them.
FUNCTIONS = (
    append_functions.CEILING,
    append_functions.POST,
    append_functions.COMMIT,
    append_functions.STEER,
    append_functions.END_TASK,
    limit_functions.LINED_CEILING,
    limit_functions.FACTS,
    limit_functions.PROMOTE,
    limit_functions.ENTER,
    limit_functions.SETTLE_KEY,
    limit_functions.SETTLE,
    dropping.DROP_OLDEST_RUNS,
    claim_functions.GATES,
    claim_functions.CANDIDATES,
    claim_functions.LEASE,
    task_functions.REPORT,
    task_functions.POSTPONE,
    task_functions.PROGRESS,
    task_functions.RENEW,
    task_functions.LOOK,
    task_functions.INBOXES,
    task_functions.ACQUIRE,
    task_functions.RELEASE,
    task_functions.ELECT,
    names.HOLD_NAMES,
    names.CHANGE_NAMES,
    joining.START,
    joining.INPUT,
    giving.HOST,
    giving.FOLLOW,
    giving.GIVE,
)

# A journal row's events, one a row. PostgreSQL refuses to read a null character in a text of theirs, legal as it is.
_EVENTS = (
    "CROSS JOIN LATERAL json_array_elements(replace(j.events, '\\u0000', '\\ufffd')::json)"
    " WITH ORDINALITY AS e (value, place)"
)

VIEWS = {
    # One row a run. `owner` is the session that decides it, empty if none does. `parent` is the key of the run whose
    # step called this one, and the step's address, with a slash between.
    "v_runs": """
SELECT r.key, r.id, r.workflow, r.status, r.unwound, r.hold, r.version,
    coalesce((SELECT s.id FROM @sessions s WHERE s.n = r.owner AND NOT s.ended), '') AS owner,
    CASE r.labels WHEN '' THEN '{}' ELSE r.labels END AS labels,
    r.created_at, r.updated_at, r.parent, r.name,
    CASE r.metadata WHEN '' THEN '{}' ELSE r.metadata END AS metadata,
    (SELECT count(*) FROM @tasks t WHERE t.run = r.n AND t.state = 3) AS leased,
    (SELECT count(*) FROM @tasks t WHERE t.run = r.n AND t.state < 3) AS waiting,
    (SELECT count(*) FROM @inbox i WHERE i.run = r.n) AS inputs
FROM @runs r
""",
    # One row a step that is settled, or has a task: dispatched (waits for a worker), retrying (waits for a
    # further attempt), running. `result` is a handle: `=` and JSON, `@` and the digest of a payload, `#` of a blob;
    # `!` and a key id before it if the value is encoded.
    # A step that waits for others has no row here. `undo` is the status of its undo as far as that has ended, `v_undos`
    # has all of them. Times are seconds since the epoch, 0 for never.
    "v_steps": """
SELECT r.key, r.id AS run, s.number, s.address, s.action, s.status, s.generation, s.attempt, s.result, s.code,
    s.message, s.causes, s.added_at, s.ready_at, s.dispatched_at, s.started_at, s.finished_at, s.worker,
    '' AS progress, s.undo
FROM @steps s JOIN @runs r ON r.n = s.run
UNION ALL
SELECT r.key, r.id, t.number, t.address, t.action,
    CASE WHEN t.state = 3 THEN 'running' WHEN t.attempt > 1 THEN 'retrying' ELSE 'dispatched' END,
    t.generation, t.attempt, '', '', '', '', 0.0, 0.0, 0.0, CASE t.state WHEN 3 THEN t.started_at ELSE 0.0 END, 0.0,
    coalesce(o.worker, ''), t.progress, 'none'
FROM @tasks t JOIN @runs r ON r.n = t.run LEFT JOIN @sessions o ON o.n = t.session AND t.state = 3
WHERE t.attempt > 0 OR (t.call::json ->> 'purpose') = 'prepare'
""",
    # One row an undo that was begun or put off, as its last event tells: running (an attempt or a question is under
    # way, or follows), undone, failed, not_compensable, skipped, parked. `position` orders them.
    "v_undos": f"""
SELECT DISTINCT ON (r.n, e.value ->> 'at') r.key, r.id AS run, e.value ->> 'at' AS address,
    CASE e.value ->> 'kind'
        WHEN 'step_undone' THEN 'undone' WHEN 'undo_failed' THEN 'failed' WHEN 'undo_skipped' THEN 'skipped'
        WHEN 'undo_not_compensable' THEN 'not_compensable' WHEN 'undo_parked' THEN 'parked' ELSE 'running'
    END AS status,
    coalesce(e.value ->> 'reason', '') AS reason, coalesce(e.value -> 'failure' ->> 'code', '') AS code,
    coalesce(e.value -> 'failure' ->> 'message', '') AS message,
    j.version * 1000000::bigint + e.place - 1 AS position, j.time
FROM @runs r JOIN @journal j ON j.run = r.n {_EVENTS}
WHERE e.value ->> 'kind' IN ('undo_dispatched', 'step_undone', 'undo_failed', 'undo_not_compensable',
    'undo_skipped', 'undo_parked')
ORDER BY r.n, e.value ->> 'at', position DESC
""",
    # One row an event, in journal order by (key, version, position). `event` is the whole event as JSON;
    # `session` is the one that decided.
    "v_events": f"""
SELECT r.key, r.id AS run, j.version, e.place - 1 AS position, j.time, e.value ->> 'kind' AS kind,
    e.value ->> 'at' AS at, e.value::text AS event, s.id AS session, s.kernel, j.commit_id
FROM @runs r JOIN @journal j ON j.run = r.n {_EVENTS} LEFT JOIN @sessions s ON s.n = j.session
""",
    # One row an attempt that ended (from the journal) or is leased now (outcome `running`). A timeout is an attempt
    # that failed with the code `timeout`. `session` is the one that executed it, `token` its lease.
    "v_attempts": f"""
SELECT r.key, r.id AS run, e.value ->> 'at' AS address, (e.value ->> 'attempt')::integer AS attempt,
    CASE e.value ->> 'kind'
        WHEN 'step_succeeded' THEN 'succeeded' WHEN 'attempt_lost' THEN 'lost'
        WHEN 'attempt_ended' THEN e.value ->> 'outcome' ELSE 'failed'
    END AS outcome,
    coalesce(e.value -> 'failure' ->> 'code', '') AS code, coalesce(e.value -> 'failure' ->> 'message', '') AS message,
    coalesce(e.value ->> 'session', '') AS session, coalesce((e.value ->> 'token')::bigint, 0) AS token,
    coalesce((e.value ->> 'started_at')::double precision, 0.0) AS started_at, j.time AS finished_at, j.version
FROM @runs r JOIN @journal j ON j.run = r.n {_EVENTS}
WHERE e.value ->> 'kind' IN ('step_succeeded', 'step_failed', 'attempt_failed', 'attempt_lost', 'attempt_ended')
    AND (e.value ->> 'attempt')::integer > 0
UNION ALL
SELECT r.key, r.id, t.address, t.attempt, 'running', '', '', coalesce(s.id, ''), t.lease, t.started_at, 0.0, NULL
FROM @tasks t JOIN @runs r ON r.n = t.run LEFT JOIN @sessions s ON s.n = t.session
WHERE t.state = 3 AND t.attempt > 0
""",
}


def prepare(link: Link, *, create: bool) -> None:
    """Check the server, and bring the store to this version; one that has it already is not written to.

    Raises:
        SchemaVersionError: the store is newer than this program can live with.
        StoreCorruptError: the schema is of someone else.
        StoreNotFoundError: there is no store, and `create` is not set.
        StoreReadOnlyError: this server takes no writes, or the role may not make a schema.
        StoreError: the server is too old, or its encoding cannot hold every text.
    """
    where = link.location.shown
    version = link.connection().info.server_version
    if version < OLDEST_SERVER:
        raise StoreError(
            f"{where} is PostgreSQL {version // 10000}; Treadle needs {OLDEST_SERVER // 10000} or newer:"
            " upgrade the server"
        )
    ((encoding, read_only),) = link.all(
        "SELECT current_setting('server_encoding'), current_setting('transaction_read_only')"
    )
    if encoding != "UTF8":
        raise StoreError(
            f"{where} has the encoding {encoding}, which cannot hold every text;"
            " make a database with ENCODING 'UTF8' TEMPLATE template0"
        )
    if behind(link, create=create) == 0:
        return
    if read_only == "on":
        raise StoreReadOnlyError(f"{where} takes no writes (a standby?); name the primary in the URL")
    schema = link.location.schema
    with link.transaction():
        link.all("SELECT pg_advisory_xact_lock(hashtext('treadle'), hashtext(%s))", (schema,))
        # Another process may have migrated it while this one waited for the lock.
        missing = behind(link, create=create)
        if missing:
            _migrate(link, schema, missing)


def _migrate(link: Link, schema: str, missing: int) -> None:
    if missing == VERSION:
        _make_schema(link, schema)
    for migration in MIGRATIONS[VERSION - missing :]:
        for text in migration:
            link.script(text)
    for function in FUNCTIONS:
        link.script(function.definition)
    for name, body in VIEWS.items():
        link.script(f"DROP VIEW IF EXISTS @{name}; CREATE VIEW @{name} AS {body.strip()}")
    serves = MADE_SERVES if missing == VERSION else SERVES
    link.run("UPDATE @meta SET version = %s, serves = greatest(serves, %s)", (VERSION, serves))


def behind(link: Link, *, create: bool) -> int:
    """How many migrations the store lacks. It is not changed; raises as `prepare`."""
    where, schema = link.location.shown, link.location.schema
    ((made, others),) = link.all(
        # A store may be made where followed projections are.
        "SELECT to_regclass(%s) IS NOT NULL, to_regclass(%s) IS NULL AND EXISTS (SELECT 1 FROM pg_class c"
        " JOIN pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = %s)",
        (f"{link.schema}meta", f"{link.schema}treadle_followed", schema),
    )
    if made:
        version: int = link.all("SELECT version FROM @meta")[0][0]
        if version <= VERSION:
            return VERSION - version
        if link.all("SELECT serves FROM @meta")[0][0] <= VERSION:
            return 0
        raise SchemaVersionError(
            f"schema {schema} of {where} has version {version}, written by a newer Treadle; this one knows up to"
            f" {VERSION}: upgrade this installation"
        )
    if others:
        raise StoreCorruptError(
            f"schema {schema} of {where} holds tables of another program; choose another one with ?schema=NAME"
        )
    if not create:
        raise StoreNotFoundError(f"{where} holds no store in schema {schema}; check the URL and its ?schema=")
    return VERSION


def _make_schema(link: Link, schema: str) -> None:
    found = link.all("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,))
    ((may,),) = link.all("SELECT has_database_privilege(current_database(), 'CREATE')")
    if not found and not may:
        ((role,),) = link.all("SELECT current_user")
        raise StoreReadOnlyError(
            f"{link.location.shown}: role {role} may not make the schema {schema}; let an owner of the database run"
            f" CREATE SCHEMA {schema} AUTHORIZATION {role}"
        )
    if not found:
        link.script(f"CREATE SCHEMA {link.schema.removesuffix('.')}")
    link.script("CREATE TABLE @meta (version integer NOT NULL); INSERT INTO @meta VALUES (0)")
