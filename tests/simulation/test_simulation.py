"""The production engine and workers under seeds: every invariant holds, and planted bugs are found."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.simulation import scenes
from tests.simulation.scenes import WRITES, alone, broken

from treadle.authoring.decorators import step, workflow
from treadle.authoring.options import Retry
from treadle.authoring.registry import Registry
from treadle.core import advance as core_advance
from treadle.core import decide as core_decide
from treadle.core import inputs as inp
from treadle.core.commands import Refusal, Task
from treadle.runtime import collecting, engine
from treadle.runtime.client import App
from treadle.runtime.engine import Engine
from treadle.runtime.flights import Flight
from treadle.runtime.observers import Observers
from treadle.runtime.owned import Owned, Pending
from treadle.runtime.slots import Slots
from treadle.runtime.sweeper import Sweeper
from treadle.store.base import Answer, Append, Report
from treadle.store.committer import Committer
from treadle.store.memory import MemoryStore
from treadle.testing import invariants
from treadle.testing.scenarios import Ask, Scenario, everywhere
from treadle.testing.sim_codec import encodes
from treadle.testing.sim_events import Mail
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


def test_what_a_backup_has_copied_is_not_judged_by_the_lines_of_names_as_they_are_now() -> None:
    # A run that began as the first of its line is reopened behind another one before the backup.
    assert run_seed(20419).failures == []


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

CHAIN = Scenario([scenes.chain()])
FAN = Scenario([scenes.fan()])
CALL = Scenario([scenes.call()])
# The owner of the run executes nothing; who does is condemned while it is at work, and does not notice soon.
CONDEMNED = Scenario([scenes.fan()], [Ask(0.6, "condemn")], starts_at=1, workers=1, lease=30.0)
# The run is taken from its owner, who is asked before anything tells him so.
STOLEN = Scenario([scenes.fan()], [Ask(1.2, "steal"), Ask(1.6, "pause", 1), Ask(1.65, "resume")])
# Signals of two names, two of them of one name in one decision.
SIGNALLED = Scenario([scenes.fan()], [Ask(1.5, "signal", number=number) for number in (0.1, 0.1, 0.5, 0.5)])


STREAM = Scenario([scenes.stream()])


@pytest.mark.parametrize("scenario", [CHAIN, FAN, CALL, CONDEMNED, STOLEN, SIGNALLED, STREAM])
@pytest.mark.parametrize("kind", ["", "crash_after", "error_after"])
def test_without_a_planted_bug_nothing_is_found(scenario: Scenario, kind: str) -> None:
    assert not broken(everywhere(scenario, kind, *WRITES) if kind else alone(scenario))


def test_an_input_that_is_decided_again_beside_its_copy_in_the_store_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_unstored", list)

    assert broken(everywhere(CALL, "conflict", *WRITES)) == invariants.INPUTS


def test_a_start_that_is_told_before_its_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_a_hasty_start(monkeypatch)

    assert broken(alone(CHAIN)) == invariants.DURABLE


def plant_a_hasty_start(monkeypatch: pytest.MonkeyPatch) -> None:
    start: Any = Engine.start

    def hasty(self: Engine, head: Any, plan: Any, encoded: bytes, rows: Any, then: Any, *more: Any) -> None:
        then(Answer("committed"), None)
        start(self, head, plan, encoded, rows, lambda _answer, _error: None, *more)

    monkeypatch.setattr(Engine, "start", hasty)


def plant_before_commits(monkeypatch: pytest.MonkeyPatch, hasty: Callable[[Flight], None]) -> None:
    append = Committer.append

    def planted(self: Committer, given: Append, then: Any, *, alone: bool = False) -> None:
        hasty(then)
        append(self, given, then, alone=alone)

    monkeypatch.setattr(Committer, "append", planted)


def test_an_attempt_that_starts_before_its_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_before_commits(monkeypatch, lambda flight: flight.engine.on_leased(list(flight.append.tasks)))

    assert broken(alone(CHAIN)) == invariants.DURABLE


def test_a_report_that_needs_no_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(self: MemoryStore, session: str, reports: Sequence[Report]) -> list[bool]:
        answers: list[bool] = []
        for report in reports:
            run = self.data.runs.get(report.input.key)
            there = run is not None and report.number in run.tasks
            if there:
                self._report(report)
            answers.append(there)
        return answers

    monkeypatch.setattr(MemoryStore, "report", trusting)

    assert broken(alone(CONDEMNED)) == invariants.CLOSED


def test_a_lost_attempt_that_is_not_dispatched_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(run: Any, decision: Any, value: Any, cause: str) -> Refusal | None:
        return None

    monkeypatch.setitem(core_decide._HANDLERS, inp.Lost, forgetful)

    assert broken(alone(CONDEMNED)) == invariants.CLOSED


def test_a_sweeper_that_leaves_the_dead_to_the_elected_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bury = Sweeper._bury

    def elected_only(self: Sweeper, store: Any) -> tuple[list[str], list[str]]:
        return bury(self, store) if store.elect("sweeper", self.session) else ([], [])

    monkeypatch.setattr(Sweeper, "_bury", elected_only)

    assert broken(everywhere(CHAIN, "crash_after", "commit")) in (invariants.CLOSED, invariants.OWNERS)


def test_slots_that_an_adopted_task_does_not_take_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slots, "adopt", lambda self, action: None)

    assert broken(everywhere(CHAIN, "error_after", "commit")) == invariants.SLOTS
    assert broken(everywhere(FAN, "error_after", "claim")) == invariants.SLOTS


def test_an_ended_attempt_that_is_adopted_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Engine.outcome

    def forgetful(self: Engine, task: Task, value: inp.Outcome, rows: Any) -> None:
        outcome(self, task, value, rows)
        self._undelivered.clear()

    monkeypatch.setattr(Engine, "outcome", forgetful)

    assert broken(everywhere(CHAIN, "error_after", "commit")) == invariants.ONCE


def test_a_claim_whose_lost_answer_nobody_asks_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "adopt", lambda self: None)

    assert broken(everywhere(CHAIN, "error_after", "commit")) == invariants.OWNERS
    assert broken(everywhere(FAN, "error_after", "claim")) == invariants.OWNERS


def test_an_owner_that_believes_its_stale_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(self: Engine, owned: Owned, items: list[Pending], decision: Any) -> None:
        owned.in_flight = None
        self._perform(owned.state.key, items, decision)

    monkeypatch.setattr(Engine, "_confirm", trusting)

    assert broken(alone(STOLEN)) == invariants.ANSWERS


def test_an_answer_made_of_what_others_asked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(self: Engine, key: str, items: list[Pending], decision: Any) -> None:
        for position, item in enumerate(items):
            if item.waiter is not None:
                item.waiter(decision.refusals.get(position), None, decision.events)
            elif isinstance(item.value, inp.Outcome):
                self._undelivered.discard(item.value.lease)

    monkeypatch.setattr(Engine, "_perform", shared)

    # What comes while an append is in doubt is decided together.
    assert broken(everywhere(SIGNALLED, "error_after", "commit")) == invariants.ANSWERS


def test_a_hook_that_is_told_before_its_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(flight: Flight) -> None:
        if flight.engine.on_committed is not None:
            flight.engine.on_committed(flight.owned, flight.append)

    plant_before_commits(monkeypatch, hasty)

    assert broken(alone(CHAIN)) == invariants.DURABLE


def test_a_boundary_that_no_hook_is_told_of_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = Observers.committed

    def forgetful(self: Observers, owned: Owned, append: Any) -> None:
        if append.status == "running":
            committed(self, owned, append)

    monkeypatch.setattr(Observers, "committed", forgetful)

    assert broken(alone(CHAIN)) == invariants.HOOKS


def test_a_child_whose_end_is_not_told_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_advance, "tell_parent", lambda *_given: None)

    assert broken(alone(CALL)) == invariants.CLOSED


def test_values_of_an_outcome_that_came_too_late_may_lose_their_blobs() -> None:
    late = 0
    # Around the end of the step, whose outcome is on its way to the run's owner when the run is cancelled.
    for tenths in range(12, 32):
        cancel = Ask(tenths / 10, "cancel_hard", 1)
        report = Scenario([scenes.stream()], [cancel], starts_at=1, workers=1, pace=0.05).play()
        assert not report.failures
        late += any("AttemptEnded(at='items', attempt=1, outcome='succeeded'" in line for line in report.trace)

    assert late > 0


def test_a_collector_that_reads_no_journal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hasty(*_given: Any) -> set[str]:
        return set()

    monkeypatch.setattr(collecting, "_named", hasty)

    assert broken(alone(STREAM)) == invariants.EFFECTS


def test_a_failure_is_shrunk_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the seed, a run is started.
    plant_a_hasty_start(monkeypatch)
    report = run_seed(7)

    smaller, dropped = shrink(report, runs=40)
    text = explain(smaller, dropped)

    assert smaller.failures[0][0] == report.failures[0][0] == invariants.DURABLE
    assert len(smaller.parts) <= len(report.parts)
    assert run_seed(7, dropped).failures == smaller.failures
    assert "make simulate SEED=7" in text
    assert "boot n0.1" in text
    with pytest.raises(SimulationFailed, match="durable"):
        simulate(seeds=[7], shrinks=False)


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


@step(registry=own, name="test:doubled", process=True, retry=Retry(attempts=99, initial=0), lost_limit=99)
async def doubled(amount: int) -> int:
    await asyncio.sleep(0)
    return 2 * amount


@workflow(registry=own, name="test:twice")
def twice(amount: int) -> int:
    return doubled.bind(doubled.bind(amount))


def test_a_users_async_steps_run_in_processes() -> None:
    async def program(app: App) -> None:
        run = await app.start(twice, 7, id="twice")
        assert await run.result() == 28

    assert simulate(program, seeds=range(10), registry=own)["crash"] > 0


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


def test_phases_inside_a_compensating_phase_are_told_the_index_of_the_row_that_is_compensated() -> None:
    # The values that the rules read are encoded here, so that workers answer them, and the rows come in another order.
    simulate(seeds=[949])


def test_in_some_worlds_events_go_out_to_a_receiver_that_fails() -> None:
    seeds = [seed for seed in range(60) if Mail(seed, lambda name, text: None).on]

    assert len(seeds) > 5
    simulate(seeds=seeds)


def test_that_the_key_of_a_list_is_missing_is_noticed_before_its_reader_begins() -> None:
    simulate(seeds=[384])
