"""The functions of queues with limits: what a transaction finds of them under their locks, and what it leaves.

The rules are the client's (`store.ledger`); here are rows alone. A transaction that changes a task of a queue with
limits locks the queue's row first, before runs and tasks and in the order of the queues' numbers. So what it is told of
leases, keys and buckets stays so until it ends, and no two transactions can give the same room away.
"""

from __future__ import annotations

from treadle.store.postgres.functions import ALIVE_WITH_QUEUES, Function

# The highest priority of the lined tasks of a key that a session could claim if the key might start.
LINED_CEILING = Function(
    "lined_ceiling_1",
    """
    of_gate bigint
    of_key text
    executable text[]
    targets text[]
    but_run bigint[]
    but_number integer[]
    """,
    "integer",
    """
    LOOP
        SELECT t.action INTO name FROM @tasks t
        WHERE t.gate = of_gate AND t.gate <> 0 AND t.state = -1 AND t.key = of_key AND t.action > name
        ORDER BY t.action LIMIT 1;
        EXIT WHEN NOT FOUND;
        CONTINUE WHEN name <> ALL (executable);
        FOREACH place IN ARRAY targets LOOP
            SELECT t.priority INTO got FROM @tasks t
            CROSS JOIN LATERAL (SELECT 1 FROM @runs r WHERE r.n = t.run AND r.hold = 0 OFFSET 0) r
            WHERE t.gate = of_gate AND t.gate <> 0 AND t.state = -1 AND t.key = of_key AND t.action = name
                AND t.target = place AND NOT EXISTS (
                    SELECT 1 FROM unnest(but_run, but_number) AS b (run, number)
                    WHERE b.run = t.run AND b.number = t.number
                )
            ORDER BY t.priority DESC, t.turn, t.age LIMIT 1;
            top := greatest(top, got);
        END LOOP;
    END LOOP;
    RETURN top;
    """,
    declare="name text := ''; place text; top integer; got integer;",
)

# What is known of some queues and keys, as JSON:
# - gates: number, leased tasks, allowance and time of the bucket, whether a task waits in front;
# - keys: queue, key, leased tasks, allowance and time of the bucket;
# - turns and shares, as the tables have them.
FACTS = Function(
    "facts_1",
    """
    of_gates bigint[]
    key_gate bigint[]
    key_name text[]
    """,
    "json",
    """
    RETURN json_build_object(
        'gates', coalesce((
            SELECT json_agg(json_build_array(q.n,
                (SELECT count(*) FROM @tasks t WHERE t.gate = q.n AND t.gate <> 0 AND t.state = 3),
                b.allowance, b.at,
                (SELECT 1 FROM @tasks t WHERE t.gate = q.n AND t.gate <> 0 AND t.state = 0 LIMIT 1) IS NOT NULL
            ))
            FROM @queues q LEFT JOIN @buckets b ON b.queue = q.n AND b.key = '' WHERE q.n = ANY (of_gates)
        ), '[]'),
        'keys', coalesce((
            SELECT json_agg(json_build_array(k.gate, k.key,
                (SELECT count(*) FROM @tasks t WHERE t.gate = k.gate AND t.gate <> 0 AND t.state = 3 AND t.key = k.key),
                b.allowance, b.at
            ))
            FROM (SELECT DISTINCT u.gate, u.key FROM unnest(key_gate, key_name) AS u (gate, key)) k
            LEFT JOIN @buckets b ON b.queue = k.gate AND b.key = k.key
        ), '[]'),
        'turns', coalesce((
            SELECT json_agg(json_build_array(o.queue, o.priority, o.turn)) FROM @turns o WHERE o.queue = ANY (of_gates)
        ), '[]'),
        'shares', coalesce((
            SELECT json_agg(json_build_array(s.queue, s.priority, s.key, s.turn))
            FROM (SELECT DISTINCT u.gate, u.key FROM unnest(key_gate, key_name) AS u (gate, key)) k
            JOIN @shares s ON s.queue = k.gate AND s.key = k.key
        ), '[]')
    );
    """,
)

# Let the tasks of some locked queues wait that are due by now, and forget the buckets that are full. The keys that this
# concerns, and those that may start again by their rate, as a JSON array of [queue, key].
PROMOTE = Function(
    "promote_1",
    """
    locked bigint[]
    keyed bigint[]
    at double precision
    """,
    "json",
    """
    WITH due AS (
        UPDATE @tasks t SET state = CASE WHEN t.gate = ANY (keyed) AND t.key <> '' THEN -1 ELSE 0 END
        WHERE t.state = 1 AND t.not_before <= at AND t.gate = ANY (locked) RETURNING t.gate, t.key
    ), opening AS (
        UPDATE @buckets b SET opens_at = NULL WHERE b.opens_at <= at AND b.queue = ANY (locked)
        RETURNING b.queue, b.key
    )
    SELECT json_agg(json_build_array(c.gate, c.key)) INTO got
    FROM (SELECT d.gate, d.key FROM due d WHERE d.key <> '' UNION SELECT o.queue, o.key FROM opening o) c;
    DELETE FROM @buckets b WHERE b.full_at <= at AND b.opens_at IS NULL AND b.queue = ANY (locked);
    RETURN coalesce(got, '[]');
    """,
    declare="got json;",
)

# Lock the queues of some tasks, and tell all that the rules need. `of_key` and `of_number` name tasks that are there,
# those that the transaction ends among them (`ends`); `whole` the runs of which every task may be concerned. `gates`
# are the queues of tasks to come, whose keys and priorities are `new_...`. The facts, and besides:
# - tasks: run, number, state, queue, key, priority, action, target, session, lease, interrupt;
# - ceilings by queue, and those of the lined tasks by key, both without what the transaction ends;
# - lengths: how many due tasks wait in the `measured` queues, up to `most`;
# - touched: what `promote_1` says.
ENTER = Function(
    "enter_1",
    """
    me bigint
    link integer
    definitions integer
    at double precision
    keyed bigint[]
    gates bigint[]
    new_gate bigint[]
    new_key text[]
    of_key text[]
    of_number integer[]
    ends integer[]
    whole text[]
    executable text[]
    targets text[]
    measured bigint[]
    most integer[]
    """,
    "text",
    f"""
    IF me IS NOT NULL THEN
        {ALIVE_WITH_QUEUES}
    END IF;
    places := ARRAY(
        SELECT ROW (r.n, u.number, u.ends)::@place
        FROM unnest(of_key, of_number, ends) AS u (key, number, ends)
        CROSS JOIN LATERAL (SELECT o.n FROM @runs o WHERE o.key = u.key OFFSET 0) r
    );
    wholes := ARRAY(
        SELECT r.n FROM unnest(whole) AS u (key)
        CROSS JOIN LATERAL (SELECT o.n FROM @runs o WHERE o.key = u.key OFFSET 0) r
    );
    locked := ARRAY(
        SELECT c.gate FROM (
            SELECT unnest(gates) AS gate
            UNION SELECT t.gate FROM unnest(places) p
                CROSS JOIN LATERAL (SELECT o.gate FROM @tasks o WHERE o.run = p.run AND o.number = p.number OFFSET 0) t
            UNION SELECT t.gate FROM unnest(wholes) AS w (n)
                CROSS JOIN LATERAL (SELECT o.gate FROM @tasks o WHERE o.run = w.n OFFSET 0) t
        ) c WHERE c.gate <> 0 ORDER BY c.gate
    );
    PERFORM 1 FROM @queues q WHERE q.n = ANY (locked) ORDER BY q.n FOR NO KEY UPDATE;
    touched := CASE WHEN at IS NULL THEN '[]' ELSE @promote_1(locked, keyed, at) END;
    tasks := coalesce((
        SELECT json_agg(json_build_array(r.key, t.number, t.state, t.gate, t.key, t.priority, t.action, t.target,
            t.session, t.lease, t.interrupt))
        FROM (
            SELECT p.run, p.number FROM unnest(places) p
            UNION SELECT t.run, t.number FROM unnest(wholes) AS w (n)
                CROSS JOIN LATERAL (SELECT o.run, o.number FROM @tasks o WHERE o.run = w.n OFFSET 0) t
        ) u
        CROSS JOIN LATERAL (SELECT * FROM @tasks o WHERE o.run = u.run AND o.number = u.number OFFSET 0) t
        CROSS JOIN LATERAL (SELECT o.key FROM @runs o WHERE o.n = t.run OFFSET 0) r
        WHERE t.gate <> 0
    ), '[]');
    SELECT array_agg(c.gate), array_agg(c.key) INTO key_gate, key_name FROM (
        SELECT u.gate, u.key FROM unnest(new_gate, new_key) AS u (gate, key)
        UNION SELECT (x ->> 0)::bigint, x ->> 1 FROM json_array_elements(touched) x
        UNION SELECT (x ->> 3)::bigint, x ->> 4 FROM json_array_elements(tasks) x
    ) c;
    IF executable IS NOT NULL THEN
        SELECT array_agg(p.run), array_agg(p.number) INTO but_run, but_number FROM unnest(places) p WHERE p.ends <> 0;
        ceilings := (
            SELECT json_agg(json_build_array(q.n, @ceiling_2(q.name, executable, targets, at, but_run, but_number)))
            FROM @queues q WHERE q.n = ANY (gates)
        );
        lined := (
            SELECT json_agg(json_build_array(u.gate, u.key,
                @lined_ceiling_1(u.gate, u.key, executable, targets, but_run, but_number)))
            FROM unnest(key_gate, key_name) AS u (gate, key) WHERE u.gate = ANY (gates) AND u.gate = ANY (keyed)
        );
    END IF;
    lengths := (
        SELECT json_agg(json_build_array(u.gate, (
            SELECT count(*) FROM (
                SELECT 1 FROM @tasks t WHERE t.gate = u.gate AND t.gate <> 0 AND t.state IN (-1, 0, 2) LIMIT u.most
            ) c
        ))) FROM unnest(measured, most) AS u (gate, most)
    );
    RETURN json_build_object('facts', @facts_1(locked, key_gate, key_name), 'locked', to_json(locked),
        'tasks', tasks, 'touched', touched, 'ceilings', coalesce(ceilings, '[]'), 'lined', coalesce(lined, '[]'),
        'lengths', coalesce(lengths, '[]'))::text;
    """,
    declare=(
        "places @place[]; wholes bigint[]; locked bigint[]; touched json; tasks json; key_gate bigint[];"
        " key_name text[]; but_run bigint[]; but_number integer[]; ceilings json; lined json; lengths json;"
    ),
)

# Let the first tasks of a key wait in front, if it may start, else none; whether another task is in front now.
SETTLE_KEY = Function(
    "settle_key_1",
    """
    of_gate bigint
    of_key text
    may_start boolean
    opens double precision
    """,
    "boolean",
    """
    IF may_start THEN
        LOOP
            SELECT t.action, t.target INTO name, place FROM @tasks t
            WHERE t.gate = of_gate AND t.gate <> 0 AND t.state = -1 AND t.key = of_key
                AND (t.action, t.target) > (name, place)
            ORDER BY t.action, t.target LIMIT 1;
            EXIT WHEN NOT FOUND;
            SELECT t.run, t.number, t.priority, t.turn, t.age INTO lined FROM @tasks t
            WHERE t.gate = of_gate AND t.gate <> 0 AND t.state = -1 AND t.key = of_key AND t.action = name
                AND t.target = place
            ORDER BY t.priority DESC, t.turn, t.age LIMIT 1;
            SELECT t.priority, t.turn, t.age INTO front FROM @tasks t
            WHERE t.gate = of_gate AND t.gate <> 0 AND t.state = 0 AND t.key = of_key AND t.action = name
                AND t.target = place
            ORDER BY t.priority DESC, t.turn, t.age LIMIT 1;
            IF NOT FOUND OR (-lined.priority, lined.turn, lined.age) < (-front.priority, front.turn, front.age) THEN
                UPDATE @tasks t SET state = 0 WHERE t.run = lined.run AND t.number = lined.number;
                changed := true;
            END IF;
        END LOOP;
        RETURN changed;
    END IF;
    UPDATE @tasks t SET state = -1 WHERE t.gate = of_gate AND t.gate <> 0 AND t.state = 0 AND t.key = of_key;
    UPDATE @buckets b SET opens_at = opens WHERE b.queue = of_gate AND b.key = of_key AND EXISTS (
        SELECT 1 FROM @tasks t WHERE t.gate = of_gate AND t.gate <> 0 AND t.state = -1 AND t.key = of_key
    );
    RETURN false;
    """,
    declare="name text := ''; place text := ''; lined record; front record; changed boolean := false;",
)

# What a transaction leaves of the queues that it has locked: their buckets, turns and shares, and of the keys that it
# has touched whether they may start, and when they may again (0: not by time). The answer: the places of the keys of
# which other tasks are in front now, when the first of those that are closed may start again, and of each queue whether
# a task waits in front, and whether one fell due unnoticed (without a time: whether any is not due).
SETTLE = Function(
    "settle_1",
    """
    locked bigint[]
    at double precision
    bucket_gate bigint[]
    bucket_key text[]
    bucket_allowance double precision[]
    bucket_at double precision[]
    bucket_full double precision[]
    turn_gate bigint[]
    turn_priority integer[]
    turn double precision[]
    share_gate bigint[]
    share_priority integer[]
    share_key text[]
    share_turn double precision[]
    key_gate bigint[]
    key_name text[]
    key_open integer[]
    key_opens double precision[]
    """,
    "text",
    """
    INSERT INTO @buckets (queue, key, allowance, at, full_at, opens_at)
    SELECT u.gate, u.key, u.allowance, u.time, u.full_at, NULL
    FROM unnest(bucket_gate, bucket_key, bucket_allowance, bucket_at, bucket_full)
        AS u (gate, key, allowance, time, full_at)
    ON CONFLICT (queue, key) DO UPDATE SET allowance = excluded.allowance, at = excluded.at,
        full_at = excluded.full_at, opens_at = NULL;
    INSERT INTO @turns (queue, priority, turn) SELECT * FROM unnest(turn_gate, turn_priority, turn)
    ON CONFLICT (queue, priority) DO UPDATE SET turn = excluded.turn;
    FOR place IN 1 .. coalesce(cardinality(turn_gate), 0) LOOP
        DELETE FROM @shares s WHERE s.queue = turn_gate[place] AND s.priority = turn_priority[place]
            AND s.turn <= settle_1.turn[place];
    END LOOP;
    INSERT INTO @shares (queue, priority, key, turn)
    SELECT * FROM unnest(share_gate, share_priority, share_key, share_turn)
    ON CONFLICT (queue, key, priority) DO UPDATE SET turn = excluded.turn;
    FOR place IN 1 .. coalesce(cardinality(key_gate), 0) LOOP
        IF @settle_key_1(key_gate[place], key_name[place], key_open[place] <> 0, nullif(key_opens[place], 0)) THEN
            changed := changed || place;
        END IF;
    END LOOP;
    RETURN json_build_object('changed', to_json(changed), 'opens_at', (
        SELECT min(b.opens_at) FROM unnest(key_gate, key_name) AS u (gate, key)
        JOIN @buckets b ON b.queue = u.gate AND b.key = u.key
    ), 'work', coalesce((
        SELECT json_agg(json_build_array(u.gate,
            (SELECT 1 FROM @tasks t WHERE t.gate = u.gate AND t.gate <> 0 AND t.state = 0 LIMIT 1) IS NOT NULL,
            CASE WHEN at IS NULL
                THEN (SELECT 1 FROM @tasks t WHERE t.gate = u.gate AND t.gate <> 0 AND t.state = 1 LIMIT 1)
                ELSE (SELECT 1 FROM @tasks t WHERE t.gate = u.gate AND t.state = 1 AND t.not_before <= at LIMIT 1)
            END IS NOT NULL
        )) FROM unnest(locked) AS u (gate)
    ), '[]'))::text;
    """,
    declare="changed integer[] := '{}';",
)
