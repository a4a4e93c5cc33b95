"""A store that fails on purpose fails once, where it was told to, and is the store it wraps otherwise."""

from __future__ import annotations

import inspect
import itertools

import pytest

from treadle.errors import StoreUnavailableError
from treadle.store.base import Reader, RunQuery, Store
from treadle.store.memory import MemoryData, MemoryStore
from treadle.testing import FaultyStore, StoreContract, fail_nth
from treadle.testing.contract_kit import (
    NOW,
    RUN,
    MakeStore,
    Party,
    Slots,
    append_of,
    numbers,
    report_of,
    start_of,
    task_of,
)


class TestFaultyStoreThatDoesNotFail(StoreContract):
    """A wrapped store keeps the whole contract."""

    @pytest.fixture
    def make_store(self) -> MakeStore:
        data = MemoryData()
        return lambda: fail_nth(MemoryStore(data), 10**9, before=True)


def test_a_call_that_fails_before_takes_no_effect() -> None:
    data = MemoryData()
    store = fail_nth(MemoryStore(data), 2, before=True)
    one = Party(store, "one")

    with pytest.raises(StoreUnavailableError, match="call 2, commit, fails before"):
        one.commit(start_of(RUN))

    assert MemoryStore(data).load(RUN) is None
    assert store.fired
    assert store.calls == ["open_session", "commit"]


def test_a_call_that_fails_after_took_effect_as_its_commit_id_tells() -> None:
    store = fail_nth(MemoryStore(), 2, before=False)
    one = Party(store, "one")
    append = start_of(RUN)

    with pytest.raises(StoreUnavailableError, match="after it took effect"):
        one.commit(append)

    assert store.committed(RUN, 1) == append.commit_id


def test_only_one_call_fails() -> None:
    store = fail_nth(MemoryStore(), 3, before=True)
    one = Party(store, "one")
    one.start()

    with pytest.raises(StoreUnavailableError):
        store.inbox(RUN)

    assert store.inbox(RUN) == []


def test_calls_of_readers_count_with_those_of_their_store() -> None:
    store = fail_nth(MemoryStore(), 3, before=True)
    store.open()
    reader = store.reader()

    with pytest.raises(StoreUnavailableError):
        reader.runs(RunQuery())

    assert store.calls == ["open", "reader", "runs"]
    reader.close()
    store.close()
    assert len(store.calls) == 3


def test_every_call_of_the_protocol_can_fail_but_close() -> None:
    def methods(of: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(of, inspect.isfunction) if not name.startswith("_")}

    assert methods(Store) | methods(Reader) == methods(FaultyStore)
    for name in sorted(methods(FaultyStore) - {"close"}):
        store = fail_nth(MemoryStore(), 1, before=True)
        method = getattr(store, name)
        arguments = {
            parameter.name: None
            for parameter in inspect.signature(method).parameters.values()
            if parameter.default is inspect.Parameter.empty
        }
        with pytest.raises(StoreUnavailableError):
            method(**arguments)
        assert store.calls == [name]


@pytest.mark.parametrize("before", [True, False])
def test_an_anomaly_loop_ends_when_the_scenario_passes_untouched(before: bool) -> None:
    def scenario(store: Store) -> None:
        one = Party(store, "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)])
        (task,) = store.claim("one", Slots(1), NOW)[0]
        assert numbers([task]) == [1]
        assert store.report("one", [report_of(task)])[0].done
        one.commit(append_of(RUN, 1, consumed=[value.id for value in store.inbox(RUN)]))

    failed = []
    for nth in itertools.count(1):
        store = fail_nth(MemoryStore(), nth, before=before)
        try:
            scenario(store)
        except StoreUnavailableError:
            failed.append(store.calls[-1])
        if not store.fired:
            break

    assert failed == ["open_session", "commit", "claim", "report", "inbox", "commit"]
