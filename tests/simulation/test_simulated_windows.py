"""Windows of triggers under seeds: none is lost, none counts twice, and planted bugs are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.simulation.scenes import WRITES, alone, broken

from treadle.core import apply as core_apply
from treadle.core import decide as core_decide
from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core import windows
from treadle.core.commands import Refusal
from treadle.core.decision import Decision
from treadle.core.state import RunState
from treadle.runtime.node import Node
from treadle.runtime.requests import request
from treadle.store.memory import MemoryStore
from treadle.testing import invariants
from treadle.testing.scenarios import Scenario, everywhere
from treadle.testing.sim_windows import Send
from treadle.testing.simulation import run_seed

# Three that come close, one of them twice; one that opens another window; the first again, when its own has closed.
LATEST = Scenario(
    sends=[
        Send("first", "latest", 0.6, 0, "one", 1, "first", again=[(9.0, 1)]),
        Send("second", "latest", 2.0, 1, "two" + "x" * 3000, 0, "second", again=[(2.0, 0)]),
        Send("third", "latest", 3.5, 0, "three"),
        Send("late", "latest", 8.0, 1, "four", 0, "late"),
    ],
    seconds=20.0,
)
# So close together that the first has to wait too long.
PATIENT = Scenario(
    sends=[Send(f"t{n}", "latest", 0.6 + 2 * n, n % 2, f"value{n}", 0, f"t{n}") for n in range(6)], seconds=20.0
)
# Five at once, from two places; three are a batch, and two wait for the time.
BATCH = Scenario(
    sends=[Send(f"t{n}", "batch", 0.6, n % 2, f"value{n}", 0, f"t{n}" if n % 2 else "") for n in range(5)], seconds=20.0
)
SCENARIOS = [LATEST, PATIENT, BATCH]


def events(scenario: Scenario) -> Counter[str]:
    """How often each kind of event is in the journals."""
    lines = [line.partition("   ")[2].partition(" ")[2] for line in scenario.play().trace]
    return Counter(line.partition("(")[0] for line in lines)


@pytest.mark.parametrize(("scenario", "runs", "received"), [(LATEST, 2, 2), (PATIENT, 2, 4), (BATCH, 2, 3)])
def test_the_scenarios_collect(scenario: Scenario, runs: int, received: int) -> None:
    found = events(scenario)

    # Each window calls a run.
    assert found["RunStarted"] == 2 * runs
    assert found["TriggerReceived"] == received


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["", "crash_before", "crash_after", "error_after", "conflict"])
def test_without_a_planted_bug_nothing_is_found(scenario: Scenario, kind: str) -> None:
    operations = ("commit",) if kind == "conflict" else (*WRITES, "post")
    assert not broken(everywhere(scenario, kind, *operations) if kind else alone(scenario))


def test_some_worlds_have_windows_and_operators_who_meddle_with_them() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(30):
        for line in run_seed(seed).trace:
            kinds["received"] += "TriggerReceived" in line
            kinds["operated"] += " client window" in line
    assert min(kinds["received"], kinds["operated"]) > 10


# -- planted bugs ------------------------------------------------------------------------------------------------------


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[RunState, Decision, inp.Trigger], Any]) -> None:
    """Have the kernel take triggers in another way."""

    def trigger(run: RunState, decision: Decision, value: inp.Trigger, cause: str) -> Refusal | None:
        found = change(run, decision, value)
        return found if isinstance(found, Refusal) else windows.trigger(run, decision, value, cause)

    monkeypatch.setitem(core_decide._HANDLERS, inp.Trigger, trigger)


def test_a_trigger_that_counts_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda run, _decision, _value: run.window.names.clear() if run.window is not None else None)

    assert broken(alone(LATEST)) == invariants.WINDOWS


def test_a_window_that_gives_the_first_trigger_and_not_the_last_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    received = core_apply._APPLY[ev.TriggerReceived]

    def keeping(run: RunState, event: Any) -> None:
        before = run.constants
        received(run, event)
        run.constants = before

    monkeypatch.setitem(core_apply._APPLY, ev.TriggerReceived, keeping)

    assert broken(alone(LATEST)) == invariants.WINDOWS


def test_a_batch_that_takes_one_more_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetting(run: RunState, _decision: Decision, _value: inp.Trigger) -> None:
        if run.window is not None and len(run.window.names) == 2:
            run.window.names.popitem()

    plant(monkeypatch, forgetting)

    assert broken(alone(BATCH)) == invariants.WINDOWS


def test_a_first_trigger_that_waits_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def younger(run: RunState, _decision: Decision, _value: inp.Trigger) -> None:
        run.started_at = run.now

    plant(monkeypatch, younger)

    assert broken(alone(PATIENT)) == invariants.WINDOWS


def test_a_named_trigger_that_is_forgotten_with_its_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_decide, "window_names", lambda window, _trigger: ((window, "take"),))

    assert broken(alone(LATEST)) == invariants.WINDOWS


def test_a_trigger_that_is_told_before_its_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hasty(node: Node, key: str, value: Any) -> Any:
        node.spawn(request(node, key, value))
        return None, []

    monkeypatch.setattr("treadle.runtime.triggers.request", hasty)

    assert broken(alone(LATEST)) == invariants.DURABLE


def test_two_windows_of_one_name_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle.store.memory.holder_of", lambda *_: "")

    assert broken(alone(BATCH)) == invariants.WINDOWS


def test_a_timer_that_does_not_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    append = MemoryStore._append

    def impatient(self: MemoryStore, own: Any, made: Any, offer: Any) -> Any:
        for task in made.tasks:
            task.not_before = 0.0
        return append(self, own, made, offer)

    monkeypatch.setattr(MemoryStore, "_append", impatient)

    assert broken(alone(LATEST)) == invariants.WINDOWS
