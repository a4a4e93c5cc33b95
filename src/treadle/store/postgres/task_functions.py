"""The functions of sessions: what they do with tasks and runs, and that they live."""

from __future__ import annotations

from treadle.store.postgres.functions import ALIVE, ALIVE_OR_ANSWER, CHANGED, Function

# Leased tasks that ended; for each whether its token was live. `payload_of` is the place of the report, from 1.
REPORT = Function(
    "report_1",
    """
    me bigint
    link integer
    keys text[]
    numbers integer[]
    leases bigint[]
    ids text[]
    bodies bytea[]
    payload_of integer[]
    digests text[]
    payloads bytea[]
    """,
    "boolean[]",
    f"""
    {ALIVE}
    IF NOT FOUND THEN RETURN NULL; END IF;
    FOR place IN 1 .. cardinality(keys) LOOP
        DELETE FROM @tasks t WHERE t.run = (SELECT r.n FROM @runs r WHERE r.key = keys[place])
            AND t.number = numbers[place] AND t.lease = leases[place] AND t.session = me AND t.state = 3
        RETURNING t.run INTO got;
        answers[place] := FOUND;
        IF FOUND THEN
            INSERT INTO @inbox (run, id, body) VALUES (got, ids[place], bodies[place]) ON CONFLICT DO NOTHING;
            INSERT INTO @payloads (run, digest, body)
            SELECT got, u.digest, u.body FROM unnest(payload_of, digests, payloads) AS u (of, digest, body)
            WHERE u.of = place ON CONFLICT DO NOTHING;
        END IF;
    END LOOP;
    RETURN answers;
    """,
    declare="got bigint; answers boolean[] := '{}';",
)

# Leased tasks that wait again, as the youngest of their queue; for each whether it does.
POSTPONE = Function(
    "postpone_1",
    """
    me bigint
    link integer
    at double precision
    keys text[]
    numbers integer[]
    leases bigint[]
    times double precision[]
    calls text[]
    """,
    "boolean[]",
    f"""
    {ALIVE}
    IF NOT FOUND THEN RETURN NULL; END IF;
    FOR place IN 1 .. cardinality(keys) LOOP
        UPDATE @tasks t SET state = CASE WHEN times[place] > at THEN 1 ELSE 0 END, session = 0, lease = 0,
            started_at = 0, age = nextval('@ages'), not_before = times[place], call = calls[place]
        WHERE t.run = (SELECT r.n FROM @runs r WHERE r.key = keys[place]) AND t.number = numbers[place]
            AND t.lease = leases[place] AND t.session = me AND t.state = 3 AND t.interrupt = 0;
        answers[place] := FOUND;
    END LOOP;
    RETURN answers;
    """,
    declare="answers boolean[] := '{}';",
)

PROGRESS = Function(
    "progress_1",
    """
    me bigint
    link integer
    keys text[]
    numbers integer[]
    leases bigint[]
    notes text[]
    """,
    "text",
    f"""
    {ALIVE_OR_ANSWER}
    FOR place IN 1 .. cardinality(keys) LOOP
        SELECT r.n INTO of_run FROM @runs r WHERE r.key = keys[place];
        UPDATE @tasks t SET progress = notes[place] WHERE t.run = of_run AND t.number = numbers[place]
            AND t.lease = leases[place] AND t.session = me AND t.state = 3;
    END LOOP;
    RETURN 'done';
    """,
    declare="of_run bigint;",
)

# Counts the beat up. The answer is a JSON array of the interrupts: [key, number, lease].
RENEW = Function(
    "renew_1",
    """
    me bigint
    link integer
    waits integer
    """,
    "text",
    """
    UPDATE @sessions s SET beat = s.beat + 1, waits = coalesce(renew_1.waits, s.waits)
    WHERE s.n = me AND s.link = renew_1.link AND NOT s.ended;
    IF NOT FOUND THEN RETURN 'lost'; END IF;
    RETURN coalesce((
        SELECT json_agg(json_build_array(r.key, t.number, t.lease)) FROM @tasks t JOIN @runs r ON r.n = t.run
        WHERE t.interrupt = 1 AND t.session = me AND t.state = 3
    )::text, '[]');
    """,
)

# Whether tasks are due that the session could claim, and when the next task falls due after `at`.
LOOK = Function(
    "look_1",
    """
    me bigint
    link integer
    at double precision
    """,
    "text",
    """
    IF NOT EXISTS (SELECT 1 FROM @sessions s WHERE s.n = me AND s.link = look_1.link AND NOT s.ended) THEN
        RETURN 'lost';
    END IF;
    SELECT EXISTS (SELECT 1 FROM @tasks t WHERE t.state = 0)
        OR EXISTS (SELECT 1 FROM @tasks t WHERE t.state = 1 AND t.not_before <= at) INTO due;
    SELECT t.not_before INTO later FROM @tasks t WHERE t.state = 1 AND t.not_before > at
    ORDER BY t.not_before LIMIT 1;
    RETURN CASE WHEN due THEN 'due ' ELSE 'none ' END || coalesce(later::text, '-');
    """,
    declare="due boolean; later double precision;",
)

# The first due tasks of some actions, over all queues by priority, then age, leaving out some pairs of queue and
# action. They are locked until the transaction ends, so that no other session looks at them; those that another
# session has locked are passed over. The answer is a JSON array of [run, number, queue, action].
CANDIDATES = Function(
    "candidates_1",
    """
    me bigint
    link integer
    at double precision
    most integer
    executable text[]
    but_queue text[]
    but_action text[]
    """,
    "text",
    f"""
    {ALIVE_OR_ANSWER}
    -- Let the tasks that are due by now wait among the due ones.
    FOR head IN
        SELECT d.run, d.number, 0, 0, 0 FROM @tasks d WHERE d.state = 1 AND d.not_before <= at
        ORDER BY d.not_before FOR UPDATE SKIP LOCKED
    LOOP
        UPDATE @tasks t SET state = 0 WHERE t.run = head.run AND t.number = head.number;
    END LOOP;
    LOOP
        heads := '{{}}'; held := '{{}}';
        in_queue := '';
        LOOP
            SELECT t.queue INTO in_queue FROM @tasks t
            WHERE t.state = 0 AND t.queue > in_queue ORDER BY t.queue LIMIT 1;
            EXIT WHEN NOT FOUND;
            name := '';
            LOOP
                SELECT t.action INTO name FROM @tasks t
                WHERE t.state = 0 AND t.queue = in_queue AND t.action > name ORDER BY t.action LIMIT 1;
                EXIT WHEN NOT FOUND;
                CONTINUE WHEN name <> ALL (executable)
                    OR EXISTS (
                        SELECT 1 FROM unnest(but_queue, but_action) AS b (q, a) WHERE b.q = in_queue AND b.a = name
                    );
                heads := heads || ARRAY(
                    SELECT ROW (t.run, t.number, t.priority, t.age, r.hold)::@head
                    FROM @tasks t
                    CROSS JOIN LATERAL (SELECT r.hold FROM @runs r WHERE r.n = t.run OFFSET 0) r
                    WHERE t.state = 0 AND t.queue = in_queue AND t.action = name AND t.not_before <= at
                    ORDER BY t.priority DESC, t.age LIMIT greatest(most, 64)
                );
            END LOOP;
        END LOOP;
        -- Tasks of a held run are put aside by the first who meets them, until the hold is lifted: under the lock of
        -- the run, so that it is not lifted meanwhile; if someone has the run or the task, they stay for another time.
        FOR head IN SELECT h.* FROM unnest(heads) h WHERE h.hold <> 0 LOOP
            PERFORM 1 FROM @runs r WHERE r.n = head.run AND r.hold <> 0 FOR SHARE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
            PERFORM 1 FROM @tasks t WHERE t.run = head.run AND t.number = head.number AND t.state = 0
            FOR UPDATE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
            UPDATE @tasks t SET state = 2 WHERE t.run = head.run AND t.number = head.number;
            held := held || head.run;
        END LOOP;
        SELECT json_agg(json_build_array(c.run, c.number, c.queue, c.action)) INTO got FROM (
            SELECT t.run, t.number, t.queue, t.action
            FROM (SELECT * FROM unnest(heads) o WHERE o.hold = 0 ORDER BY o.priority DESC, o.age) h
            CROSS JOIN LATERAL (
                SELECT w.run, w.number, w.queue, w.action FROM @tasks w
                WHERE w.run = h.run AND w.number = h.number AND w.state = 0 FOR UPDATE SKIP LOCKED
            ) t LIMIT most
        ) c;
        EXIT WHEN got IS NOT NULL OR cardinality(held) = 0;
    END LOOP;
    RETURN coalesce(got::text, '[]');
    """,
    declare="heads @head[]; head @head; held bigint[]; in_queue text; name text; got json;",
)

# Lease candidates, which the transaction has locked; the tasks, in their order, as a JSON array.
LEASE = Function(
    "lease_1",
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
        WHERE t.run = runs[place] AND t.number = numbers[place] AND t.state = 0;
        IF NOT FOUND THEN RAISE EXCEPTION 'changed' USING ERRCODE = '{CHANGED}'; END IF;
    END LOOP;
    RETURN (
        SELECT json_agg(json_build_array(r.key, t.number, t.address, t.generation, t.attempt, t.action, t.queue,
            t.priority, t.not_before, t.call, r.id, t.lease) ORDER BY u.place)
        FROM unnest(runs, numbers) WITH ORDINALITY AS u (run, number, place)
        CROSS JOIN LATERAL (SELECT * FROM @tasks o WHERE o.run = u.run AND o.number = u.number OFFSET 0) t
        CROSS JOIN LATERAL (SELECT o.key, o.id FROM @runs o WHERE o.n = t.run OFFSET 0) r
    )::text;
    """,
)

# Own a run if nobody alive does, or in any case; [owner's number, owner's id], or nothing if there is no such run.
ACQUIRE = Function(
    "acquire_1",
    """
    me bigint
    link integer
    of_key text
    steals boolean
    """,
    "text",
    f"""
    {ALIVE_OR_ANSWER}
    SELECT r.n, r.owner INTO of_run, holder FROM @runs r WHERE r.key = of_key FOR NO KEY UPDATE;
    IF NOT FOUND THEN RETURN 'none'; END IF;
    IF holder <> me AND NOT steals THEN
        SELECT s.id INTO other FROM @sessions s WHERE s.n = holder AND NOT s.ended;
        IF FOUND THEN RETURN 'held ' || other; END IF;
    END IF;
    IF holder <> me THEN UPDATE @runs r SET owner = me WHERE r.n = of_run; END IF;
    RETURN 'owned';
    """,
    declare="of_run bigint; holder bigint; other text;",
)

RELEASE = Function(
    "release_1",
    """
    me bigint
    link integer
    keys text[]
    """,
    "text",
    f"""
    {ALIVE_OR_ANSWER}
    PERFORM 1 FROM @runs r WHERE r.key = ANY (keys) AND r.owner = me ORDER BY r.n FOR NO KEY UPDATE;
    UPDATE @runs r SET owner = 0 WHERE r.key = ANY (keys) AND r.owner = me;
    RETURN 'done';
    """,
)

# Hold a role, if nobody alive does. A holder that asks again writes nothing.
ELECT = Function(
    "elect_1",
    """
    me bigint
    link integer
    of_role text
    """,
    "text",
    f"""
    {ALIVE_OR_ANSWER}
    SELECT o.session INTO holder FROM @roles o JOIN @sessions s ON s.n = o.session AND NOT s.ended
    WHERE o.role = of_role;
    IF FOUND THEN RETURN CASE WHEN holder = me THEN 'held' ELSE 'other' END; END IF;
    INSERT INTO @roles AS o (role, session) VALUES (of_role, me) ON CONFLICT (role) DO UPDATE SET session = me
    WHERE NOT EXISTS (SELECT 1 FROM @sessions s WHERE s.n = o.session AND NOT s.ended);
    RETURN CASE WHEN FOUND THEN 'held' ELSE 'other' END;
    """,
    declare="holder bigint;",
)
