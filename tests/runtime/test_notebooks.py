"""Notebooks: cells that await, functions that are defined again, and what is shown of plans and runs."""

from __future__ import annotations

import ast
import asyncio
import inspect
from typing import Any

from treadle import Registry, connect, context, group, step, workflow

registry = Registry()
NAME = "<b>bold</b> & co"


@step(registry=registry, name="note:<one>")
async def one(value: int) -> int:
    context().progress({"done": value})
    return value


@step(registry=registry, name="note:fails")
async def fails() -> None:
    raise ValueError("<script>alert(1)</script>")


@workflow(registry=registry, name="note:flow")
def flow() -> None:
    with group("<group>"):
        one.options(id="<i>inner</i>").bind(1)
    fails.options(optional=True, id="bad").bind()


def test_a_plan_is_shown_as_a_table_with_everything_escaped() -> None:
    shown = flow.plan()._repr_html_()

    assert "plan of note:flow" in shown
    assert "&lt;i&gt;inner&lt;/i&gt;" in shown
    assert "note:&lt;one&gt;" in shown
    assert "<i>" not in shown


def test_a_long_plan_is_cut() -> None:
    @workflow(registry=Registry(), name="note:long")
    def long() -> None:
        for number in range(300):
            one.options(id=f"s{number}").bind(number)

    assert "… 100 more" in long.plan()._repr_html_()


async def test_a_run_is_shown_with_its_failures_and_nothing_of_it_is_markup() -> None:
    async with connect("memory://", registry=registry) as app:
        run = await app.start(flow, id="<r>", name=NAME, labels={"<k>": "<v>"})
        await run.wait(20)
        shown = (await run.inspect())._repr_html_()

        assert "<script>" not in shown
        assert "&lt;script&gt;alert(1)" in shown
        assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in shown
        assert "<v>" not in shown
        assert "await run.inspect()" in run._repr_html_()
        assert "<r>" not in run._repr_html_()


def test_a_blocking_run_shows_itself_as_it_is_now() -> None:
    with connect("memory://", registry=registry) as app:
        run = app.start(flow, id="now")
        run.wait(20)

        assert "succeeded" in run._repr_html_()


def test_cells_await_at_their_top_level_and_define_again() -> None:
    """What a notebook does with each cell: compile it so that it may await, and run it on one loop."""
    cells = [
        "from treadle import connect, step, workflow",
        "@step\nasync def add(a: int) -> int:\n    return a + 1",
        "@workflow\ndef flow(a: int) -> int:\n    return add.bind(a)",
        "app = await connect('memory://')",
        "run = await app.start(flow, 1)\nfirst = await run.result(20)",
        # The cell is changed and run again.
        "@step\nasync def add(a: int) -> int:\n    return a + 100",
        "second = await (await app.start(flow, 1)).result(20)",
        "await app.close()",
    ]
    scope: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for number, cell in enumerate(cells):
            code = compile(cell, f"<cell {number}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(eval(code, scope))  # noqa: S307 - the cells above
            else:
                exec(code, scope)  # noqa: S102 - the cells above

    assert (scope["first"], scope["second"]) == (2, 101)
