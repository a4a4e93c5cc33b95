"""Hooks and middleware inside gathers, branches, rows and compensations: told in order, and never in the way."""

from __future__ import annotations

from typing import Any

from treadle import (
    Boundary,
    Cell,
    Compensation,
    Hooks,
    Next,
    Patch,
    Phase,
    Phases,
    StepCall,
    case,
    choose,
    connect,
    gather,
    holds,
    step,
    workflow,
)


@step(name="watched:double", undo=lambda: None)
async def double(x: int) -> int:
    return x * 2


@step(name="watched:cell")
def cell(cell: Cell) -> Patch[int]:
    return Patch(cell.step + 1, {"v": cell.step + 1})


@step(name="watched:back")
def back(of: Compensation) -> str:
    return f"back of {of.phase}"


@step(name="watched:end")
def end() -> None:
    raise ValueError("the end")


@workflow(name="watched:all", on_failure="unwind")
def everything() -> Any:
    doubled = gather([1, 2], double, id="g", limit=1)
    way = case(holds("len(g) == 2", g=doubled), lambda: double.options(id="way").bind(7), id="yes")
    rows = Phases(
        Phase("one", {"m": cell}, compensate="un"),
        compensations=[Phase("un", {"b": back})],
        state={"v": 0},
        id="p",
    ).bind(after=choose(way, id="c"))
    return end.options(after=rows).bind()


class Told(Hooks):
    """Notes what it is told, and fails each time if asked to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.fails = fails

    def note(self, *line: Any) -> None:
        self.lines.append(line)
        if self.fails:
            raise ConnectionError("nobody listens")

    def run_started(self, run: Boundary) -> None:
        self.note("run")

    def run_ended(self, run: Boundary) -> None:
        self.note("run", run.outcome)

    def scope_started(self, scope: Boundary) -> None:
        self.note(scope.block, scope.address)

    def scope_ended(self, scope: Boundary) -> None:
        self.note(scope.block, scope.address, scope.outcome)

    def step_started(self, step: Boundary) -> None:
        self.note("step", step.address, dict(step.arguments))

    def step_ended(self, step: Boundary) -> None:
        self.note("step", step.address, step.outcome, step.result or (step.failure and step.failure.message))


async def told(hooks: list[Told], middleware: list[Any]) -> tuple[str, int]:
    async with connect("memory://", hooks=hooks, middleware=middleware) as app:
        row = await (await app.start(everything, id="r")).wait()
    return f"{row.status} {row.unwound}", app.hook_failures


async def test_boundaries_inside_blocks_are_told_with_arguments_results_and_errors() -> None:
    hooks = Told()

    assert await told([hooks], []) == ("failed fully", 0)

    cell_of_one = Cell("one", 0, 0, 1, {"v": 0}, {}, {})
    row_of_one = Compensation("one", 0, 0, 1, {"v": 1}, {"m": 1})
    lines = [line for line in hooks.lines if line[0] in ("run", "step")]
    assert lines == [
        ("run",),
        ("step", "g[0]/double", {"x": 1}),
        ("step", "g[0]/double", "succeeded", 2),
        ("step", "g[1]/double", {"x": 2}),
        ("step", "g[1]/double", "succeeded", 4),
        ("step", "c/yes/way", {"x": 7}),
        ("step", "c/yes/way", "succeeded", 14),
        ("step", "p/one/m", {"cell": cell_of_one}),
        ("step", "p/one/m", "succeeded", 1),
        ("step", "end", {}),
        ("step", "end", "failed", "the end"),
        ("step", "p/un/b", {"of": row_of_one}),
        ("step", "p/un/b", "succeeded", "back of one"),
        ("run", "failed"),
    ]
    scopes = [line[1:] for line in hooks.lines if line[0] not in ("run", "step")]
    for address in ("g", "g[0]", "g[1]", "c", "c/yes", "p", "p/one", "p/un"):
        assert scopes.index((address,)) < scopes.index((address, "succeeded"))
    # A row is told before what is in it.
    place = hooks.lines.index(("step", "p/one/m", {"cell": cell_of_one}))
    assert any(line[1:] == ("p/one",) for line in hooks.lines[:place])


async def test_hooks_that_fail_inside_blocks_fail_nothing_and_are_counted() -> None:
    broken, sound = Told(fails=True), Told()

    outcome, failures = await told([broken, sound], [])

    assert outcome == "failed fully"
    assert failures == len(broken.lines) == len(sound.lines)


async def test_middleware_is_around_attempts_inside_blocks_in_its_order() -> None:
    seen: list[str] = []

    def noted(name: str) -> Any:
        async def around(call: StepCall, call_next: Next) -> Any:
            seen.append(f"{name}> {call.address}")
            try:
                return await call_next()
            finally:
                seen.append(f"<{name} {call.address}")

        return around

    assert (await told([], [noted("a"), noted("b")]))[0] == "failed fully"

    for address in ("g[0]/double", "g[1]/double", "c/yes/way", "p/one/m", "p/un/b"):
        place = seen.index(f"a> {address}")
        assert seen[place : place + 4] == [f"a> {address}", f"b> {address}", f"<b {address}", f"<a {address}"]
