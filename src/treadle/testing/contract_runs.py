# ruff: noqa: D102 - a test's name is the promise
"""The store contract: runs and appends, payloads, step rows, deletion, hostile ids, big values."""

from __future__ import annotations

import msgspec

from treadle.core.events import RunSettled, RunStarted, StepSucceeded, decode_events
from treadle.store.base import InboxInput, Report, RunQuery
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    MakeStore,
    Party,
    append_of,
    commit_id_of,
    head_of,
    key_of,
    report_of,
    signal_of,
    snapshot,
    start_of,
    step_of,
    task_of,
)

HOSTILE_IDS = [
    " ",
    "  two  spaces  ",
    "a/b/../c",
    ".",
    "..",
    "O'Brien; DROP TABLE runs; --",
    '"quoted" \\ `back`',
    "100%",
    "under_score",
    "%",
    "_",
    "*?[a-z]",
    "ünïcödé → 終わり",
    "e\u0301 is not \u00e9",
    "\U0001f9f5" * 128,
    "x" * 512,
    "-rf",
    "null",
    "0",
    "run-#1~2[3]",
    "\u202eright to left",
    "CON",
]


class AppendsContract:
    """Runs are made by appends, and appends are answered one by one (promises 1 to 3)."""

    def test_an_append_with_a_head_makes_a_run_that_its_session_owns(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        head = head_of(
            RUN,
            id="first",
            constants=["=1", "@sha256:x"],
            breakpoints=["b"],
            labels={"k": "v", "": "empty"},
            parent="p",
            input_hash="h",
        )

        answers = one.commit(start_of(RUN, head=head, plan=b'{"a": 1}'))

        assert [(answer.status, answer.leased, answer.queued) for answer in answers] == [("committed", [], 0)]
        loaded = one.load()
        assert loaded.head == head
        assert loaded.plan == b'{"a": 1}'
        assert (loaded.version, loaded.status, loaded.hold, loaded.owner) == (1, "running", 0, "one")
        assert (loaded.inbox, loaded.tasks) == ([], [])

    def test_journal_rows_come_back_in_order_with_commit_id_time_and_events(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        done = StepSucceeded(at="a/b%2F", attempt=3, result='={"text":"\u2028 \\"quoted\\""}', session="s", token=9)
        one.start()

        one.append(events=[done, RunSettled(outcome="succeeded")], time=NOW + 0.25, status="succeeded")

        first, second = one.load().rows
        assert first[:3] == (1, commit_id_of(RUN, 1), NOW)
        assert second[:3] == (2, commit_id_of(RUN, 2), NOW + 0.25)
        assert decode_events(first[3]) == [RunStarted()]
        assert decode_events(second[3]) == [done, RunSettled(outcome="succeeded")]
        assert one.row().status == "succeeded"

    def test_an_append_of_an_older_version_is_a_conflict_and_changes_nothing(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.append()
        before = snapshot(one.load())

        answers = one.commit(append_of(RUN, 1, tasks=[task_of(RUN, 1)], status="failed", payloads=[("d", b"1")]))

        assert [answer.status for answer in answers] == ["conflict"]
        assert snapshot(one.load()) == before
        assert one.store.payloads(RUN, ["d"]) == {}

    def test_an_append_of_a_version_to_come_is_a_conflict(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        assert one.commit(append_of(RUN, 2))[0].status == "conflict"
        assert one.row().version == 1

    def test_an_append_to_a_run_of_another_session_is_a_conflict(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start()

        assert two.commit(append_of(RUN, 1))[0].status == "conflict"
        assert one.row().version == 1

    def test_an_append_to_a_run_that_nobody_owns_is_a_conflict(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(release=True)

        assert one.commit(append_of(RUN, 1))[0].status == "conflict"

    def test_an_append_to_a_run_that_never_was_is_a_conflict(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        assert one.commit(append_of(RUN, 0))[0].status == "conflict"
        assert one.store.load(RUN) is None

    def test_a_second_run_of_an_id_answers_exists_and_leaves_the_first_alone(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(RUN, id="same")
        before = snapshot(one.load())

        assert one.commit(start_of(OTHER, id="same"))[0].status == "exists"
        assert two.commit(start_of(OTHER, id="same"))[0].status == "exists"
        assert snapshot(one.load()) == before
        assert one.store.load(OTHER) is None

    def test_a_second_run_of_a_key_answers_exists(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, id="first")

        assert one.commit(start_of(RUN, id="second"))[0].status == "exists"
        assert one.store.find("second") == []

    def test_an_append_that_fails_leaves_the_others_of_its_call_alone(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        keys = [key_of(number) for number in range(1, 6)]
        for key in keys:
            one.start(key)

        answers = one.commit(*(append_of(key, 7 if key == keys[2] else 1, status="failed") for key in keys))

        expected = ["committed", "committed", "conflict", "committed", "committed"]
        assert [answer.status for answer in answers] == expected
        assert [one.row(key).version for key in keys] == [2, 2, 1, 2, 2]

    def test_answers_come_in_the_order_of_the_appends_whatever_they_are(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, id="taken")
        one.start(OTHER)
        one.settle(OTHER)
        one.store.delete(OTHER)

        answers = one.commit(
            append_of(OTHER, 2),
            start_of(key_of(3), id="taken"),
            append_of(RUN, 9),
            append_of(RUN, 1, tasks=[task_of(RUN, 1)]),
            start_of(key_of(4), tasks=[task_of(key_of(4), 1), task_of(key_of(4), 2)]),
        )

        expected = ["refused", "exists", "conflict", "committed", "committed"]
        assert [answer.status for answer in answers] == expected
        assert [answer.queued for answer in answers] == [0, 0, 0, 1, 2]

    def test_appends_of_one_run_may_be_stacked_in_one_call(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answers = one.commit(start_of(RUN), append_of(RUN, 1), append_of(RUN, 2), append_of(RUN, 3))

        assert {answer.status for answer in answers} == {"committed"}
        assert [row[0] for row in one.load().rows] == [1, 2, 3, 4]

    def test_what_is_stacked_on_a_failed_append_fails_too(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        answers = one.commit(append_of(RUN, 1), append_of(RUN, 3), append_of(RUN, 4), append_of(RUN, 2))

        assert [a.status for a in answers] == ["committed", "conflict", "conflict", "committed"]
        assert one.row().version == 3

    def test_what_is_stacked_on_an_append_that_released_the_run_is_a_conflict(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")

        answers = one.commit(start_of(RUN, release=True), append_of(RUN, 1))

        assert [answer.status for answer in answers] == ["committed", "conflict"]
        assert one.row().owner == ""

    def test_the_commit_id_of_a_row_tells_whether_an_append_took_effect(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), make_store()
        one.start()
        one.append(commit_id=4_611_686_018_427_387_903)

        assert two.committed(RUN, 1) == commit_id_of(RUN, 1)
        assert two.committed(RUN, 2) == 4_611_686_018_427_387_903
        assert two.committed(RUN, 3) is None
        assert two.committed(RUN, 0) is None
        assert two.committed(OTHER, 1) is None

    def test_what_one_handle_commits_every_handle_and_reader_sees(self, make_store: MakeStore) -> None:
        one, other = Party(make_store(), "one"), make_store()
        one.start(tasks=[task_of(RUN, 1)])
        reader = other.reader()

        one.append(status="failed")

        assert snapshot(other.load(RUN)) == snapshot(one.load())
        assert snapshot(reader.load(RUN)) == snapshot(one.load())
        reader.close()

    def test_an_empty_commit_answers_nothing(self, make_store: MakeStore) -> None:
        assert Party(make_store(), "one").commit() == []

    def test_an_append_without_events_still_takes_a_version(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        one.append(events=[])

        assert one.load().rows[1][:2] == (2, commit_id_of(RUN, 2))
        assert decode_events(one.load().rows[1][3]) == []


class PayloadsContract:
    """Payload rows and step rows come and go with their append."""

    def test_payloads_of_an_append_are_read_by_run_and_digest(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(payloads=[("sha256:a", b'"a"'), ("sha256:b", b"\x00\xff")])
        one.start(OTHER)

        assert one.store.payloads(RUN, ["sha256:b", "sha256:a", "sha256:none"]) == {
            "sha256:a": b'"a"',
            "sha256:b": b"\x00\xff",
        }
        assert one.store.payloads(OTHER, ["sha256:a"]) == {}
        assert one.store.payloads(RUN, []) == {}

    def test_the_same_payload_twice_is_one(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(payloads=[("sha256:a", b"1"), ("sha256:a", b"1")])

        one.append(payloads=[("sha256:a", b"1")])

        assert one.store.payloads(RUN, ["sha256:a"]) == {"sha256:a": b"1"}

    def test_many_payloads_are_read_in_one_call(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        written = {f"sha256:{number:05}": b"%d" % number for number in range(2500)}
        one.start(payloads=list(written.items()))

        assert one.store.payloads(RUN, iter(written)) == written

    def test_big_values_come_back_whole(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        big = bytes(range(256)) * 4096
        text = "\u00e9\U0001f9f5" * 200_000

        one.start(payloads=[("sha256:big", big)], plan=big, events=[StepSucceeded(at="a", attempt=1, result=text)])
        one.store.post([InboxInput("big", RUN, big)])

        loaded = one.load()
        assert loaded.plan == big
        assert loaded.inbox[0].body == big
        assert decode_events(loaded.rows[0][3]) == [StepSucceeded(at="a", attempt=1, result=text)]
        assert one.store.payloads(RUN, ["sha256:big"]) == {"sha256:big": big}

    def test_a_settled_step_is_read_by_its_address(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        row = step_of(
            7,
            address="grp/a%2Fb#2",
            status="failed",
            generation=2,
            attempt=5,
            result="",
            code="boom",
            message="it's\nbroken",
            detail="@sha256:d",
            causes='["x"]',
            finished_at=NOW + 1.5,
        )
        one.start(steps=[row, step_of(8)])

        answer = one.store.step(RUN, "grp/a%2Fb#2")

        assert (answer.status, answer.version, answer.step) == ("running", 1, row)
        assert one.store.step(RUN, "step-8").step == step_of(8)

    def test_a_step_that_is_not_settled_or_not_there_has_no_row(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        open_step, no_run = one.store.step(RUN, "step-1"), one.store.step(OTHER, "step-1")

        assert (open_step.status, open_step.version, open_step.step) == ("running", 1, None)
        assert (no_run.status, no_run.step) == ("", None)

    def test_the_row_of_a_step_tells_of_its_undo_and_the_runs_row_how_much_is_undone(
        self, make_store: MakeStore
    ) -> None:
        one = Party(make_store(), "one")
        one.start(steps=[step_of(1), step_of(2)])

        one.append(undos=[("step-1", "undone"), ("step-99", "failed")], status="unwinding")
        one.append(was="unwinding", status="failed", unwound="partly")
        one.append(was="failed", status="failed")

        assert one.store.step(RUN, "step-1").step == step_of(1, undo="undone")
        assert one.store.step(RUN, "step-2").step == step_of(2)
        row = one.store.run(RUN)
        assert row is not None
        assert (row.status, row.unwound) == ("failed", "partly")

    def test_what_an_append_believes_of_the_status_changes_nothing(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        assert one.append(was="unwinding", status="unwinding").status == "committed"
        assert one.append(status="succeeded").status == "committed"

    def test_a_run_that_unwinds_is_not_deleted_and_its_burial_leaves_a_look(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.append(status="unwinding")

        assert one.store.delete(RUN) == "open"
        assert one.store.bury("one") == [RUN]

    def test_a_reopened_step_loses_its_row_and_may_settle_again(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(steps=[step_of(1, status="failed"), step_of(2)])

        one.append(unsettled=[1, 99])

        assert one.store.step(RUN, "step-1").step is None
        assert one.store.step(RUN, "step-2").step == step_of(2)
        assert one.store.dead() == []
        one.append(steps=[step_of(1, attempt=2)])
        assert one.store.step(RUN, "step-1").step == step_of(1, attempt=2)

    def test_a_step_that_settles_again_replaces_its_row(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(steps=[step_of(1)])

        one.append(steps=[step_of(1, generation=2, status="failed")])

        assert one.store.step(RUN, "step-1").step == step_of(1, generation=2, status="failed")

    def test_of_the_rows_of_a_step_in_one_group_the_last_one_counts(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        one.commit(append_of(RUN, 1, steps=[step_of(1)]), append_of(RUN, 2, steps=[step_of(1, status="failed")]))

        assert one.store.step(RUN, "step-1").step == step_of(1, status="failed")


class DeletionContract:
    """`delete` removes a closed run wholly, and its tombstone answers what comes late (promise 8)."""

    def test_nothing_of_a_deleted_run_is_reachable_by_its_id_or_key(self, make_store: MakeStore) -> None:
        one, other = Party(make_store(), "one"), make_store()
        one.start(id="gone", steps=[step_of(1, status="failed")], payloads=[("d", b"1")])
        one.store.post([signal_of(RUN, "i")])
        one.settle(status="failed")

        assert one.store.delete(RUN) == "deleted"

        for store in (one.store, other):
            assert store.find("gone") == store.find(RUN) == store.find(RUN[:8]) == []
            assert store.load(RUN) is None
            assert store.run(RUN) is None
            assert store.rows(RUN, 0) == []
            assert store.inbox(RUN) == []
            assert store.step(RUN, "step-1").step is None
            assert store.step(RUN, "step-1").status == ""
            assert store.runs(RunQuery()) == []
            assert store.dead() == []
            assert store.payloads(RUN, ["d"]) == {}
            assert store.committed(RUN, 1) is None
            assert list(store.owned_inboxes("one")) == []
            assert store.check().problems == []
        assert one.store.sweep("one", NOW).stranded == []
        assert one.store.acquire("one", RUN) is None
        assert one.store.acquire("one", RUN, steal=True) is None

    def test_a_run_that_is_not_settled_is_open_and_stays(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()

        assert one.store.delete(RUN) == "open"
        assert one.row().version == 1

    def test_a_settled_run_with_a_task_is_open_until_the_task_ends(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        answer = one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1)
        one.settle()

        assert one.store.delete(RUN) == "open"
        one.append(ended=[2], status="succeeded")
        assert one.store.delete(RUN) == "open"
        assert one.report(report_of(answer.leased[0])) == [True]
        assert one.store.delete(RUN) == "deleted"

    def test_a_run_that_never_was_or_is_gone_is_missing(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        one.settle()
        one.store.delete(RUN)

        assert one.store.delete(RUN) == "missing"
        assert one.store.delete(OTHER) == "missing"

    def test_the_id_of_a_deleted_run_is_usable_again(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, id="again", steps=[step_of(1)], payloads=[("d", b"1")])
        one.settle()
        one.store.delete(RUN)

        one.start(OTHER, id="again")

        assert one.store.find("again") == [OTHER]
        assert one.store.step(OTHER, "step-1").step is None
        assert one.store.payloads(OTHER, ["d"]) == {}

    def test_a_late_append_to_a_deleted_run_is_refused(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start()
        one.settle()
        one.store.delete(RUN)

        for party in (one, two):
            assert party.commit(append_of(RUN, 2))[0].status == "refused"
            assert party.commit(append_of(RUN, 0))[0].status == "refused"

    def test_the_key_of_a_deleted_run_is_never_used_again(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(id="a")
        one.settle()
        one.store.delete(RUN)

        assert one.commit(start_of(RUN, id="b"))[0].status == "refused"
        assert one.store.find("b") == []

    def test_a_late_report_for_a_deleted_run_is_dropped(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 1)])
        (task,) = two.claim()
        one.append(ended=[1], status="cancelled")
        one.store.delete(RUN)

        assert two.report(report_of(task, payloads=[("d", b"1")])) == [False]
        assert one.store.inbox(RUN) == []
        assert one.store.payloads(RUN, ["d"]) == {}

    def test_an_input_for_a_deleted_run_is_not_taken(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(RUN, id="x")
        one.settle()
        one.store.delete(RUN)
        one.start(OTHER, id="x")

        assert one.store.post([signal_of(RUN, "late"), signal_of(OTHER, "good")]) == [False, True]
        assert [value.id for value in one.store.inbox(OTHER)] == ["good"]


class HostileIdsContract:
    """Ids are text, never syntax: they come back as they were given and mean nothing to the store."""

    def test_hostile_run_ids_are_stored_found_and_kept_apart(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        keys = {text: key_of(number) for number, text in enumerate(HOSTILE_IDS, 1)}
        for text, key in keys.items():
            one.start(key, id=text)

        for text, key in keys.items():
            assert one.store.find(text) == [key], text
            assert one.row(key).id == one.load(key).head.id == text

    def test_a_prefix_is_compared_as_it_stands(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        names = ["100% sure", "100x sure", "a_b", "aXb", "[ab]c", "abc", "Case", "case", "e\u0301", "\u00e9"]
        keys = {text: key_of(number) for number, text in enumerate(names, 1)}
        for text, key in keys.items():
            one.start(key, id=text)

        for prefix in ["100%", "100", "a_", "[ab]", "Ca", "ca", "e", "\u00e9", "%", "_", "*", "?"]:
            expected = {key for text, key in keys.items() if text.startswith(prefix)}
            assert set(one.store.find(prefix)) == expected, prefix
            assert {row.key for row in one.store.runs(RunQuery(id_prefix=prefix))} == expected, prefix

    def test_hostile_names_of_all_kinds_come_back_as_given(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        for number, text in enumerate(HOSTILE_IDS, 1):
            key = key_of(number)
            task = task_of(key, 1, address=text, action=text, queue=text, run_id=text)
            head = head_of(key, id=text, workflow=text, labels={text: text})
            one.commit(
                start_of(key, head=head, tasks=[task], steps=[step_of(2, address=text)], payloads=[(text, b"1")])
            )
            one.store.post([signal_of(key, text, text)])

            assert one.store.step(key, text).step == step_of(2, address=text)
            assert one.store.payloads(key, [text]) == {text: b"1"}
            assert [value.id for value in one.store.inbox(key)] == [text]
            assert [row.key for row in one.store.runs(RunQuery(workflow=text))] == [key]
            assert [row.key for row in one.store.runs(RunQuery(labels={text: text}))] == [key]
            (leased,) = one.claim(actions=[text])
            assert msgspec.structs.replace(leased, lease=0) == msgspec.structs.replace(task, lease=0)
            assert one.report(Report(1, leased.lease, signal_of(key, f"{text} done"))) == [True]

    def test_hostile_session_and_role_names_are_only_names(self, make_store: MakeStore) -> None:
        store = make_store()
        parties = [Party(store, text, worker=text, wake=text, actions=[text]) for text in HOSTILE_IDS]

        assert {row.id for row in store.sessions()} == set(HOSTILE_IDS)
        assert all(store.elect(party.id, party.id) for party in parties)
        assert not store.elect(HOSTILE_IDS[0], HOSTILE_IDS[1])
