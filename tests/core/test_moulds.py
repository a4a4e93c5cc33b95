"""Moulds: later openings of a body are cast from the first, and are what placing and linking would have made."""

from __future__ import annotations

from typing import Any

from tests.core.kit import Driver, adding, step, value_of

from treadle.core.plan import Block, Body, Const, Gather, Group, Index, Item, Phase, Phases, Ref, Rule, SignalValue
from treadle.core.state import NodeState, RunState, ScopeState

AGAIN = (Rule(id="again", move="repeat"),)


def below(run: RunState, scope: ScopeState) -> list[NodeState]:
    """All that lies in a scope, scopes before their content."""
    found: list[NodeState] = []
    for state in run.content(scope):
        found.append(state)
        if isinstance(state, ScopeState):
            found += below(run, state)
    return found


def shape(driver: Driver, at: str) -> list[Any]:
    """What a body holds, with numbers and addresses as from inside of it."""
    run, scope = driver.run, driver.scope(at)
    content = below(run, scope)
    first = content[0].node.number

    def moved(number: int) -> object:
        return ("inside", number - first) if number >= first else number

    def names(state: NodeState) -> dict[str, object]:
        used = state.node.refs
        return {name: moved(number) for name, number in used.items()}

    return [names(scope), scope.unsettled] + [
        (
            state.node.address.removeprefix(at),
            state.node.number - first,
            state.node.spec,
            state.node.is_step,
            state.node.optional,
            [(moved(number), flags) for number, flags in state.node.needs],
            names(state),
            state.node.signals,
            state.node.constants,
            state.around.node.address.removeprefix(at),
            state.status,
            state.waiting,
            state.doomed,
            [(moved(number), flags) for number, flags in state.more or ()],
            (state.gated, state.unsettled) if isinstance(state, ScopeState) else None,
            run.number_of(state.node.address) == state.node.number,
        )
        for state in content
    ]


def gathered(*blocks: Block, count: int, output: str) -> Driver:
    body = Body(blocks=list(blocks), output=Ref(step=output))
    gather = Gather(id="g", items=Const(0), body=body, after=("a",))
    return Driver(step("a"), gather, constants=[list(range(count))])


def test_blocks_of_a_body_know_each_other_in_every_iteration_though_the_first_is_no_step() -> None:
    inner = Gather(id="in", items=Const(0), body=Body(blocks=[step("w")], output=Ref(step="w")))
    last = Gather(id="last", items=Const(0), body=Body(blocks=[step("v", "in")], output=Ref(step="v")), after=("in",))
    driver = gathered(inner, last, count=4, output="last")

    driver.succeed("a")
    driver.finish()

    assert driver.run.status == "succeeded"
    assert [list(driver.run.children[driver.scope(f"g[{index}]").node.number]) for index in range(4)] == [
        ["in", "last"]
    ] * 4


def test_iterations_are_what_the_first_one_is() -> None:
    inner = Group(id="in", blocks=[step("y", "x"), step("z", "y", optional=True)], after=("x",), output=Ref(step="z"))
    nested = Gather(id="deep", items=Ref(step="x"), body=Body(blocks=[step("w")], output=Ref(step="w")))
    last = step("last", "in", "a", slots={"s": SignalValue(name="go"), "i": Item()}, after=("deep",))
    driver = gathered(step("x"), inner, nested, last, count=6, output="last")

    driver.succeed("a")

    wanted = shape(driver, "g[0]")
    assert [entry[0] for entry in wanted[2:]] == ["/x", "/in", "/in/y", "/in/z", "/deep", "/last"]
    for index in range(1, 6):
        assert shape(driver, f"g[{index}]") == wanted
    driver.check()


def test_a_cast_iteration_runs_like_any_other() -> None:
    driver = gathered(step("x"), step("y", "x"), count=4, output="y")
    driver.succeed("a")

    driver.finish()

    assert driver.status() == "succeeded"
    assert driver.status("g[3]/y") == "succeeded"
    driver.check()


def test_rows_of_one_phase_are_what_the_first_one_is() -> None:
    group = Group(id="lane", blocks=[step("m"), step("n", "m")], output=Ref(step="n"))
    row = Phase(id="r", blocks=[step("x"), step("y", "x"), group], policy="go")
    driver = Driver(Phases(id="p", phases=[row], policies={"go": AGAIN}, step_limit=5))
    wanted = shape(driver, "p/r")

    for entry in range(2, 6):
        for at in [*driver.waiting(), "y", "lane/n"]:
            before = "p/r" if entry == 2 else f"p/r#{entry - 1}"
            driver.succeed(at if at.startswith("p/") else f"{before}/{at}")
        assert shape(driver, f"p/r#{entry}") == wanted
    driver.check()


def test_a_name_of_another_phase_means_its_latest_row_each_time() -> None:
    first = Phase(id="a", blocks=[step("x")], policy="on")
    second = Phase(id="b", blocks=[step("y", "a/x")], policy="back")
    policies: dict[str, tuple[Rule, ...]] = {
        "on": (Rule(id="on", move="advance"),),
        "back": (Rule(id="back", move="jump", target="a"),),
    }
    driver = Driver(Phases(id="p", phases=[first, second], policies=policies, step_limit=10))

    for entry in range(1, 5):
        at = "" if entry == 1 else f"#{entry}"
        driver.succeed(f"p/a{at}/x", result=entry)
        assert list(driver.args(f"p/b{at}/y").values()) == [entry]
        driver.succeed(f"p/b{at}/y")
    driver.check()


def of_one_step(*, count: int = 5, output: Ref | None = None, **options: Any) -> Driver:
    """A gather whose iterations are cast many at a time, and enter no names of their own."""
    only = step("x", slots={"item": Item(), "order": Index()}, **options)
    body = Body(blocks=[only], output=output or Ref("x"))
    return Driver(Gather(id="g", items=Const(0), body=body), constants=[list(range(count)), "instead"])


def test_iterations_of_one_step_are_what_the_first_one_is() -> None:
    driver = of_one_step()
    first = driver.scope("g[0]")

    for index in range(5):
        scope = driver.scope(f"g[{index}]")
        assert shape(driver, f"g[{index}]")[1:] == shape(driver, "g[0]")[1:]
        assert scope.index == index
        assert (scope.around, scope.wakes, scope.status) == (first.around, scope.node.number, "open")
        assert driver.run.find(scope.node, "x") is driver.step(f"g[{index}]/x").node
        assert driver.run.find(scope.node, "y") is None
        assert driver.args(f"g[{index}]/x") == {"item": index, "order": index}
    driver.check()


def test_an_iteration_of_one_step_that_failed_gives_the_default() -> None:
    driver = of_one_step(output=Ref("x", default=1), optional=True)

    driver.fail("g[4]/x")
    driver.finish()

    assert driver.status() == "succeeded"
    assert value_of(driver.scope("g").result)[4] == "instead"
    driver.check()


def test_an_iteration_of_one_step_that_failed_is_named_by_its_gather() -> None:
    driver = of_one_step()

    driver.fail("g[3]/x")
    driver.finish()

    assert driver.status("g[3]") == driver.status("g") == "failed"
    assert driver.scope("g[3]").causes == ["g[3]/x"]
    assert [*driver.scope("g").bad] == [driver.scope("g[3]").node.number]
    driver.check()


def test_a_step_that_is_added_to_a_cast_iteration_lies_beside_its_own() -> None:
    driver = of_one_step()

    driver.succeed("g[3]/x", added=adding(step("y", "x"), into="g[3]"))

    assert [state.node.address for state in driver.run.content(driver.scope("g[3]"))] == ["g[3]/x", "g[3]/y"]
    assert driver.status("g[3]") == "open"
    driver.finish()
    assert driver.status() == driver.status("g[3]/y") == "succeeded"
    driver.check()
