"""Records under seeds: a projection has each of them once, wherever it lives, and planted bugs are found."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from tests.simulation import scenes
from tests.simulation.scenes import WRITES, alone, broken, conduct

from treadle.authoring.builder import Planned
from treadle.core.effects import Given
from treadle.runtime import engine
from treadle.runtime.appending import append_of
from treadle.runtime.projections import Follower
from treadle.testing import invariants
from treadle.testing.scenarios import Scenario, everywhere
from treadle.testing.sim_conduct import PROJECTION, records_of, written_by
from treadle.testing.sim_records import Tables, refuses
from treadle.testing.sim_steps import work
from treadle.testing.simulation import run_seed


def name_with(*, refused: bool) -> str:
    """The name of a step that gives some records and writes something, and whether one of them is refused."""
    for name in map(str, range(10_000)):
        records = records_of({"name": name})
        if (
            len(records) > 5
            and written_by(name, 1)
            and any(refuses(PROJECTION, key) for _, key, _ in records) == refused
        ):
            return name
    raise AssertionError("there is none")


def recording() -> Planned:
    """Two steps that give records, and one whose records a projection in the store refuses."""
    plan = scenes.builder()
    first = plan.step("a", work, conduct(name_with(refused=False)), [])
    plan.step("b", work, conduct(name_with(refused=False), 3.0), [])
    plan.step("c", work, conduct(name_with(refused=True)), [], optional=True)
    plan.output(plan.step("end", work, conduct("end"), [first]))
    return plan.build()


HOSTED = Scenario([recording()], records="hosted")
BESIDE = Scenario([recording()], records="beside")


@pytest.mark.parametrize("scenario", [HOSTED, BESIDE])
@pytest.mark.parametrize("kind", ["", "crash_before", "crash_after", "error_before", "error_after"])
def test_without_a_planted_bug_nothing_is_found(scenario: Scenario, kind: str) -> None:
    operations = (*WRITES, "position", "apply_records")
    assert not broken(everywhere(scenario, kind, *operations) if kind else alone(scenario))


def test_what_a_projection_in_the_store_refuses_fails_its_step() -> None:
    assert sum("code='projection_refused'" in line for line in HOSTED.play().trace) == 1
    assert not any("code='projection_refused'" in line for line in BESIDE.play().trace)


def test_some_worlds_have_a_projection_in_the_store_and_some_have_one_beside_it() -> None:
    kinds = Counter(Tables(seed, 40.0, lambda *_: None).kind for seed in range(100))
    rebuilt = sum(bool(Tables(seed, 40.0, lambda *_: None).rebuilt_at) for seed in range(100))

    assert min(kinds["hosted"], kinds["beside"], rebuilt) > 5
    for seed in [seed for seed in range(60) if Tables(seed, 40.0, lambda *_: None).rebuilt_at]:
        assert not run_seed(seed).failures


# -- planted bugs ------------------------------------------------------------------------------------------------------


def test_an_append_that_leaves_its_records_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*given: Any) -> Any:
        made = append_of(*given)
        made.given = ()
        return made

    monkeypatch.setattr(engine, "append_of", forgetful)

    assert broken(alone(HOSTED)) == invariants.RECORDS


def test_an_append_that_gives_its_records_and_forgets_what_is_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*given: Any) -> Any:
        made = append_of(*given)
        made.given = tuple(Given(one.lease, one.at, one.records) for one in made.given)
        return made

    monkeypatch.setattr(engine, "append_of", forgetful)

    assert broken(alone(HOSTED)) == invariants.RECORDS


def test_a_refused_outcome_that_is_taken_without_its_records_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(value: Any, unfit: Any) -> Any:
        if getattr(value, "lease", 0) in unfit:
            return msgspec.structs.replace(value, writes=())
        return value

    def forgiving(owned: Any, decision: Any, items: Any, commit_id: int) -> Any:
        made = append_of(owned, decision, items, commit_id)
        made.given = tuple(one for one in made.given if one.writes)
        return made

    monkeypatch.setattr("treadle.runtime.appending._refused", lenient)
    monkeypatch.setattr(engine, "append_of", forgiving)

    assert broken(alone(HOSTED)) == invariants.RECORDS


def test_a_follower_that_brings_only_what_its_own_node_has_decided_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def blind(_self: Follower, _live: Any) -> None:
        pass

    monkeypatch.setattr(Follower, "look", blind)

    assert broken(everywhere(BESIDE, "crash_after", "commit")) == invariants.RECORDS


def test_a_follower_that_begins_a_journal_anew_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Follower._records
    brought: list[tuple[str, Any]] = []

    async def repeating(self: Follower, key: str, run: str, time: float, text: str) -> Any:
        found = await records(self, key, run, time, text)
        if found and not brought:
            brought.append((key, found))
            return [*found, *found]
        return found

    monkeypatch.setattr(Follower, "_records", repeating)

    assert broken(alone(BESIDE)) == invariants.RECORDS
