# ruff: noqa: D102 - a test's name is the promise
"""The store contract: finding, loading and listing."""

from __future__ import annotations

from typing import Any

from treadle.core.events import decode_events
from treadle.store.base import RunQuery
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    MakeStore,
    Party,
    head_of,
    key_of,
    snapshot,
    start_of,
    step_of,
    task_of,
)


class FindContract:
    """Runs are found by id, else by the beginning of an id or key."""

    def test_an_exact_id_wins_over_longer_ones(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        for number, text in enumerate(("a", "ab", "abc"), 1):
            one.start(key_of(number), id=text)

        assert one.store.find("ab") == [key_of(2)]
        assert one.store.find("abc") == [key_of(3)]

    def test_without_an_exact_id_all_that_begin_so_are_found(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(key_of(1), id="crawl-1")
        one.start(key_of(2), id="crawl-2")
        one.start(key_of(3), id="other")

        assert set(one.store.find("crawl")) == {key_of(1), key_of(2)}
        assert one.store.find("o") == [key_of(3)]
        assert one.store.find("rawl") == []
        assert one.store.find("crawl-10") == []

    def test_a_key_and_the_beginning_of_a_key_find_the_run(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(key_of(1))
        one.start(key_of(2))

        assert one.store.find(key_of(2)) == [key_of(2)]
        assert one.store.find(key_of(2)[:13]) == [key_of(2)]
        assert set(one.store.find(key_of(1)[:8])) == {key_of(1), key_of(2)}

    def test_no_more_than_twenty_are_found(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.commit(*(start_of(key_of(number), id=f"many-{number}") for number in range(1, 40)))

        found = one.store.find("many")

        assert len(found) == len(set(found)) == 20


class LoadContract:
    """A run is read whole, or by the rows that are new."""

    def test_the_head_and_the_plan_are_read_without_the_journal(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        head = head_of(RUN, data='={"root":"x"}', data_names=["root"], dry_run=True)
        one.commit(start_of(RUN, head=head, plan=b"a plan"))

        assert two.store.head(RUN) == (head, b"a plan")
        assert two.store.head(OTHER) is None

    def test_a_load_is_one_consistent_state(self, make_store: MakeStore) -> None:
        one, two = Party(make_store(), "one"), Party(make_store(), "two")
        one.start(tasks=[task_of(RUN, 2), task_of(RUN, 1)])
        (leased,) = two.claim()
        one.append(tasks=[task_of(RUN, 3, not_before=NOW + 1)], hold=2, time=NOW + 1)

        loaded = two.load()

        assert loaded.version == len(loaded.rows) == 2
        assert loaded.hold == 2
        assert {row.task.number: (row.session, row.task.lease) for row in loaded.tasks} == {
            2: ("two", leased.lease),
            1: ("", 0),
            3: ("", 0),
        }
        assert snapshot(two.load()) == snapshot(loaded)

    def test_a_leased_task_tells_since_when(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2), task_of(RUN, 3)], slots=1, time=NOW + 1)
        one.claim(1, now=NOW + 7)

        started = {row.task.number: row.started_at for row in one.load().tasks}

        assert started == {1: NOW + 1, 2: NOW + 7, 3: 0.0}

    def test_a_run_that_does_not_exist_is_none(self, make_store: MakeStore) -> None:
        store = make_store()

        assert store.load(RUN) is None
        assert store.run(RUN) is None
        assert store.rows(RUN, 0) == []
        assert store.inbox(RUN) == []

    def test_rows_after_a_version_come_in_order_and_in_pages(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start()
        for _ in range(9):
            one.append()
        store = one.store

        assert [row[0] for row in store.rows(RUN, 0)] == list(range(1, 11))
        assert [row[0] for row in store.rows(RUN, 7)] == [8, 9, 10]
        assert [row[0] for row in store.rows(RUN, 2, limit=3)] == [3, 4, 5]
        assert store.rows(RUN, 10) == store.rows(RUN, 99) == []
        assert store.rows(RUN, 0) == one.load().rows
        assert all(decode_events(row[3]) for row in store.rows(RUN, 0))

    def test_a_runs_row_follows_its_appends(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        head = head_of(
            RUN, id="r", workflow="w", labels={"a": "1"}, created_at=NOW - 1, name="The run", metadata={"m": "2"}
        )
        one.commit(start_of(RUN, head=head, tasks=[task_of(RUN, 1), task_of(RUN, 2)]), slots=1)

        one.append(time=NOW + 3, hold=6, status="failed")

        row = one.row()
        assert (row.key, row.id, row.workflow, row.labels) == (RUN, "r", "w", {"a": "1"})
        assert (row.name, row.metadata) == ("The run", {"m": "2"})
        assert (row.status, row.hold, row.version, row.owner, row.leased) == ("failed", 6, 2, "one", 1)
        assert (row.created_at, row.updated_at) == (NOW - 1, NOW + 3)

    def test_waiting_tasks_are_listed_in_claim_order_with_those_not_due(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2, priority=3), task_of(RUN, 3, not_before=NOW + 9)])
        one.start(OTHER, tasks=[task_of(OTHER, 1, priority=3)])

        assert one.waiting() == [(RUN, 2), (OTHER, 1), (RUN, 1), (RUN, 3)]
        assert [row.task.number for row in one.store.waiting(limit=2)] == [2, 1]
        assert all(row.session == "" and row.task.lease == 0 for row in one.store.waiting())

    def test_a_sound_store_has_no_problems(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1)

        health = one.store.check()

        assert health.problems == []
        assert all(isinstance(value, str) for value in health.facts.values())

    def test_a_store_declares_its_durability(self, make_store: MakeStore) -> None:
        assert make_store().durability


class ListsContract:
    """Runs and dead letters are listed newest first, filtered and in pages."""

    def test_runs_are_listed_newest_first(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        for number in (2, 1, 3):
            one.start(key_of(number))

        assert [row.key for row in one.store.runs(RunQuery())] == [key_of(3), key_of(2), key_of(1)]
        assert one.store.runs(RunQuery())[0] == one.row(key_of(3))

    def test_each_filter_of_a_query_holds(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        facts: list[tuple[str, str, dict[str, str], str]] = [
            ("etl-1", "etl", {"env": "prod", "team": "a"}, "running"),
            ("etl-2", "etl", {"env": "test"}, "failed"),
            ("web-1", "web", {"env": "prod"}, "failed"),
            ("web-2", "web", {}, "succeeded"),
        ]
        for number, (text, workflow, labels, status) in enumerate(facts, 1):
            key = key_of(number)
            head = head_of(key, id=text, workflow=workflow, labels=labels)
            one.commit(start_of(key, head=head, status=status))

        def ids(query: RunQuery) -> list[str]:
            return [row.id for row in one.store.runs(query)]

        assert ids(RunQuery(status="failed")) == ["web-1", "etl-2"]
        assert ids(RunQuery(workflow="etl")) == ["etl-2", "etl-1"]
        assert ids(RunQuery(id_prefix="web")) == ["web-2", "web-1"]
        assert ids(RunQuery(labels={"env": "prod"})) == ["web-1", "etl-1"]
        assert ids(RunQuery(labels={"env": "prod", "team": "a"})) == ["etl-1"]
        assert ids(RunQuery(labels={"team": ""})) == []
        assert ids(RunQuery(status="failed", workflow="web", labels={"env": "prod"})) == ["web-1"]
        assert ids(RunQuery(status="nothing")) == []

    def test_runs_are_found_by_package_metadata_and_text(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        facts: list[tuple[str, str, str, dict[str, str]]] = [
            ("a-1", "crawl/site", "Crawl of Example", {"host": "example.org", "by": "Zoë"}),
            ("a-2", "crawl/page", "", {"host": "example.com"}),
            ("a-3", "crawler/site", "100% 'odd' _name_", {}),
            ("a-4", "crawl", "", {"": "nothing", "note": "line\none"}),
        ]
        for number, (text, workflow, name, metadata) in enumerate(facts, 1):
            key = key_of(number)
            one.commit(start_of(key, head=head_of(key, id=text, workflow=workflow, name=name, metadata=metadata)))

        def ids(**query: Any) -> list[str]:
            return [row.id for row in one.store.runs(RunQuery(**query))]

        assert ids(package="crawl") == ["a-2", "a-1"]
        assert ids(package="craw") == []
        assert ids(metadata={"host": "example.com"}) == ["a-2"]
        assert ids(metadata={"host": "example.org", "by": "Zoë"}) == ["a-1"]
        assert ids(metadata={"host": "example.org", "by": "zoë"}) == []
        assert ids(metadata={"": "nothing"}) == ["a-4"]
        assert ids(text="EXAMPLE") == ["a-2", "a-1"]
        assert ids(text="zoë") == ["a-1"]
        assert ids(text="ZOË") == []
        assert ids(text="% 'odd' _") == ["a-3"]
        assert ids(text="CRAWLER") == ["a-3"]
        assert ids(text="line\none") == ["a-4"]
        assert ids(text="a-3\n100") == []
        assert ids(text="a-", package="crawl", metadata={"host": "example.org"}) == ["a-1"]

    def test_runs_are_found_by_the_time_since_which_nothing_was_decided(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        for number in (1, 2, 3):
            one.start(key_of(number), time=NOW + number)
        one.append(key_of(1), time=NOW + 10)

        def keys(before: float) -> list[str]:
            return [row.key for row in one.store.runs(RunQuery(before=before))]

        assert keys(NOW + 3) == [key_of(2)]
        assert keys(NOW + 3.5) == [key_of(3), key_of(2)]
        assert keys(NOW + 11) == [key_of(3), key_of(2), key_of(1)]

    def test_pages_of_a_listing_meet_without_gap_or_overlap(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.commit(
            *(start_of(key_of(number), status="failed" if number % 3 else "succeeded") for number in range(1, 41))
        )
        for status in ("", "failed"):
            seen: list[str] = []
            while page := one.store.runs(RunQuery(status=status, after=seen[-1] if seen else "", limit=7)):
                assert len(page) <= 7
                seen += [row.key for row in page]

            expected = [key_of(number) for number in range(40, 0, -1) if not status or number % 3]
            assert seen == expected

    def test_a_page_does_not_move_when_newer_runs_come(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.commit(*(start_of(key_of(number)) for number in range(1, 7)))
        first = one.store.runs(RunQuery(limit=3))
        one.start(key_of(7))

        second = one.store.runs(RunQuery(limit=3, after=first[-1].key))

        assert [row.key for row in second] == [key_of(3), key_of(2), key_of(1)]

    def test_dead_letters_are_the_failed_steps_newest_first(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        failed = [
            step_of(number, status="failed", code="boom", message=f"m{number}", finished_at=NOW + number)
            for number in (1, 2, 3)
        ]
        one.start(RUN, steps=[failed[0], step_of(8), failed[2], step_of(9, status="skipped")])
        one.start(OTHER, steps=[failed[1], step_of(5, status="cancelled")])

        dead = one.store.dead()

        assert [(row.key, step) for row, step in dead] == [(RUN, failed[2]), (OTHER, failed[1]), (RUN, failed[0])]
        assert [step.number for _, step in one.store.dead(limit=2)] == [3, 2]
        assert dead[0][0] == one.row(RUN)

    def test_a_reader_reads_as_the_store_does(self, make_store: MakeStore) -> None:
        one = Party(make_store(), "one")
        one.start(tasks=[task_of(RUN, 1)], steps=[step_of(3, status="failed")], payloads=[("d", b"1")])
        reader = one.store.reader()

        assert snapshot(reader.load(RUN)) == snapshot(one.load())
        assert reader.find(RUN) == [RUN]
        assert reader.rows(RUN, 0) == one.store.rows(RUN, 0)
        assert reader.run(RUN) == one.row()
        assert reader.step(RUN, "step-3") == one.store.step(RUN, "step-3")
        assert reader.runs(RunQuery()) == one.store.runs(RunQuery())
        assert reader.dead() == one.store.dead()
        assert reader.payloads(RUN, ["d"]) == {"d": b"1"}
        assert reader.sessions() == one.store.sessions()
        assert reader.waiting() == one.store.waiting()
        assert reader.committed(RUN, 1) == one.store.committed(RUN, 1)
        assert reader.check().problems == []
        reader.close()
