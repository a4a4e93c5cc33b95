"""What happens below a failure: skipped, run on a default, or not disturbed; `optional` failures fail no run."""

import asyncio

from treadle import StepSkippedError, connect, or_default, step, workflow


@step
async def weather(town: str) -> str:
    raise ConnectionError(f"no station in {town}")


@step
async def news() -> str:
    return "all quiet"


@step
async def forecast(today: str) -> str:
    return f"tomorrow as today: {today}"


@step
async def front_page(items: list[str]) -> str:
    return " | ".join(items)


@workflow
def newspaper(town: str) -> str:
    # Its failure is recorded, but does not fail the run.
    today = weather.options(optional=True).bind(town)
    # It needs a value that never comes: skipped, for that cause. A step skipped so fails the run, unless it is
    # optional too.
    tomorrow = forecast.options(optional=True).bind(today)
    # With a default the reader runs, whatever became of the other step.
    return front_page.bind([news.bind(), or_default(today, "no weather"), or_default(tomorrow, "no forecast")])


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(newspaper, "Atlantis")
        print(await run.result())
        try:
            await run.step("forecast")
        except StepSkippedError as error:
            print(f"{error}; upstream: {error.upstream}")
        for view in (await run.inspect()).steps:
            print(f"  {view.address}: {view.status}")


if __name__ == "__main__":
    asyncio.run(main())
