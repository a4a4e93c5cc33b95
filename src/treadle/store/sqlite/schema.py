"""The SQLite schema: numbered migrations, and the views that people and tools may query.

Rules of the file
- A migration that was released is never changed; a new one is added at the end. `PRAGMA user_version` says how
  many a file has had; `PRAGMA application_id` says that the file is ours.
- Tables are private and may change with any version. The views (`v_...`) are the public, read-only face; they
  are made anew by every migration, so they always fit the tables.
- Run keys and session ids are mapped to integers (`runs.n`, `sessions.n`) that never leave the store and are
  never used again: deleted runs leave theirs in `tombstones`, ended sessions stay as rows with `ended = 1`.
- A reference to an ended session is no reference: owners and holders count only while their session lives. So
  a burial touches the session's leased tasks and its own row, never the runs that it owned.
- Tables that only grow at their end (`journal`, `steps`) are rowid tables with a narrow unique index. The rows of
  a group commit then share pages, whatever runs they belong to, which halves what goes through the WAL.
"""

from __future__ import annotations

from treadle.errors import SchemaVersionError, StoreCorruptError, StoreNotFoundError
from treadle.store.sqlite.connection import Database

# "trdl" as a big-endian number.
APPLICATION_ID = 0x7472646C

# tasks.state
LINED = -1
WAITING = 0
DELAYED = 1
PARKED = 2
LEASED = 3

_MIGRATION_1 = """
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
-- 'session' numbers sessions and ranges of lease tokens, 'age' numbers tasks that wait.
INSERT INTO counters VALUES ('session', 0), ('age', 0);

CREATE TABLE plans (
    n INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    -- How many runs use it; at 0 it goes.
    uses INTEGER NOT NULL,
    body BLOB NOT NULL
);

CREATE TABLE runs (
    n INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    id TEXT NOT NULL UNIQUE,
    workflow TEXT NOT NULL,
    plan INTEGER NOT NULL,
    status TEXT NOT NULL,
    hold INTEGER NOT NULL,
    version INTEGER NOT NULL,
    -- sessions.n, 0: nobody.
    owner INTEGER NOT NULL,
    -- A JSON object, empty text for no labels.
    labels TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
);
CREATE INDEX runs_status ON runs (status, key);

-- What never changes, apart from the rows that change with every append.
CREATE TABLE heads (
    run INTEGER PRIMARY KEY,
    head TEXT NOT NULL
);

CREATE TABLE labels (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    run INTEGER NOT NULL,
    PRIMARY KEY (name, value, run)
) WITHOUT ROWID;

CREATE TABLE journal (
    run INTEGER NOT NULL,
    version INTEGER NOT NULL,
    commit_id INTEGER NOT NULL,
    time REAL NOT NULL,
    session INTEGER NOT NULL,
    trace TEXT,
    events TEXT NOT NULL
);
CREATE UNIQUE INDEX journal_version ON journal (run, version);

CREATE TABLE steps (
    run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    status TEXT NOT NULL,
    generation INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    result TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    detail TEXT NOT NULL,
    causes TEXT NOT NULL,
    added_at REAL NOT NULL,
    ready_at REAL NOT NULL,
    dispatched_at REAL NOT NULL,
    started_at REAL NOT NULL,
    finished_at REAL NOT NULL,
    worker TEXT NOT NULL
);
CREATE UNIQUE INDEX steps_address ON steps (run, address);
CREATE INDEX steps_failed ON steps (finished_at) WHERE status = 'failed';

CREATE TABLE tasks (
    run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    -- 0 waiting, 1 not due yet, 2 parked (a claim met it while its run was held; waits until the hold is lifted),
    -- 3 leased.
    state INTEGER NOT NULL,
    session INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    -- Claims go by priority, then age; 0 for a task that was handed over at once.
    age INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    not_before REAL NOT NULL,
    started_at REAL NOT NULL,
    -- 1 the attempt is to be interrupted, 2 it may not wait again (its run's waiting tasks were taken back), else 0.
    interrupt INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    queue TEXT NOT NULL,
    action TEXT NOT NULL,
    address TEXT NOT NULL,
    progress TEXT NOT NULL,
    call TEXT NOT NULL,
    PRIMARY KEY (run, number)
) WITHOUT ROWID;
-- By queue and action first, so that a claim never passes over tasks that its session cannot take.
CREATE INDEX tasks_waiting ON tasks (queue, action, priority DESC, age) WHERE state = 0;
CREATE INDEX tasks_delayed ON tasks (not_before) WHERE state = 1;
CREATE INDEX tasks_interrupted ON tasks (session) WHERE interrupt = 1;

CREATE TABLE payloads (
    run INTEGER NOT NULL,
    digest TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX payloads_digest ON payloads (run, digest);

CREATE TABLE inbox (
    seq INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    id TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX inbox_id ON inbox (run, id);

CREATE TABLE sessions (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    worker TEXT NOT NULL,
    wake TEXT NOT NULL,
    beat INTEGER NOT NULL,
    waits INTEGER NOT NULL,
    actions TEXT NOT NULL,
    info TEXT NOT NULL,
    -- Whose record locks tell about it.
    host TEXT NOT NULL,
    kernel TEXT NOT NULL,
    ended INTEGER NOT NULL
);
CREATE UNIQUE INDEX sessions_living ON sessions (id) WHERE ended = 0;

CREATE TABLE roles (
    role TEXT PRIMARY KEY,
    session INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE tombstones (
    n INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    id TEXT NOT NULL
);
"""

_MIGRATION_2 = """
ALTER TABLE steps ADD COLUMN undo TEXT NOT NULL DEFAULT 'none';
-- How much of what the run did is undone: '', 'fully' or 'partly'.
ALTER TABLE runs ADD COLUMN unwound TEXT NOT NULL DEFAULT '';
-- As in the head: the run whose step called this one, and the step's address (KEY/ADDRESS); empty for most.
ALTER TABLE runs ADD COLUMN parent TEXT NOT NULL DEFAULT '';
CREATE INDEX runs_parent ON runs (parent) WHERE parent != '';
"""

_MIGRATION_3 = """
-- As in the head: what people call the run, and a JSON object of what else they are to see (empty text for nothing).
ALTER TABLE runs ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN metadata TEXT NOT NULL DEFAULT '';
"""

_MIGRATION_4 = """
-- Queues that were ever defined; the limits are JSON, NULL where there are none.
CREATE TABLE queues (
    n INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- By a program, and by an operator, whose word counts.
    defined TEXT,
    override TEXT,
    paused INTEGER NOT NULL,
    version INTEGER NOT NULL
);
-- 'queues' counts the changes of definitions; sessions have the count of the last one, so that it is known at no cost.
INSERT INTO counters VALUES ('queues', 0);
ALTER TABLE sessions ADD COLUMN queues INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN targets TEXT NOT NULL DEFAULT '[]';

-- queues.n, 0 where the task's queue was never defined.
ALTER TABLE tasks ADD COLUMN gate INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN key TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN target TEXT NOT NULL DEFAULT '';
-- Its place among the keys of a fair queue.
ALTER TABLE tasks ADD COLUMN turn REAL NOT NULL DEFAULT 0;
DROP INDEX tasks_waiting;
CREATE INDEX tasks_waiting ON tasks (queue, action, target, priority DESC, turn, age) WHERE state = 0;
CREATE INDEX tasks_gated ON tasks (gate, state, key, action, target, priority DESC, turn, age) WHERE gate != 0;

-- What rates allow a queue (the key is empty) or a key of it; one that is not here may do all it ever may.
CREATE TABLE buckets (
    queue INTEGER NOT NULL,
    key TEXT NOT NULL,
    allowance REAL NOT NULL,
    at REAL NOT NULL,
    -- From then on it need not be kept.
    full_at REAL NOT NULL,
    -- When the key may start again, while tasks wait for that.
    opens_at REAL,
    PRIMARY KEY (queue, key)
) WITHOUT ROWID;
CREATE INDEX buckets_full ON buckets (full_at);
CREATE INDEX buckets_opening ON buckets (opens_at) WHERE opens_at IS NOT NULL;

-- Fair queues: the turn of what was leased last, and the next turns of keys that are ahead of it.
CREATE TABLE turns (
    queue INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    turn REAL NOT NULL,
    PRIMARY KEY (queue, priority)
) WITHOUT ROWID;
CREATE TABLE shares (
    queue INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    key TEXT NOT NULL,
    turn REAL NOT NULL,
    PRIMARY KEY (queue, priority, key)
) WITHOUT ROWID;
CREATE INDEX shares_turn ON shares (queue, priority, turn);
"""

_MIGRATION_5 = """
-- Runs in the lines of names; the one with the lowest place holds the name.
CREATE TABLE names (
    name TEXT NOT NULL,
    place INTEGER NOT NULL,
    run INTEGER NOT NULL,
    PRIMARY KEY (name, place)
) WITHOUT ROWID;
CREATE INDEX names_run ON names (run);
"""

MIGRATIONS = (_MIGRATION_1, _MIGRATION_2, _MIGRATION_3, _MIGRATION_4, _MIGRATION_5)
VERSION = len(MIGRATIONS)
# Programs that know this version or a later one work with a file of this version, while others are upgraded. A
# migration that only adds (tables, columns with defaults) leaves it as it is, any other sets it to its own number.
SERVES = 5

VIEWS = {
    # One row a run. `owner` is the session that decides it, empty if none does. `parent` is the key of the run whose
    # step called this one, and the step's address, with a slash between.
    "v_runs": """
SELECT r.key, r.id, r.workflow, r.status, r.unwound, r.hold, r.version,
    coalesce((SELECT s.id FROM sessions s WHERE s.n = r.owner AND s.ended = 0), '') AS owner,
    CASE r.labels WHEN '' THEN '{}' ELSE r.labels END AS labels,
    r.created_at, r.updated_at, r.parent, r.name,
    CASE r.metadata WHEN '' THEN '{}' ELSE r.metadata END AS metadata,
    (SELECT count(*) FROM tasks t WHERE t.run = r.n AND t.state = 3) AS leased,
    (SELECT count(*) FROM tasks t WHERE t.run = r.n AND t.state < 3) AS waiting,
    (SELECT count(*) FROM inbox i WHERE i.run = r.n) AS inputs
FROM runs r
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
FROM steps s JOIN runs r ON r.n = s.run
UNION ALL
SELECT r.key, r.id, t.number, t.address, t.action,
    CASE WHEN t.state = 3 THEN 'running' WHEN t.attempt > 1 THEN 'retrying' ELSE 'dispatched' END,
    t.generation, t.attempt, '', '', '', '', 0.0, 0.0, 0.0, CASE t.state WHEN 3 THEN t.started_at ELSE 0.0 END, 0.0,
    coalesce(o.worker, ''), t.progress,
    'none'
FROM tasks t JOIN runs r ON r.n = t.run LEFT JOIN sessions o ON o.n = t.session AND t.state = 3
WHERE t.attempt > 0 OR t.call ->> '$.purpose' = 'prepare'
""",
    # One row an undo that was begun or put off, as its last event tells: running (an attempt or a question is under
    # way, or follows), undone, failed, not_compensable, skipped, parked. `position` orders them.
    "v_undos": """
SELECT r.key, r.id AS run, e.value ->> '$.at' AS address,
    CASE e.value ->> '$.kind'
        WHEN 'step_undone' THEN 'undone' WHEN 'undo_failed' THEN 'failed' WHEN 'undo_skipped' THEN 'skipped'
        WHEN 'undo_not_compensable' THEN 'not_compensable' WHEN 'undo_parked' THEN 'parked' ELSE 'running'
    END AS status,
    coalesce(e.value ->> '$.reason', '') AS reason, coalesce(e.value ->> '$.failure.code', '') AS code,
    coalesce(e.value ->> '$.failure.message', '') AS message, max(j.version * 1000000 + e.key) AS position, j.time
FROM runs r JOIN journal j ON j.run = r.n JOIN json_each(j.events) e
WHERE e.value ->> '$.kind' IN ('undo_dispatched', 'step_undone', 'undo_failed', 'undo_not_compensable',
    'undo_skipped', 'undo_parked')
GROUP BY r.n, address
""",
    # One row an event, in journal order by (key, version, position). `event` is the whole event as JSON;
    # `session` is the one that decided.
    "v_events": """
SELECT r.key, r.id AS run, j.version, e.key AS position, j.time, e.value ->> '$.kind' AS kind,
    e.value ->> '$.at' AS at, e.value AS event, s.id AS session, s.kernel, j.commit_id
FROM runs r JOIN journal j ON j.run = r.n JOIN json_each(j.events) e LEFT JOIN sessions s ON s.n = j.session
""",
    # One row an attempt that ended (from the journal) or is leased now (outcome `running`). A timeout is an attempt
    # that failed with the code `timeout`. `session` is the one that executed it, `token` its lease.
    "v_attempts": """
SELECT r.key, r.id AS run, e.value ->> '$.at' AS address, e.value ->> '$.attempt' AS attempt,
    CASE e.value ->> '$.kind'
        WHEN 'step_succeeded' THEN 'succeeded' WHEN 'attempt_lost' THEN 'lost'
        WHEN 'attempt_ended' THEN e.value ->> '$.outcome' ELSE 'failed'
    END AS outcome,
    coalesce(e.value ->> '$.failure.code', '') AS code, coalesce(e.value ->> '$.failure.message', '') AS message,
    coalesce(e.value ->> '$.session', '') AS session, coalesce(e.value ->> '$.token', 0) AS token,
    coalesce(e.value ->> '$.started_at', 0.0) AS started_at, j.time AS finished_at, j.version
FROM runs r JOIN journal j ON j.run = r.n JOIN json_each(j.events) e
WHERE e.value ->> '$.kind' IN ('step_succeeded', 'step_failed', 'attempt_failed', 'attempt_lost', 'attempt_ended')
    AND e.value ->> '$.attempt' > 0
UNION ALL
SELECT r.key, r.id, t.address, t.attempt, 'running', '', '', coalesce(s.id, ''), t.lease, t.started_at, 0.0, NULL
FROM tasks t JOIN runs r ON r.n = t.run LEFT JOIN sessions s ON s.n = t.session
WHERE t.state = 3 AND t.attempt > 0
""",
}


def pragma(con: Database, name: str) -> int:
    """The value of a numeric pragma."""
    value = con.pragma(name)
    assert isinstance(value, int)
    return value


def migrate(con: Database, path: str, *, create: bool) -> None:
    """Bring a file to this version; one that has it already is not written to.

    Raises:
        SchemaVersionError: the file is newer than this program can live with.
        StoreCorruptError: the file is a database of someone else.
        StoreNotFoundError: the file is empty, and `create` is not set.
    """
    if behind(con, path, create=create) == 0:
        return
    con.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have migrated it while this one waited for the lock.
        missing = behind(con, path, create=create)
        for migration in MIGRATIONS[VERSION - missing :]:
            _script(con, migration)
        if missing:
            for name, body in VIEWS.items():
                _script(con, f"DROP VIEW IF EXISTS {name}; CREATE VIEW {name} AS {body.strip()};")
            con.execute("INSERT OR REPLACE INTO counters VALUES ('serves', ?)", (SERVES,))
            _script(con, f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};")
        con.execute("COMMIT")
    except BaseException:
        if con.in_transaction:
            con.execute("ROLLBACK")
        raise


def behind(con: Database, path: str, *, create: bool) -> int:
    """How many migrations the file lacks. It is not changed; raises as `migrate`."""
    application, version = pragma(con, "application_id"), pragma(con, "user_version")
    if application == APPLICATION_ID:
        if version <= VERSION:
            return VERSION - version
        if con.execute("SELECT 1 FROM counters WHERE name = 'serves' AND value <= ?", (VERSION,)).fetchall():
            return 0
        raise SchemaVersionError(
            f"{path} has schema version {version}, written by a newer Treadle; this one knows up to {VERSION}:"
            " upgrade this installation"
        )
    if application or version or con.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall():
        raise StoreCorruptError(f"{path} is a database of another program; choose another file for the store")
    if not create:
        raise StoreNotFoundError(f"{path} is empty and holds no store; check the URL")
    return VERSION


def _script(con: Database, text: str) -> None:
    # apsw stops at a statement that returns rows until they are fetched, and would skip the rest.
    con.execute(text).fetchall()
