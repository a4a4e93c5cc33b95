"""The functions of sessions: what they do with tasks and runs, and that they live."""

from __future__ import annotations

from treadle.store.postgres.functions import ALIVE_OR_ANSWER, ALIVE_WITH_QUEUES, RAISE_GATED, Function

# Leased tasks that ended; for each whether its token was live, the living session that decides the run, and its
# address, as a JSON array. `payload_of` is the place of the report, from 1.
REPORT = Function(
    "report_3",
    """
    me bigint
    link integer
    definitions integer
    locked bigint[]
    keys text[]
    numbers integer[]
    leases bigint[]
    ids text[]
    bodies bytea[]
    payload_of integer[]
    digests text[]
    payloads bytea[]
    """,
    "text",
    f"""
    {ALIVE_WITH_QUEUES}
    FOR place IN 1 .. cardinality(keys) LOOP
        SELECT r.n, r.owner INTO got, holder FROM @runs r WHERE r.key = keys[place];
        DELETE FROM @tasks t WHERE t.run = got
            AND t.number = numbers[place] AND t.lease = leases[place] AND t.session = me AND t.state = 3
        RETURNING t.gate INTO of_gate;
        live := FOUND;
        answers[place] := coalesce((
            SELECT json_build_array(live, s.id, s.wake) FROM @sessions s WHERE s.n = holder AND NOT s.ended
        ), json_build_array(live));
        IF live THEN
            IF of_gate <> 0 AND of_gate <> ALL (coalesce(locked, '{{}}')) THEN {RAISE_GATED} END IF;
            INSERT INTO @inbox (run, id, body) VALUES (got, ids[place], bodies[place]) ON CONFLICT DO NOTHING;
            INSERT INTO @payloads (run, digest, body)
            SELECT got, u.digest, u.body FROM unnest(payload_of, digests, payloads) AS u (of, digest, body)
            WHERE u.of = place ON CONFLICT DO NOTHING;
        END IF;
    END LOOP;
    RETURN array_to_json(answers)::text;
    """,
    declare="got bigint; holder bigint; of_gate bigint; live boolean; answers json[] := '{}';",
)

# Leased tasks that wait again, as the youngest of their queue; for each whether it does.
POSTPONE = Function(
    "postpone_2",
    """
    me bigint
    link integer
    definitions integer
    locked bigint[]
    at double precision
    keys text[]
    numbers integer[]
    leases bigint[]
    times double precision[]
    states integer[]
    turns double precision[]
    calls text[]
    """,
    "boolean[]",
    f"""
    {ALIVE_WITH_QUEUES}
    FOR place IN 1 .. cardinality(keys) LOOP
        UPDATE @tasks t SET state = states[place], session = 0, lease = 0, started_at = at, age = nextval('@ages'),
            not_before = times[place], call = calls[place], turn = turns[place]
        WHERE t.run = (SELECT r.n FROM @runs r WHERE r.key = keys[place]) AND t.number = numbers[place]
            AND t.lease = leases[place] AND t.session = me AND t.state = 3 AND t.interrupt = 0
        RETURNING t.gate INTO of_gate;
        answers[place] := FOUND;
        IF FOUND AND of_gate <> 0 AND of_gate <> ALL (coalesce(locked, '{{}}')) THEN {RAISE_GATED} END IF;
    END LOOP;
    RETURN answers;
    """,
    declare="of_gate bigint; answers boolean[] := '{}';",
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

# Whether a claim could find tasks, and when the next task falls due after `at`, or a key may start again;
# and the version of the definitions of queues.
LOOK = Function(
    "look_2",
    """
    me bigint
    link integer
    at double precision
    """,
    "text",
    """
    SELECT s.queues INTO definitions FROM @sessions s WHERE s.n = me AND s.link = look_2.link AND NOT s.ended;
    IF NOT FOUND THEN RETURN 'lost'; END IF;
    SELECT EXISTS (SELECT 1 FROM @tasks t WHERE t.state = 0)
        OR EXISTS (SELECT 1 FROM @tasks t WHERE t.state = 1 AND t.not_before <= at)
        OR EXISTS (SELECT 1 FROM @buckets b WHERE b.opens_at <= at) INTO due;
    SELECT t.not_before INTO later FROM @tasks t WHERE t.state = 1 AND t.not_before > at
    ORDER BY t.not_before LIMIT 1;
    SELECT b.opens_at INTO opening FROM @buckets b WHERE b.opens_at > at ORDER BY b.opens_at LIMIT 1;
    later := least(later, opening);
    RETURN CASE WHEN due THEN 'due ' ELSE 'none ' END || coalesce(later::text, '-') || ' ' || definitions;
    """,
    declare="due boolean; later double precision; opening double precision; definitions integer;",
)

# What waits in the inboxes of runs that a session owns: a JSON array of [key, id, body in base64], oldest first.
INBOXES = Function(
    "inboxes_1",
    """
    of_session text
    """,
    "text",
    """
    RETURN (
        SELECT json_agg(
            json_build_array(r.key, i.id, translate(encode(i.body, 'base64'), E'\\n', '')) ORDER BY r.n, i.seq
        )
        FROM @inbox i
        CROSS JOIN LATERAL (SELECT o.n, o.key, o.owner FROM @runs o WHERE o.n = i.run OFFSET 0) r
        CROSS JOIN LATERAL (
            SELECT 1 FROM @sessions o WHERE o.n = r.owner AND o.id = of_session AND NOT o.ended OFFSET 0
        ) s
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
