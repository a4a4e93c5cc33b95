"""Phases: rows of lanes with a barrier after each, and policies that pick the next row. In process, and stored."""

import asyncio

from treadle import Cell, Patch, Phase, Phases, Row, Rule, connect, step, workflow


@step
async def write(cell: Cell) -> Patch[str]:
    # Variables are set at the row's barrier; cells of the same row do not see them.
    return Patch(f"draft {cell.state['drafts'] + 1}", {"drafts": cell.state["drafts"] + 1})


@step
async def spelling(cell: Cell) -> Patch[str]:
    # The lanes of the row before: only that one.
    return Patch("fine", {"score": cell.state["score"] + 3 if cell.previous["writer"] else 0})


@step
async def style(cell: Cell) -> str:
    return "dull" if cell.state["drafts"] < 3 else "vivid"


@step
async def statistics(cell: Cell) -> str:
    await asyncio.sleep(0.01)
    return f"{cell.state['drafts']} drafts so far"


article = Phases(
    Phase("draft", {"writer": write}, policy="go on"),
    # A detached cell is started and not waited for.
    Phase("check", {"spelling": spelling, "style": style}, detached={"statistics": statistics}, policy="gate"),
    policies={
        "go on": [Rule.advance()],
        # The first rule that holds decides; which one did is recorded.
        "gate": [
            Rule.stop(when="state.score >= 9 and lanes.style == 'vivid'", id="good enough"),
            Rule.loop_back("draft", when="step < 20", id="once more"),
        ],
    },
    state={"drafts": 0, "score": 0},
    step_limit=30,
)


@workflow
def publish(score: int) -> dict[str, int]:
    final: dict[str, int] = article.bind(score=score)
    return final


def calm(row: Row) -> bool:
    """In process, a rule may be any function; stored, an expression or a @predicate."""
    return row.state["heat"] <= 20


async def main() -> None:
    result = await article.run()
    for row in result.rows:
        print(f"{row.step} {row.phase}#{row.entry} {row.values} -> {row.move} ({row.rule})")
    print(result.state, result.end_reason)
    print([await ticket for ticket in result.tickets])

    cool = Phases(
        # So may a cell: closures and lambdas included.
        Phase("cool", {"fan": lambda cell: Patch(None, {"heat": cell.state["heat"] - 7})}, policy="until calm"),
        policies={"until calm": [Rule.stop(when=calm), Rule.repeat()]},
        state={"heat": 40},
    )
    print((await cool.run()).state)

    async with connect("memory://") as app:
        run = await app.start(publish, 6)
        print(await run.result())


if __name__ == "__main__":
    asyncio.run(main())
