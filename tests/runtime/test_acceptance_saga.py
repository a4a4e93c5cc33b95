"""Scenarios of sagas on files: what is there afterwards, what the run says, and what its receipt counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from treadle import (
    NotCompensable,
    Phase,
    Phases,
    Retry,
    RunFailedError,
    case,
    choose,
    connect,
    gather,
    holds,
    planned_of,
    step,
    workflow,
)

log: list[str] = []


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the steps write."""
    monkeypatch.chdir(tmp_path)
    log.clear()
    return tmp_path


def look(name: str) -> str | None:
    file = Path(name)
    return file.read_text() if file.exists() else None


def put_back(name: str, state: str | None) -> None:
    log.append(f"undo {name}")
    if state is None:
        Path(name).unlink(missing_ok=True)
    else:
        Path(name).write_text(state)


def unchanged(name: str) -> bool:
    return Path(name).read_text() == "mine"


@step(name="saga:write", prepare=look, undo=put_back)
def write(name: str) -> str:
    Path(name).write_text("mine")
    return name


@step(name="saga:careful", prepare=look, undo=put_back, reconcile=unchanged)
def careful(name: str) -> str:
    Path(name).write_text("mine")
    return name


@step(name="saga:broken", prepare=look, undo=put_back)
def broken(name: str) -> str:
    """Acts, and then fails."""
    Path(name).write_text("half")
    raise ValueError(f"{name} is broken")


@step(name="saga:flaky", retry=Retry(attempts=1))
def flaky(name: str) -> str:
    tries = Path("tries")
    count = len(tries.read_text()) if tries.exists() else 0
    tries.write_text("x" * (count + 1))
    if count < 1:
        raise ValueError("not yet")
    return name


def no_way() -> None:
    raise NotCompensable("it was sent")


@step(name="saga:send", undo=no_way)
def send(name: str) -> str:
    return name


@step(name="saga:stuck", undo=lambda name: 1 // 0)
def stuck(name: str) -> str:
    return name


@step(name="saga:meddle")
def meddle(name: str) -> str:
    """Somebody else changes the file."""
    Path(name).write_text("theirs")
    return name


@step(name="saga:fail")
def fail() -> None:
    raise ValueError("the end")


async def played(flow: Any, *args: Any) -> tuple[Any, Any]:
    """The row and the receipt of a run of this workflow."""
    async with connect("memory://") as app:
        run = await app.start(flow, *args, id="r")
        row = await run.wait()
        return row, (await run.receipt()).run


def files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@workflow(name="saga:three", on_failure="unwind")
def three() -> Any:
    first = write.bind("first")
    second = broken.options(id="second", after=first).bind("second")
    return write.options(id="third", after=second).bind("third")


async def test_of_three_steps_the_first_is_undone_the_second_failed_and_the_third_never_ran(folder: Path) -> None:
    row, receipt = await played(three)

    assert files(folder) == {}
    assert (row.status, row.unwound) == ("failed", "fully")
    assert [(s.address, s.status, s.undo) for s in receipt.steps] == [
        ("write", "succeeded", "undone"),
        ("second", "failed", "undone"),
        ("third", "skipped", "none"),
    ]
    assert receipt.summary.standing == 0
    assert log == ["undo second", "undo first"]


@workflow(name="saga:item-bodies", on_failure="unwind")
def bodies(limit: int) -> Any:
    def body(item: str) -> Any:
        made = write.options(id="made").bind(item)
        return choose(
            case(holds("item == 'c'", item=item), lambda: broken.options(id="bad").bind("other")),
            id="then",
            after=made,
        )

    return gather(["a", "b", "c"], body, id="each", limit=limit)


@pytest.mark.parametrize("limit", [1, 2, 0])
async def test_a_gather_of_which_one_body_fails_leaves_nothing_of_any_iteration(folder: Path, limit: int) -> None:
    row, receipt = await played(bodies, limit)

    assert files(folder) == {}
    assert (row.status, row.unwound) == ("failed", "fully")
    assert receipt.summary.standing == 0
    # Steps that overlapped may be undone together.
    assert sorted(log) == ["undo a", "undo b", "undo c", "undo other"]
    if limit == 1:
        assert log == ["undo other", "undo c", "undo b", "undo a"]


@workflow(name="saga:branch", on_failure="unwind")
def branch() -> Any:
    def way() -> Any:
        return broken.options(id="bad", after=write.options(id="made").bind("made")).bind("other")

    return choose(case(holds("1 < 2"), way, id="way"), id="pick")


async def test_a_branch_that_fails_names_itself_and_its_earlier_steps_are_undone(folder: Path) -> None:
    async with connect("memory://") as app:
        run = await app.start(branch, id="r")
        with pytest.raises(RunFailedError, match=r"step 'pick/way/bad': error: other is broken.*was undone fully"):
            await run.result()

    assert files(folder) == {}
    assert log == ["undo other", "undo made"]


@workflow(name="saga:drift", on_failure="unwind")
def drift() -> Any:
    one = careful.options(id="one").bind("one")
    two = careful.options(id="two", after=one).bind("two")
    return fail.options(after=meddle.options(after=two).bind("two")).bind()


async def test_an_entry_that_has_drifted_is_left_alone_and_the_others_are_undone(folder: Path) -> None:
    row, receipt = await played(drift)

    assert files(folder) == {"two": "theirs"}
    assert row.unwound == "partly"
    assert {s.address: s.undo for s in receipt.steps}["two"] == "skipped"
    assert {s.address: s.undo for s in receipt.steps}["one"] == "undone"
    # What was not undone stands, and what nobody could undo does.
    assert receipt.summary.standing == 2


@workflow(name="saga:mixed", on_failure="unwind")
def mixed() -> Any:
    one = write.options(id="one").bind("one")
    sent = send.options(id="sent", after=one).bind("mail")
    bad = stuck.options(id="stuck", after=sent).bind("stuck")
    last = write.options(id="last", after=bad).bind("last")
    return fail.options(after=last).bind()


async def test_what_cannot_be_undone_or_fails_to_holds_nothing_back_and_is_counted_as_standing(folder: Path) -> None:
    row, receipt = await played(mixed)

    assert files(folder) == {}
    assert row.unwound == "partly"
    assert {s.address: s.undo for s in receipt.steps} == {
        "one": "undone",
        "sent": "not_compensable",
        "stuck": "failed",
        "last": "undone",
        "fail": "none",
    }
    assert receipt.summary.standing == 2
    assert [fact.kind for fact in receipt.undo].count("undo_failed") == 1
    assert log == ["undo last", "undo one"]


@workflow(name="saga:retried")
def retried() -> Any:
    block = Phases(
        Phase("before", {"main": write_cell}),
        Phase("flaky", {"main": write_cell_too, "gate": flaky_cell}, retry=Retry(attempts=3, initial=0.0)),
        id="rows",
    )
    return block.bind()


@step(name="saga:cell", prepare=lambda: look("row"), undo=lambda state: put_back("row", state))
def write_cell() -> str:
    return write("row")


@step(name="saga:cell-too", prepare=lambda: look("own"), undo=lambda state: put_back("own", state))
def write_cell_too() -> str:
    return write("own")


@step(name="saga:flaky-cell")
def flaky_cell() -> str:
    return flaky("gate")


async def test_a_phase_that_is_tried_again_is_undone_before_and_each_undo_is_made_once(folder: Path) -> None:
    row, receipt = await played(retried)

    assert row.status == "succeeded"
    assert files(folder) == {"row": "mine", "own": "mine", "tries": "xx"}
    assert log in (["undo own"], [])
    entries = {s.address: (s.status, s.undo) for s in receipt.steps}
    assert entries["rows/flaky/gate"][0] == "failed"
    assert entries["rows/flaky#2/gate"][0] == "succeeded"
    assert entries["rows/before/main"] == ("succeeded", "none")


async def test_a_receipt_is_not_executed_again_and_its_plan_is_when_it_is_reset(folder: Path) -> None:
    async with connect("memory://") as app:
        run = await app.start(three, id="r")
        await run.wait()
        document = await run.receipt()
        with pytest.raises(Exception, match=r"receipt of run 'r' \(failed\)"):
            planned_of(document)

        again = await app.start(planned_of(document, reset=True), id="again", on_failure="stop")
        row = await again.wait()

    assert row.status == "failed"
    assert files(folder) == {"first": "mine", "second": "half"}
