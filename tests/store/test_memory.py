"""What is peculiar to the in-process store: shared data, lazy text, heaps that stay small, a check that sees."""

from __future__ import annotations

import threading

import pytest

from treadle.core.events import decode_events
from treadle.store.memory import MemoryData, MemoryStore
from treadle.testing.contract_kit import (
    NOW,
    OTHER,
    RUN,
    Party,
    Slots,
    append_of,
    key_of,
    numbers,
    report_of,
    signal_of,
    snapshot,
    start_of,
    task_of,
)


def heap_sizes(data: MemoryData) -> int:
    lines = sum(line.size() for queue in data.waiting.queues.values() for line in queue.lines.values())
    return lines + len(data.waiting.timed) + sum(len(run.parked) for run in data.runs.values())


def test_stores_share_their_data_only_if_told_to() -> None:
    data = MemoryData()
    Party(MemoryStore(data), "one").start()

    assert MemoryStore(data).run(RUN) is not None
    assert MemoryStore().run(RUN) is None


def test_a_session_may_write_through_any_handle() -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start()

    answers = MemoryStore(data).commit("one", [append_of(RUN, 1)], None)

    assert [answer.status for answer in answers] == ["committed"]


def test_the_data_outlives_a_closed_handle() -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start()

    one.store.close()

    assert MemoryStore(data).run(RUN) is not None


def test_events_become_text_once_and_only_when_they_are_read() -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start()
    one.append()
    rows = data.runs[RUN].rows
    assert [isinstance(row.events, str) for row in rows] == [False, False]

    ((_, _, _, text),) = one.store.rows(RUN, 1)

    assert [isinstance(row.events, str) for row in rows] == [False, True]
    assert one.store.rows(RUN, 1)[0][3] is text
    assert len(decode_events(text)) == 1


def test_tasks_that_end_while_they_wait_do_not_fill_the_heaps() -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start(tasks=[task_of(RUN, 0), task_of(RUN, 1, not_before=NOW + 9)])
    for attempt in range(5000):
        one.append(
            ended=[0, 1],
            tasks=[task_of(RUN, 0, attempt=attempt), task_of(RUN, 1, not_before=NOW + 9, attempt=attempt)],
        )

    assert heap_sizes(data) < 3000
    assert one.store.check().problems == []
    assert [task.attempt for task in one.claim(9, now=NOW + 9)] == [4999, 4999]


def test_a_hold_costs_a_claim_only_once() -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start(tasks=[task_of(RUN, number) for number in range(100)], hold=1)
    heap = data.waiting.queues["default"].lines["act", ""].ready
    assert len(heap) == 100

    assert one.claim(1) == []

    assert len(heap) == 0
    one.append(revoke=True)
    assert heap_sizes(data) == 0


def test_foreign_actions_are_in_heaps_of_their_own() -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start(tasks=[task_of(RUN, number, action="other") for number in range(100)])
    before = list(data.waiting.queues["default"].lines["other", ""].ready)

    assert one.claim(5) == []
    assert numbers(one.append(tasks=[task_of(RUN, 200)], slots=1).leased) == [200]

    assert data.waiting.queues["default"].lines["other", ""].ready == before


def test_the_same_calls_give_the_same_answers_tokens_and_input_ids() -> None:
    def history() -> list[object]:
        store = MemoryStore()
        one, two = Party(store, "one"), Party(store, "two")
        seen: list[object] = [one.start(key_of(n), tasks=[task_of(key_of(n), m) for m in (1, 2)]) for n in (1, 2, 3)]
        seen.append(one.claim(2))
        seen.append(two.claim(3))
        seen.append(two.report(report_of(two.claim(1)[0])))
        seen.append(store.bury("one"))
        seen.append(store.sweep("two", NOW))
        store.acquire("two", RUN)
        seen.append(two.append(RUN, revoke=True))
        seen += [snapshot(store.load(key_of(n))) for n in (1, 2, 3)]
        return seen

    assert history() == history()


def test_a_reader_on_another_thread_sees_whole_states() -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start()
    problems: list[str] = []
    done = threading.Event()

    def read() -> None:
        reader = one.store.reader()
        while not done.is_set():
            loaded = reader.load(RUN)
            assert loaded is not None
            if loaded.version != len(loaded.rows) or len(loaded.tasks) != 1 + (loaded.version > 1):
                problems.append(f"{loaded.version}: {len(loaded.rows)} rows, {len(loaded.tasks)} tasks")
            problems.extend(reader.check().problems)

    thread = threading.Thread(target=read)
    one.append(tasks=[task_of(RUN, 1), task_of(RUN, 2)])
    thread.start()
    for number in range(3, 2000):
        one.append(ended=[number - 1], tasks=[task_of(RUN, number)])
    done.set()
    thread.join()

    assert problems == []


def test_a_step_of_a_chain_costs_no_heap_at_all() -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start(tasks=[task_of(RUN, 1)], slots=1)

    for number in range(2, 50):
        assert numbers(one.append(ended=[number - 1], tasks=[task_of(RUN, number)], slots=1).leased) == [number]

    assert heap_sizes(data) == 0


def test_a_slot_that_is_refused_leaves_the_task_waiting() -> None:
    class Fickle(Slots):
        """Says that it is free and takes nothing: another thread was faster."""

        def take(self, action: str, queue: str, most: int = 1) -> int:
            return 0

    store = MemoryStore()
    one = Party(store, "one")

    (answer,) = store.commit("one", [start_of(RUN, tasks=[task_of(RUN, 1)])], Fickle(5))
    claimed, due = store.claim("one", Fickle(5), NOW)

    assert (answer.leased, answer.queued, claimed, due) == ([], 1, [], None)
    assert numbers(one.claim(1)) == [1]


def lose_a_lease(data: MemoryData) -> None:
    data.sessions["one"].leases.clear()


def lose_a_waiting_task(data: MemoryData) -> None:
    data.waiting.queues["default"].lines["act", ""].ready.clear()


def lose_a_row(data: MemoryData) -> None:
    data.runs[RUN].rows.pop()


def lose_sight_of_an_inbox(data: MemoryData) -> None:
    data.inboxes.clear()


def lose_sight_of_a_run(data: MemoryData) -> None:
    data.sessions["one"].owned.clear()


@pytest.mark.parametrize(
    "damage", [lose_a_lease, lose_a_waiting_task, lose_a_row, lose_sight_of_an_inbox, lose_sight_of_a_run]
)
def test_a_check_names_what_is_wrong(damage) -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1)
    one.store.post([signal_of(RUN, "i")])
    assert one.store.check().problems == []

    damage(data)

    assert len(one.store.check().problems) == 1


def test_a_deleted_run_is_forgotten_but_for_its_key() -> None:
    data = MemoryData()
    one = Party(MemoryStore(data), "one")
    one.start(tasks=[task_of(RUN, 1)])
    one.start(OTHER)
    one.append(RUN, ended=[1], status="failed")

    assert one.store.delete(RUN) == "deleted"

    assert list(data.tombstones) == [RUN]
    assert list(data.runs) == [OTHER]
    assert list(data.ids.values()) == [OTHER]
    assert list(data.sessions["one"].owned) == [OTHER]
