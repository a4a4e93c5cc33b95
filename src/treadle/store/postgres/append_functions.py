"""The functions that write appends, with all that an append does to tasks and to other runs."""

from __future__ import annotations

from treadle.store.postgres.functions import ALIVE_WITH_QUEUES, BEHIND, CHANGED, FENCED, LATE, RAISE_GATED, Function

# What would be claimed before a new task of equal or lower priority: the highest priority of the due tasks of a queue
# that the session could claim, NULL if there are none. Some tasks that the transaction ends are left out.
CEILING = Function(
    "ceiling_2",
    """
    of_queue text
    executable text[]
    targets text[]
    at double precision
    but_run bigint[]
    but_number integer[]
    """,
    "integer",
    """
    -- From one distinct action to the next: what a session cannot execute costs one step, however much of it waits.
    LOOP
        SELECT t.action INTO name FROM @tasks t
        WHERE t.state = 0 AND t.queue = of_queue AND t.action > name ORDER BY t.action LIMIT 1;
        EXIT WHEN NOT FOUND;
        CONTINUE WHEN name <> ALL (executable);
        FOREACH place IN ARRAY targets LOOP
            SELECT t.priority INTO got FROM @tasks t
            CROSS JOIN LATERAL (SELECT 1 FROM @runs r WHERE r.n = t.run AND r.hold = 0 OFFSET 0) r
            WHERE t.state = 0 AND t.queue = of_queue AND t.action = name AND t.target = place AND t.not_before <= at
                AND NOT EXISTS (
                    SELECT 1 FROM unnest(but_run, but_number) AS b (run, number)
                    WHERE b.run = t.run AND b.number = t.number
                )
            ORDER BY t.priority DESC, t.turn, t.age LIMIT 1;
            top := greatest(top, got);
        END LOOP;
    END LOOP;
    -- Those that fell due and were not moved over yet.
    SELECT max(t.priority) INTO got FROM @tasks t
    CROSS JOIN LATERAL (SELECT 1 FROM @runs r WHERE r.n = t.run AND r.hold = 0 OFFSET 0) r
    WHERE t.state = 1 AND t.not_before <= at AND t.queue = of_queue AND t.action = ANY (executable)
        AND t.target = ANY (targets);
    RETURN greatest(top, got);
    """,
    declare="name text := ''; place text; top integer; got integer;",
)

_STEP_COLUMNS = (
    "run, number, generation, attempt, added_at, ready_at, dispatched_at, started_at, finished_at, address, action,"
    " status, result, code, message, detail, causes, worker, undo"
)
_STEP_SETS = ", ".join(f"{name} = excluded.{name}" for name in _STEP_COLUMNS.split(", ")[2:])

# Inputs for inboxes, those of one run in the order they came; whether their runs are there.
POST = Function(
    "post_1",
    """
    keys text[]
    ids text[]
    bodies bytea[]
    """,
    "boolean[]",
    """
    -- So that nobody deletes a run meanwhile. It does not hold back who appends to it.
    PERFORM 1 FROM @runs r WHERE r.key = ANY (keys) ORDER BY r.n FOR KEY SHARE;
    INSERT INTO @inbox (run, id, body)
    SELECT r.n, u.id, u.body FROM unnest(keys, ids, bodies) WITH ORDINALITY AS u (key, id, body, place)
    CROSS JOIN LATERAL (SELECT r.n FROM @runs r WHERE r.key = u.key OFFSET 0) r ORDER BY r.n, u.place
    ON CONFLICT DO NOTHING;
    RETURN (
        SELECT array_agg(EXISTS (SELECT 1 FROM @runs r WHERE r.key = u.key) ORDER BY u.place)
        FROM unnest(keys) WITH ORDINALITY AS u (key, place)
    );
    """,
)

# A group of appends. Absent parts are NULL. The client has worked out one final state for each row.
COMMIT = Function(
    "commit_2",
    """
    me bigint
    link integer
    definitions integer
    locked bigint[]
    at double precision
    queues text[]
    ceilings integer[]
    executable text[]
    targets text[]
    may_answer boolean
    run_n bigint[]
    run_was integer[]
    run_hold_was bigint[]
    run_version integer[]
    run_hold bigint[]
    run_status text[]
    run_owner bigint[]
    run_time double precision[]
    unwound_run bigint[]
    unwound text[]
    new_n bigint[]
    new_key text[]
    new_id text[]
    new_workflow text[]
    new_plan text[]
    new_status text[]
    new_hold bigint[]
    new_version integer[]
    new_owner bigint[]
    new_labels text[]
    new_created double precision[]
    new_time double precision[]
    new_parent text[]
    new_name text[]
    new_metadata text[]
    new_head text[]
    plan_hash text[]
    plan_body bytea[]
    label_run bigint[]
    label_name text[]
    label_value text[]
    journal_run bigint[]
    journal_version integer[]
    journal_commit bigint[]
    journal_time double precision[]
    journal_events text[]
    ended_run bigint[]
    ended_number integer[]
    unsettled_run bigint[]
    unsettled_number integer[]
    step_run bigint[]
    step_number integer[]
    step_generation integer[]
    step_attempt integer[]
    step_added double precision[]
    step_ready double precision[]
    step_dispatched double precision[]
    step_started double precision[]
    step_finished double precision[]
    step_address text[]
    step_action text[]
    step_status text[]
    step_result text[]
    step_code text[]
    step_message text[]
    step_detail text[]
    step_causes text[]
    step_worker text[]
    step_undo text[]
    undo_run bigint[]
    undo_address text[]
    undo_status text[]
    payload_run bigint[]
    payload_digest text[]
    payload_body bytea[]
    consumed_run bigint[]
    consumed_id text[]
    task_run bigint[]
    task_number integer[]
    task_state integer[]
    task_generation integer[]
    task_attempt integer[]
    task_priority integer[]
    task_lease bigint[]
    task_not_before double precision[]
    task_started double precision[]
    task_queue text[]
    task_action text[]
    task_address text[]
    task_call text[]
    task_gate bigint[]
    task_key text[]
    task_target text[]
    task_turn double precision[]
    post_key text[]
    post_id text[]
    post_body bytea[]
    """,
    "text",
    f"""
    IF queues IS NOT NULL THEN
        SELECT array_agg(@ceiling_2(u.q, executable, targets, at, NULL, NULL) ORDER BY u.place) INTO got
        FROM unnest(queues) WITH ORDINALITY AS u (q, place);
        IF got IS DISTINCT FROM ceilings THEN
            IF may_answer THEN
                RETURN 'behind ' || array_to_string(got, ',', '-');
            END IF;
            RAISE EXCEPTION 'behind' USING ERRCODE = '{BEHIND}', DETAIL = array_to_string(got, ',', '-');
        END IF;
    END IF;
    {ALIVE_WITH_QUEUES}
    IF run_n IS NOT NULL THEN
        FOR place IN 1 .. cardinality(run_n) LOOP
            UPDATE @runs r SET version = run_version[place], hold = run_hold[place], status = run_status[place],
                owner = run_owner[place], updated_at = run_time[place]
            WHERE r.n = run_n[place] AND r.version = run_was[place] AND r.owner = me AND r.hold = run_hold_was[place];
            IF NOT FOUND THEN RAISE EXCEPTION 'changed' USING ERRCODE = '{CHANGED}'; END IF;
        END LOOP;
    END IF;
    IF new_n IS NOT NULL THEN
        -- Shared by all who make runs; who clears plans away that no run uses holds it alone.
        PERFORM pg_advisory_xact_lock_shared('@plans'::regclass::integer, 1);
        IF plan_hash IS NOT NULL THEN
            INSERT INTO @plans (hash, body) SELECT * FROM unnest(plan_hash, plan_body) ON CONFLICT (hash) DO NOTHING;
        END IF;
        INSERT INTO @runs (n, key, id, workflow, plan, status, unwound, hold, version, owner, labels, created_at,
            updated_at, parent, name, metadata)
        SELECT u.n, u.key, u.id, u.workflow, p.n, u.status, '', u.hold, u.version, u.owner, u.labels,
            u.created_at, u.time, u.parent, u.name, u.metadata
        FROM unnest(new_n, new_key, new_id, new_workflow, new_plan, new_status, new_hold, new_version, new_owner,
            new_labels, new_created, new_time, new_parent, new_name, new_metadata)
            AS u (n, key, id, workflow, plan, status, hold, version, owner, labels, created_at, time, parent, name,
                metadata)
        CROSS JOIN LATERAL (SELECT p.n FROM @plans p WHERE p.hash = u.plan OFFSET 0) p
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS changed = ROW_COUNT;
        IF changed <> cardinality(new_n) OR EXISTS (SELECT 1 FROM @tombstones t WHERE t.key = ANY (new_key)) THEN
            RAISE EXCEPTION 'changed' USING ERRCODE = '{CHANGED}';
        END IF;
        INSERT INTO @heads (run, head) SELECT * FROM unnest(new_n, new_head);
        IF label_run IS NOT NULL THEN
            INSERT INTO @labels (run, name, value) SELECT * FROM unnest(label_run, label_name, label_value);
        END IF;
    END IF;
    IF unwound_run IS NOT NULL THEN
        FOR place IN 1 .. cardinality(unwound_run) LOOP
            UPDATE @runs r SET unwound = commit_2.unwound[place] WHERE r.n = unwound_run[place];
        END LOOP;
    END IF;
    INSERT INTO @journal (run, version, commit_id, time, session, events)
    SELECT u.run, u.version, u.commit_id, u.time, me, u.events
    FROM unnest(journal_run, journal_version, journal_commit, journal_time, journal_events)
        AS u (run, version, commit_id, time, events);

    IF ended_run IS NOT NULL THEN
        changed := 0;
        FOR place IN 1 .. cardinality(ended_run) LOOP
            DELETE FROM @tasks t WHERE t.run = ended_run[place] AND t.number = ended_number[place]
            RETURNING t.state, t.gate INTO was, of_gate;
            IF FOUND AND of_gate <> 0 AND of_gate <> ALL (coalesce(locked, '{{}}')) THEN {RAISE_GATED} END IF;
            IF FOUND AND was < 3 THEN changed := changed + 1; END IF;
        END LOOP;
        IF changed > 0 AND queues IS NOT NULL THEN
            -- They held others back until their turn came.
            IF cardinality(journal_run) > 1 THEN RAISE EXCEPTION 'late' USING ERRCODE = '{LATE}'; END IF;
            SELECT array_agg(@ceiling_2(u.q, executable, targets, at, NULL, NULL) ORDER BY u.place) INTO got
            FROM unnest(queues) WITH ORDINALITY AS u (q, place);
            IF got IS DISTINCT FROM ceilings THEN
                RAISE EXCEPTION 'behind' USING ERRCODE = '{BEHIND}', DETAIL = array_to_string(got, ',', '-');
            END IF;
        END IF;
    END IF;
    IF unsettled_run IS NOT NULL THEN
        FOR place IN 1 .. cardinality(unsettled_run) LOOP
            DELETE FROM @steps s WHERE s.run = unsettled_run[place] AND s.number = unsettled_number[place];
        END LOOP;
    END IF;
    IF step_run IS NOT NULL THEN
        INSERT INTO @steps ({_STEP_COLUMNS})
        SELECT * FROM unnest(step_run, step_number, step_generation, step_attempt, step_added, step_ready,
            step_dispatched, step_started, step_finished, step_address, step_action, step_status, step_result,
            step_code, step_message, step_detail, step_causes, step_worker, step_undo)
        ON CONFLICT (run, number) DO UPDATE SET {_STEP_SETS};
    END IF;
    IF undo_run IS NOT NULL THEN
        FOR place IN 1 .. cardinality(undo_run) LOOP
            UPDATE @steps s SET undo = undo_status[place] WHERE s.run = undo_run[place]
                AND hashtextextended(s.address, 0) = hashtextextended(undo_address[place], 0)
                AND s.address = undo_address[place];
        END LOOP;
    END IF;
    IF payload_run IS NOT NULL THEN
        INSERT INTO @payloads (run, digest, body) SELECT * FROM unnest(payload_run, payload_digest, payload_body)
        ON CONFLICT DO NOTHING;
    END IF;
    IF consumed_run IS NOT NULL THEN
        FOR place IN 1 .. cardinality(consumed_run) LOOP
            DELETE FROM @inbox i WHERE i.run = consumed_run[place] AND i.id = consumed_id[place];
        END LOOP;
    END IF;
    IF task_run IS NOT NULL THEN
        INSERT INTO @tasks AS tasks (run, number, state, interrupt, generation, attempt, priority, session, lease, age,
            not_before, started_at, queue, action, address, progress, call, gate, key, target, turn)
        SELECT u.run, u.number, u.state, 0, u.generation, u.attempt, u.priority,
            CASE u.state WHEN 3 THEN me ELSE 0 END, u.lease,
            CASE u.state WHEN 3 THEN 0 ELSE nextval('@ages') END, u.not_before,
            u.started_at, u.queue, u.action, u.address, '', u.call, u.gate, u.key, u.target, u.turn
        FROM unnest(task_run, task_number, task_state, task_generation, task_attempt, task_priority, task_lease,
            task_not_before, task_started, task_queue, task_action, task_address, task_call, task_gate, task_key,
            task_target, task_turn)
            AS u (run, number, state, generation, attempt, priority, lease, not_before, started_at, queue, action,
                address, call, gate, key, target, turn)
        ON CONFLICT (run, number) DO UPDATE SET state = excluded.state, interrupt = 0,
            generation = excluded.generation, attempt = excluded.attempt, priority = excluded.priority,
            session = excluded.session, lease = excluded.lease, age = excluded.age, not_before = excluded.not_before,
            started_at = excluded.started_at, queue = excluded.queue, action = excluded.action,
            address = excluded.address, progress = '', call = excluded.call, gate = excluded.gate, key = excluded.key,
            target = excluded.target, turn = excluded.turn
        WHERE tasks.gate = 0 OR tasks.gate = ANY (locked);
        GET DIAGNOSTICS changed = ROW_COUNT;
        IF changed <> cardinality(task_run) THEN {RAISE_GATED} END IF;
    END IF;
    IF post_key IS NOT NULL THEN
        PERFORM @post_1(post_key, post_id, post_body);
    END IF;
    RETURN 'done ' || coalesce((
        SELECT bit_or(s.waits) FROM @sessions s WHERE NOT s.ended AND s.n <> me AND s.wake <> ''
    ), 0);
    """,
    declare="got integer[]; changed bigint; was smallint; of_gate bigint;",
)

# What an append does to tasks that are there, before its own are entered. It goes with `commit_2` in one transaction.
STEER = Function(
    "steer_2",
    """
    me bigint
    link integer
    definitions integer
    locked bigint[]
    keyed bigint[]
    of_run bigint
    new_hold bigint
    ended integer[]
    takes_all_back boolean
    takes_back integer[]
    input_id text
    input_text text
    interrupts integer[]
    """,
    "void",
    f"""
    {ALIVE_WITH_QUEUES}
    PERFORM 1 FROM @runs r WHERE r.n = of_run FOR NO KEY UPDATE;
    IF EXISTS (
        SELECT 1 FROM (SELECT o.gate FROM @tasks o WHERE o.run = of_run OFFSET 0) t
        WHERE t.gate <> 0 AND t.gate <> ALL (coalesce(locked, '{{}}'))
    ) THEN {RAISE_GATED} END IF;
    IF new_hold IS NOT NULL THEN
        UPDATE @runs r SET hold = new_hold WHERE r.n = of_run;
        IF new_hold = 0 THEN
            UPDATE @tasks t SET state = CASE WHEN t.gate = ANY (keyed) AND t.key <> '' THEN -1 ELSE 0 END
            WHERE t.run = of_run AND t.state = 2;
        END IF;
    END IF;
    -- What is over is not taken back.
    IF ended IS NOT NULL THEN DELETE FROM @tasks t WHERE t.run = of_run AND t.number = ANY (ended); END IF;
    IF takes_all_back OR takes_back IS NOT NULL THEN
        WITH gone AS (
            DELETE FROM @tasks t WHERE t.run = of_run AND t.state < 3
                AND (takes_all_back OR t.number = ANY (takes_back)) RETURNING t.number
        )
        SELECT array_agg(g.number ORDER BY g.number) INTO numbers FROM gone g;
        IF takes_all_back THEN
            UPDATE @tasks t SET interrupt = 2 WHERE t.run = of_run AND t.state = 3 AND t.interrupt = 0;
        END IF;
        IF numbers IS NOT NULL THEN
            INSERT INTO @inbox (run, id, body)
            VALUES (of_run, input_id, convert_to(replace(input_text, '*', array_to_string(numbers, ',')), 'UTF8'))
            ON CONFLICT DO NOTHING;
        END IF;
    END IF;
    IF interrupts IS NOT NULL THEN
        UPDATE @tasks t SET interrupt = 1 WHERE t.run = of_run AND t.number = ANY (interrupts) AND t.state = 3;
    END IF;
    """,
    declare="numbers integer[];",
)

# The leased task of another run that an append ends. It goes with `commit_2` in one transaction.
END_TASK = Function(
    "end_task_2",
    """
    me bigint
    locked bigint[]
    of_key text
    of_number integer
    token bigint
    input_id text
    input_body bytea
    digests text[]
    bodies bytea[]
    """,
    "void",
    f"""
    DELETE FROM @tasks t USING @runs r WHERE r.key = of_key AND t.run = r.n AND t.number = of_number
        AND t.lease = token AND t.session = me AND t.state = 3 AND t.interrupt = 0
    RETURNING t.run, t.gate INTO got, of_gate;
    IF NOT FOUND THEN RAISE EXCEPTION 'fenced' USING ERRCODE = '{FENCED}'; END IF;
    IF of_gate <> 0 AND of_gate <> ALL (coalesce(locked, '{{}}')) THEN {RAISE_GATED} END IF;
    INSERT INTO @inbox (run, id, body) VALUES (got, input_id, input_body) ON CONFLICT DO NOTHING;
    IF digests IS NOT NULL THEN
        INSERT INTO @payloads (run, digest, body) SELECT got, * FROM unnest(digests, bodies) ON CONFLICT DO NOTHING;
    END IF;
    """,
    declare="got bigint; of_gate bigint;",
)
