"""The verbs on runs with phases, gathers and chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

Project = Any  # tests/cli/conftest.py

FLOWS = """
from treadle import Cell, Patch, Phase, Phases, Rule, case, choose, gather, holds, step, workflow


@step
def numbers(count: int) -> list[int]:
    return list(range(count))


@step
def double(value: int) -> int:
    if value == 13:
        raise ValueError("unlucky")
    return 2 * value


@step
def write(cell: Cell) -> Patch[str]:
    return Patch("draft", {"drafts": cell.state["drafts"] + 1})


@step
def log(cell: Cell) -> int:
    return cell.step


article = Phases(
    Phase("draft", {"writer": write}, detached={"log": log}, policy="gate"),
    Phase("print", {"writer": write}, policy="gate"),
    policies={
        "gate": [Rule.repeat(when="state.drafts < 2", id="again"), Rule.advance(when="phase == 'draft'", id="on")]
    },
    otherwise=Rule.stop(id="end"),
    state={"drafts": 0},
    id="article",
)


@workflow
def publish(count: int):
    doubled = gather(numbers.bind(count), double, limit=2, id="scan")
    way = choose(
        case(holds("amount > 5", amount=double.options(id="amount").bind(count)), lambda: double.bind(3), id="large"),
        otherwise=lambda: double.bind(1),
        id="way",
    )
    return {"doubled": doubled, "way": way, "state": article.bind(after=doubled)}


@workflow
def stuck():
    return Phases(
        Phase("only", {"writer": write}, policy="none"),
        policies={"none": [Rule.stop(when="state.drafts > 9", id="never")]},
        state={"drafts": 0},
        id="loop",
    ).bind()
"""


@pytest.fixture
def blocks(project: Project) -> Project:
    project.file.write_text(FLOWS, encoding="utf-8")
    return project


def test_a_run_with_blocks_is_shown_as_a_tree_with_decisions_and_state(blocks: Project) -> None:
    done = blocks.run("publish", "--input", "count=30", code=1)
    assert "step 'scan[13]/double': error: unlucky" in done.stderr
    blocks.run("publish", "--input", "count=5", id="r2")

    report = blocks.treadle("show", "r2").stdout
    tree = blocks.treadle("show", "r2", "--tree").stdout

    assert "✓ scan[]" in report
    assert "5 items · 5 succeeded" in report
    assert "article: draft (step 0) → draft  repeat  by rule again of gate" in report
    assert "article: draft (step 1) → print  advance  by rule on of gate" in report
    assert "article: print (step 2) → the end  stop  by rule end" in report
    assert "drafts = 3" in report
    assert "    ✓ article/draft#2/  step 1" in tree.splitlines()
    assert "way/  → large" in tree
    assert "~items" not in tree
    assert "treadle: run 'r1' failed: step 'scan[13]/double'" in blocks.treadle("result", "r1", code=1).stderr


def test_of_many_iterations_show_lists_some_and_with_all_every_one(blocks: Project) -> None:
    blocks.run("publish", "--input", "count=12")

    short = blocks.treadle("show", "r1").stdout
    whole = blocks.treadle("show", "r1", "--all").stdout

    assert "… 2 more iterations: 2 succeeded" in short
    assert whole.count("✓ scan[") - 1 == 2 * 12


def test_one_block_or_one_iteration_is_shown_and_has_a_value(blocks: Project) -> None:
    blocks.run("publish", "--input", "count=3")

    assert "✓ scan[1]/double" in blocks.treadle("show", "r1", "scan[1]").stdout
    assert "drafts = 3" in blocks.treadle("show", "r1", "article").stdout
    assert blocks.json("show", "r1", "scan")["gather"]["iterations"] == {"succeeded": 3}
    assert json.loads(blocks.treadle("result", "r1", "scan").stdout) == [0, 2, 4]
    assert json.loads(blocks.treadle("result", "r1", "article").stdout) == {"drafts": 3}


def test_why_tells_what_was_not_reached(blocks: Project) -> None:
    blocks.run("publish", "--input", "count=30", code=1)

    why = blocks.treadle("why", "r1", "way/otherwise/double").stdout
    assert "way has chosen branch 'large', not 'otherwise'" in why
    assert "scan failed before it came to item 29" in blocks.treadle("why", "r1", "scan[29]/double").stdout
    assert "no step" in blocks.treadle("why", "r1", "scan[29]/other", code=4).stderr


def test_a_block_that_failed_by_itself_is_named_as_text_and_as_json(blocks: Project) -> None:
    done = blocks.run("stuck", code=1)
    error = json.loads(blocks.treadle("result", "r1", "-o", "json", code=1).stderr)["error"]

    assert "run 'r1' failed: block 'loop': no_rule: policy 'none' had no matching rule for phase 'only'" in done.stderr
    assert error["failures"] == {"loop": "no_rule: policy 'none' had no matching rule for phase 'only'"}
    assert "no_rule" in blocks.treadle("show", "r1").stdout


def test_the_journal_of_blocks_is_readable(blocks: Project) -> None:
    blocks.run("publish", "--input", "count=3")

    table = blocks.treadle("events", "r1", "-o", "table").stdout
    kinds = [json.loads(line)["kind"] for line in blocks.treadle("events", "r1").stdout.splitlines()]

    assert {"row_opened", "decision_made", "iterations_opened", "branch_chosen", "scope_settled"} <= set(kinds)
    assert "decision_made" in table
    assert "article" in table


def test_watching_says_the_decisions(blocks: Project) -> None:
    blocks.run("publish", "--input", "count=3")

    assert "article: draft (step 0) → draft" in blocks.treadle("watch", "r1").stderr


def test_the_plan_of_blocks_as_a_tree_mermaid_and_dot(blocks: Project) -> None:
    def plan(form: str) -> str:
        text: str = blocks.treadle("plan", blocks.target("publish"), "--input", "count=3", "--format", form).stdout
        return text

    tree = plan("tree")

    assert "scan[]" in tree
    assert "gather  limit=2" in tree
    assert "article/" in tree
    assert "policy=gate  detached: log" in tree
    assert "when amount > 5" in tree
    assert plan("mermaid").count("subgraph") >= 4
    assert plan("dot").count("subgraph") >= 4


SAGA = """
from treadle import Phase, Phases, step, workflow

@step(prepare=lambda: 1, undo=lambda: None, reconcile=lambda: True)
def careful() -> int: return 1

@step(undo=lambda: None)
def simple() -> int: return 1

@step
def back() -> None: ...

@workflow(on_failure="unwind", undo_limit=1)
def saga() -> object:
    rows = Phases(Phase("one", {"m": careful}, compensate="un"), compensations=[Phase("un", {"b": back})], id="rows")
    return simple.options(after=rows.bind()).bind()
"""


def test_a_plan_tells_what_can_be_undone_and_when(project: Project) -> None:
    Path("cautious.py").write_text(SAGA)

    tree = project.treadle("plan", "cautious.py:saga").stdout

    assert "on_failure=unwind  undo_limit=1" in tree.splitlines()[0]
    assert "one/  compensate=un" in tree
    assert "m  undo (prepare, reconcile)" in tree
    assert "simple  ← rows (after)  undo" in tree
