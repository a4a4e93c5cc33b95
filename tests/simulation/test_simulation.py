"""The production engine and workers under seeds: every invariant holds, and planted bugs are found."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from treadle.authoring.decorators import step, workflow
from treadle.authoring.registry import Registry
from treadle.core import advance as core_advance
from treadle.core import decide as core_decide
from treadle.core import inputs as inp
from treadle.core.commands import Refusal, Task
from treadle.runtime.client import App
from treadle.runtime.engine import Engine
from treadle.runtime.observers import Observers
from treadle.runtime.owned import Owned, Pending
from treadle.runtime.slots import Slots
from treadle.runtime.sweeper import Sweeper
from treadle.store import memory
from treadle.store.base import Report
from treadle.store.memory import MemoryStore
from treadle.testing import invariants
from treadle.testing.sim_codec import encodes
from treadle.testing.sim_faults import KINDS
from treadle.testing.sim_workload import INSTANTS
from treadle.testing.simulation import SimulationFailed, explain, main, run_seed, shrink, simulate

SEEDS = int(os.environ.get("TREADLE_SIM_SEEDS", "300"))
# Test items that share the seeds, so that xdist has something to spread.
PARTS = 12


@pytest.mark.soak
@pytest.mark.parametrize("part", range(PARTS))
def test_every_invariant_holds_whatever_fails(part: int) -> None:
    simulate(seeds=range(part, SEEDS, PARTS))


@pytest.mark.parametrize("seed", [1, 77, 4_000_000_007])
def test_equal_seeds_give_equal_histories(seed: int) -> None:
    one, two = run_seed(seed), run_seed(seed)

    assert one.trace == two.trace
    assert one.trace


def test_other_seeds_give_other_histories() -> None:
    assert len({run_seed(seed).digest for seed in range(10)}) == 10


def test_every_kind_of_fault_strikes() -> None:
    counts: Counter[str] = Counter()
    for seed in range(1000, 1060):
        counts.update(run_seed(seed).counts)

    assert set(counts) == {*KINDS, *INSTANTS, "lost", "doubled", "late"}
    assert min(counts.values()) >= 10


def test_every_kind_of_trouble_reaches_the_journals() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(2000, 2200):
        for line in run_seed(seed).trace:
            _, _, event = line.partition("   ")
            kinds[event.partition(" ")[2].partition("(")[0]] += 1
            kinds["a deadline"] += "code='deadline'" in event

    for kind in (
        "AttemptLost",
        "AttemptEnded",
        "StepsAdded",
        "StepsReopened",
        "Paused",
        "CancelRequested",
        "StepsReady",
        "StepPrepared",
        "UndoConfirmed",
        "UndoAttemptFailed",
        "UndoAttemptLost",
        "StepUndone",
        "UndoFailed",
        "UndoNotCompensable",
        "UndoSkipped",
        "UndoParked",
        "UnwindingParked",
        "Unwound",
        "ChildStarted",
        "a deadline",
    ):
        assert kinds[kind] > 0, kind


# -- planted bugs ---------------------------------------------------------------------------------------------------


def finds(invariant: str, seeds: range) -> bool:
    """Whether one of these seeds breaks this invariant; others may break more than that."""
    return any(invariant in [name for name, *_ in run_seed(seed).failures] for seed in seeds)


def found_by(seeds: range) -> str:
    """The invariant that the first of these seeds breaks."""
    for seed in seeds:
        report = run_seed(seed)
        if report.failures:
            return report.failures[0][0]
    return ""


def test_a_start_that_is_told_before_its_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    start: Any = Engine.start

    def hasty(self: Engine, *given: Any, **more: Any) -> None:
        *facts, then, report = given
        then("committed", None)
        start(self, *facts, lambda _status, _error: None, report, **more)

    monkeypatch.setattr(Engine, "start", hasty)

    assert found_by(range(20)) == invariants.DURABLE


def test_an_attempt_that_starts_before_its_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    append = Engine._append

    def hasty(self: Engine, owned: Owned, decision: Any, items: list[Pending]) -> Any:
        made = append(self, owned, decision, items)
        self.on_leased(list(made.tasks))
        return made

    monkeypatch.setattr(Engine, "_append", hasty)

    assert found_by(range(20)) in (invariants.DURABLE, invariants.ONCE, invariants.SLOTS)


def test_a_report_that_needs_no_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(self: MemoryStore, session: str, reports: Sequence[Report]) -> list[bool]:
        data = self.data
        answers: list[bool] = []
        for report in reports:
            run = data.runs.get(report.input.key)
            entry = run.tasks.pop(report.number, None) if run is not None else None
            if run is not None and entry is not None:
                data.end(entry)
                data.put_input(run, report.input)
            answers.append(entry is not None)
        return answers

    monkeypatch.setattr(MemoryStore, "report", trusting)

    assert found_by(range(400))


def test_a_lost_attempt_that_is_not_dispatched_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(run: Any, decision: Any, value: Any, cause: str) -> Refusal | None:
        return None

    monkeypatch.setitem(core_decide._HANDLERS, inp.Lost, forgetful)

    assert found_by(range(60))


def test_a_sweeper_that_leaves_the_dead_to_the_elected_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bury = Sweeper._bury

    def elected_only(self: Sweeper, store: Any) -> tuple[list[str], list[str]]:
        return bury(self, store) if store.elect("sweeper", self.session) else ([], [])

    monkeypatch.setattr(Sweeper, "_bury", elected_only)

    assert found_by(range(100))


def test_slots_that_an_adopted_task_does_not_take_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slots, "adopt", lambda self, action: None)

    assert found_by(range(100)) == invariants.SLOTS


def test_an_ended_attempt_that_is_adopted_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Engine.outcome

    def forgetful(self: Engine, task: Task, value: inp.Outcome, rows: Any) -> None:
        outcome(self, task, value, rows)
        self._undelivered.clear()

    monkeypatch.setattr(Engine, "outcome", forgetful)

    assert found_by(range(400)) == invariants.ONCE


def test_a_claim_whose_lost_answer_nobody_asks_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "adopt", lambda self: None)

    assert found_by(range(100))


def test_an_owner_that_believes_its_stale_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(self: Engine, owned: Owned, items: list[Pending], decision: Any) -> None:
        owned.in_flight = None
        self._perform(owned.state.key, items, decision)

    monkeypatch.setattr(Engine, "_confirm", trusting)

    assert found_by(range(400))


def test_an_answer_made_of_what_others_asked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(self: Engine, key: str, items: list[Pending], decision: Any) -> None:
        for position, item in enumerate(items):
            if item.waiter is not None:
                item.waiter(decision.refusals.get(position), None, decision.events)
            elif isinstance(item.value, inp.Outcome):
                self._undelivered.discard(item.value.lease)

    monkeypatch.setattr(Engine, "_perform", shared)

    assert finds(invariants.ANSWERS, range(380, 540))


def test_a_hook_that_is_told_before_its_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    append = Engine._append

    def hasty(self: Engine, owned: Owned, decision: Any, items: list[Pending]) -> Any:
        made = append(self, owned, decision, items)
        if self.on_committed is not None:
            self.on_committed(owned, made)
        return made

    monkeypatch.setattr(Engine, "_append", hasty)

    assert found_by(range(20)) == invariants.DURABLE


def test_a_boundary_that_no_hook_is_told_of_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = Observers.committed

    def forgetful(self: Observers, owned: Owned, append: Any) -> None:
        if append.status == "running":
            committed(self, owned, append)

    monkeypatch.setattr(Observers, "committed", forgetful)

    assert found_by(range(60)) == invariants.HOOKS


def test_a_child_whose_end_is_not_told_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_advance, "tell_parent", lambda *_given: None)

    assert found_by(range(100)) in (invariants.CLOSED, invariants.CALLERS)


def test_a_run_that_is_made_for_a_task_of_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(self: MemoryStore, report: Report) -> None:
        run = self.data.runs[report.input.key]
        if (entry := run.tasks.pop(report.number, None)) is not None:
            self.data.end(entry)
        self.data.put_input(run, report.input)

    monkeypatch.setattr(memory, "_may_report", lambda _own, _report: True)
    monkeypatch.setattr(MemoryStore, "_report", trusting)

    assert found_by(range(400))


def test_a_failure_is_shrunk_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slots, "adopt", lambda self, action: None)
    seed = next(seed for seed in range(100) if run_seed(seed).failures)
    report = run_seed(seed)

    smaller, dropped = shrink(report, runs=40)
    text = explain(smaller, dropped)

    assert smaller.failures[0][0] == report.failures[0][0]
    assert len(smaller.parts) <= len(report.parts)
    assert run_seed(seed, dropped).failures == smaller.failures
    assert f"make simulate SEED={seed}" in text
    assert "error_after" in "".join(smaller.trace)
    with pytest.raises(SimulationFailed, match="slot"):
        simulate(seeds=[seed], shrinks=False)


def test_the_command_line_runs_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--count", "2"]) == 0
    assert "2 seeds" in capsys.readouterr().out
    assert main(["--seed", "3", "--trace"]) == 0
    assert "boot n0.1" in capsys.readouterr().out


# -- programs of users ------------------------------------------------------------------------------------------------

own = Registry()


@step(registry=own, name="test:charge", retry=3)
async def charge(amount: int) -> int:
    await asyncio.sleep(1)
    return amount


@step(registry=own, name="test:receipt")
def receipt(amount: int) -> str:
    return f"paid {amount}"


@workflow(registry=own, name="test:order")
def order(amount: int) -> str:
    return receipt.bind(charge.bind(amount))


def test_a_users_program_runs_under_every_fault() -> None:
    async def program(app: App) -> None:
        run = await app.start(order, 7, id="order-1")
        assert await run.result() == "paid 7"

    counts = simulate(program, seeds=range(25), registry=own)

    assert counts["crash"] > 0


def test_what_a_users_program_asserts_is_reported() -> None:
    async def program(app: App) -> None:
        run = await app.start(order, 7, id="order-1")
        assert await run.result() == "paid 8"

    with pytest.raises(SimulationFailed, match="AssertionError"):
        simulate(program, seeds=range(1), registry=own)


def test_in_some_worlds_values_are_encoded_and_nodes_lack_a_key_until_the_trouble_is_over() -> None:
    seeds = [seed for seed in range(100, 200) if encodes(seed)]

    assert len(seeds) > 10
    simulate(seeds=seeds)
