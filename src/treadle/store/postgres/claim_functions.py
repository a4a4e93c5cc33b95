"""The functions of claims: which tasks come first, and that a session gets them."""

from __future__ import annotations

from treadle.store.postgres.functions import ALIVE_WITH_QUEUES, CHANGED, Function

# The queues with limits that a claim is concerned with: `seen` have tasks in front; `locked` those of them that the
# session could execute, and those of which tasks fell due or keys may start again, locked until the transaction ends.
# Tasks that are due by now wait after it among the others; `touched` are the keys to be settled before anything is
# claimed, as `promote_1` tells. The answer is a JSON array of the three, where `seen` has all that are locked too.
GATES = Function(
    "gates_1",
    """
    executable text[]
    keyed bigint[]
    at double precision
    """,
    "json",
    """
    seen := ARRAY(
        SELECT q.n FROM @queues q
        CROSS JOIN LATERAL (SELECT 1 FROM @tasks t WHERE t.gate = q.n AND t.gate <> 0 AND t.state = 0 LIMIT 1) w
    );
    locked := ARRAY(
        SELECT c.gate FROM (
            SELECT q.n AS gate FROM @queues q CROSS JOIN LATERAL (
                SELECT 1 FROM @tasks t WHERE t.state = 0 AND t.queue = q.name AND t.action = ANY (executable) LIMIT 1
            ) w WHERE q.n = ANY (seen)
            -- Filtered outside, so that what is not due is not looked at.
            UNION SELECT t.gate FROM (
                SELECT o.gate FROM @tasks o WHERE o.state = 1 AND o.not_before <= at OFFSET 0
            ) t WHERE t.gate <> 0
            UNION SELECT b.queue FROM @buckets b WHERE b.opens_at <= at
        ) c ORDER BY c.gate
    );
    PERFORM 1 FROM @queues q WHERE q.n = ANY (locked) ORDER BY q.n FOR NO KEY UPDATE;
    touched := @promote_1(locked, keyed, at);
    RETURN json_build_array(
        ARRAY(SELECT s FROM unnest(seen) s UNION SELECT l FROM unnest(locked) l), locked, touched
    );
    """,
    declare="seen bigint[]; locked bigint[]; touched json;",
)

# The first due tasks of some actions and targets, leaving out some pairs of queue and action. Those of queues without
# limits are over all queues by priority, then age; they are locked until the transaction ends, so that no other session
# looks at them, and those that another session has locked are passed over. Of an action come no more than the session
# has room for (`action_rooms`), and no more than its share of `most`. Of each queue with limits (where the client
# knows of any: `rooms` has the most that may be leased, by queue; `key_rooms` the most of a key) come as many more. The
# answer is a JSON object:
# - later: when the next task falls due, or a key may start again;
# - share: the most tasks of an action that are among those of queues without limits;
# - settles: whether keys are to be settled first; then there is nothing else but facts;
# - tasks: run, number, queue's number (0: no limits), queue, action, target, key, priority, turn, age;
# - facts: see `facts_1`; seen, locked and touched: see `gates_1`.
CANDIDATES = Function(
    "candidates_3",
    """
    me bigint
    link integer
    definitions integer
    at double precision
    most integer
    executable text[]
    action_rooms integer[]
    targets text[]
    but_queue text[]
    but_action text[]
    gate_n bigint[]
    gate_name text[]
    rooms integer[]
    key_rooms integer[]
    keyed bigint[]
    """,
    "text",
    f"""
    {ALIVE_WITH_QUEUES}
    IF gate_n IS NOT NULL THEN
        told := @gates_1(executable, keyed, at);
        locked := ARRAY(SELECT x::text::bigint FROM json_array_elements(told -> 1) x);
        SELECT array_agg((x ->> 0)::bigint), array_agg(x ->> 1) INTO key_gate, key_name
        FROM json_array_elements(told -> 2) x;
        settles := EXISTS (
            SELECT 1 FROM unnest(key_gate, key_name) AS u (gate, key) WHERE u.gate = ANY (keyed) AND u.key <> ''
        );
    END IF;
    -- Let the tasks that are due by now wait among the due ones.
    FOR head IN
        SELECT d.run, d.number FROM @tasks d WHERE d.state = 1 AND d.not_before <= at AND d.gate = 0
        ORDER BY d.not_before FOR UPDATE SKIP LOCKED
    LOOP
        UPDATE @tasks t SET state = 0 WHERE t.run = head.run AND t.number = head.number;
    END LOOP;
    WHILE NOT settles LOOP
        heads := '{{}}'; held := 0; names := '{{}}';
        in_queue := '';
        LOOP
            SELECT t.queue INTO in_queue FROM @tasks t
            WHERE t.state = 0 AND t.queue > in_queue ORDER BY t.queue LIMIT 1;
            EXIT WHEN NOT FOUND;
            of_gate := 0; room := most; key_room := most;
            IF gate_n IS NOT NULL AND in_queue = ANY (gate_name) THEN
                place := array_position(gate_name, in_queue);
                of_gate := gate_n[place];
                CONTINUE WHEN of_gate <> ALL (locked);
                room := least(most, rooms[place] - (
                    SELECT count(*) FROM @tasks t WHERE t.gate = of_gate AND t.gate <> 0 AND t.state = 3
                ));
                key_room := least(room, key_rooms[place]);
                CONTINUE WHEN room <= 0;
            END IF;
            name := '';
            LOOP
                SELECT t.action INTO name FROM @tasks t
                WHERE t.state = 0 AND t.queue = in_queue AND t.action > name ORDER BY t.action LIMIT 1;
                EXIT WHEN NOT FOUND;
                place := array_position(executable, name);
                CONTINUE WHEN place IS NULL OR (of_gate = 0 AND action_rooms[place] <= 0)
                    OR EXISTS (
                        SELECT 1 FROM unnest(but_queue, but_action) AS b (q, a) WHERE b.q = in_queue AND b.a = name
                    );
                IF of_gate = 0 THEN
                    -- Some more, as those of other sessions may be locked, or their runs held.
                    room := least(most, action_rooms[place]) + 32;
                    IF name <> ALL (names) THEN names := names || name; END IF;
                END IF;
                FOREACH at_target IN ARRAY targets LOOP
                    heads := heads || ARRAY(
                        SELECT ROW (t.run, t.number, of_gate, t.queue, t.action, t.target, t.key, t.priority, t.turn,
                            t.age, r.hold)::@candidate
                        FROM @tasks t
                        CROSS JOIN LATERAL (SELECT r.hold FROM @runs r WHERE r.n = t.run OFFSET 0) r
                        WHERE t.state = 0 AND t.queue = in_queue AND t.action = name AND t.target = at_target
                            AND t.not_before <= at
                        ORDER BY t.priority DESC, t.turn, t.age
                        LIMIT CASE of_gate WHEN 0 THEN room ELSE greatest(room, 64) END
                    );
                END LOOP;
            END LOOP;
            IF of_gate = ANY (keyed) AND key_room > 1 THEN
                -- A key in front may start several: those behind the first ones.
                heads := heads || ARRAY(
                    SELECT b.task FROM (
                        SELECT DISTINCT h.action, h.target, h.key FROM unnest(heads) h
                        WHERE h.gate = of_gate AND h.key <> ''
                    ) f CROSS JOIN LATERAL (
                        SELECT ROW (t.run, t.number, of_gate, t.queue, t.action, t.target, t.key, t.priority, t.turn,
                            t.age, r.hold)::@candidate AS task
                        FROM @tasks t
                        CROSS JOIN LATERAL (SELECT r.hold FROM @runs r WHERE r.n = t.run OFFSET 0) r
                        WHERE t.gate = of_gate AND t.gate <> 0 AND t.state = -1 AND t.key = f.key
                            AND t.action = f.action AND t.target = f.target AND t.not_before <= at AND r.hold = 0
                        ORDER BY t.priority DESC, t.turn, t.age LIMIT key_room - 1
                    ) b
                );
            END IF;
        END LOOP;
        -- Tasks of a held run are put aside by the first who meets them, until the hold is lifted: under the lock of
        -- the run, so that it is not lifted meanwhile; if someone has the run or the task, they stay for another time.
        FOR head IN SELECT h.* FROM unnest(heads) h WHERE h.hold <> 0 LOOP
            PERFORM 1 FROM @runs r WHERE r.n = head.run AND r.hold <> 0 FOR SHARE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
            PERFORM 1 FROM @tasks t WHERE t.run = head.run AND t.number = head.number AND t.state::integer = 0
            FOR UPDATE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
            UPDATE @tasks t SET state = 2 WHERE t.run = head.run AND t.number = head.number;
            held := held + 1;
            IF head.gate = ANY (keyed) AND head.key <> '' THEN
                PERFORM @settle_key_1(head.gate, head.key, true, NULL);
            END IF;
        END LOOP;
        EXIT WHEN held = 0;
    END LOOP;
    share := greatest(most / greatest(cardinality(names), 1), 1);
    SELECT json_agg(json_build_array(c.run, c.number, c.gate, c.queue, c.action, c.target, c.key, c.priority, c.turn,
        c.age)) INTO got
    FROM (
        SELECT f.run, f.number, f.gate, f.queue, f.action, f.target, f.key, f.priority, f.turn, f.age
        FROM unnest(names) AS n (name)
        CROSS JOIN LATERAL (
            SELECT t.* FROM (
                SELECT * FROM unnest(heads) o WHERE o.hold = 0 AND o.gate = 0 AND o.action = n.name
                ORDER BY o.priority DESC, o.age
            ) h
            CROSS JOIN LATERAL (
                SELECT * FROM @tasks w WHERE w.run = h.run AND w.number = h.number AND w.state::integer = 0
                FOR UPDATE SKIP LOCKED
            ) t LIMIT least(share, action_rooms[array_position(executable, n.name)])
        ) f
        UNION ALL
        SELECT h.run, h.number, h.gate, h.queue, h.action, h.target, h.key, h.priority, h.turn, h.age
        FROM unnest(heads) h WHERE h.hold = 0 AND h.gate <> 0
    ) c;
    SELECT t.not_before INTO later FROM @tasks t WHERE t.state = 1 AND t.not_before > at
    ORDER BY t.not_before LIMIT 1;
    IF gate_n IS NULL THEN
        RETURN json_build_object('tasks', coalesce(got, '[]'), 'later', later, 'share', share)::text;
    END IF;
    SELECT b.opens_at INTO opening FROM @buckets b WHERE b.opens_at > at ORDER BY b.opens_at LIMIT 1;
    SELECT key_gate || array_agg(c.gate), key_name || array_agg(c.key) INTO key_gate, key_name FROM (
        SELECT DISTINCT h.gate, h.key FROM unnest(heads) h WHERE h.gate = ANY (keyed) AND h.key <> ''
    ) c;
    RETURN json_build_object('tasks', coalesce(got, '[]'), 'later', least(later, opening), 'share', share,
        'settles', settles, 'seen', told -> 0, 'locked', told -> 1,
        'touched', told -> 2,
        'facts', @facts_1(ARRAY(SELECT x::text::bigint FROM json_array_elements(told -> 0) x), key_gate, key_name)
    )::text;
    """,
    declare=(
        "told json; locked bigint[]; key_gate bigint[]; key_name text[]; settles boolean := false;"
        " heads @candidate[] := '{}'; head record; held integer; in_queue text; name text; at_target text;"
        " of_gate bigint; place integer; room integer; key_room integer; got json; names text[] := '{}'; share integer;"
        " later double precision; opening double precision;"
    ),
)

# Lease candidates, which the transaction has locked; the tasks, in their order, as a JSON array.
LEASE = Function(
    "lease_2",
    """
    me bigint
    at double precision
    runs bigint[]
    numbers integer[]
    leases bigint[]
    """,
    "text",
    f"""
    FOR place IN 1 .. cardinality(runs) LOOP
        UPDATE @tasks t SET state = 3, session = me, lease = leases[place], started_at = at
        WHERE t.run = runs[place] AND t.number = numbers[place] AND t.state IN (0, -1);
        IF NOT FOUND THEN RAISE EXCEPTION 'changed' USING ERRCODE = '{CHANGED}'; END IF;
    END LOOP;
    RETURN (
        SELECT json_agg(json_build_array(r.key, t.number, t.address, t.generation, t.attempt, t.action, t.queue,
            t.priority, t.not_before, t.call, r.id, t.lease, t.key, t.target) ORDER BY u.place)
        FROM unnest(runs, numbers) WITH ORDINALITY AS u (run, number, place)
        CROSS JOIN LATERAL (SELECT * FROM @tasks o WHERE o.run = u.run AND o.number = u.number OFFSET 0) t
        CROSS JOIN LATERAL (SELECT o.key, o.id FROM @runs o WHERE o.n = t.run OFFSET 0) r
    )::text;
    """,
)
