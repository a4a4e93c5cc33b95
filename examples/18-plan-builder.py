"""Graphs made by programs: a builder takes ids, functions (or their names) and options as data."""

import asyncio
import json

from treadle import CycleError, DefinitionErrors, PlanBuilder, connect, step

# As it might come from a file.
RECIPE = json.loads("""
{
    "boil":  {"needs": [],               "minutes": 3},
    "chop":  {"needs": [],               "minutes": 2},
    "stew":  {"needs": ["boil", "chop"], "minutes": 9},
    "serve": {"needs": ["stew"],         "minutes": 1}
}
""")


@step(name="kitchen.cook", retry=2)
async def cook(what: str, minutes: int) -> str:
    return f"{what} ({minutes} min)"


@step
async def menu(dishes: list[str]) -> str:
    return ", then ".join(dishes)


def build(recipe: dict[str, dict[str, object]]) -> PlanBuilder:
    builder = PlanBuilder("recipe")
    dishes = [
        # A registered name does as well as the function itself; options are keyword arguments.
        builder.step(name, "kitchen.cook", name, line["minutes"], after=line["needs"])
        for name, line in recipe.items()
    ]
    builder.output(builder.step("menu", menu, dishes))
    return builder


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(build(RECIPE).build(), id="stew-1")
        print(await run.result())

    # All mistakes at once, before there is a run.
    wrong = {name: dict(line) for name, line in RECIPE.items()}
    wrong["boil"]["needs"] = ["serve"]
    try:
        build(wrong).build()
    except CycleError as error:
        print(f"refused: {error}")
    wrong["chop"]["needs"] = ["wash"]
    wrong["serve"]["minutes"] = "many"
    try:
        build(wrong).build()
    except DefinitionErrors as errors:
        for mistake in errors.exceptions:
            print(f"refused: {type(mistake).__name__}: {str(mistake)[:70]}...")


if __name__ == "__main__":
    asyncio.run(main())
