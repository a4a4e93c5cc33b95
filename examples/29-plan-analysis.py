"""Analysis: what may run together, the longest chain, where a run's time went, and when it will have finished."""

import asyncio

from treadle import connect, group, step, workflow


@step
async def fetch(page: int) -> int:
    await asyncio.sleep(0.01 * page)
    return page


@step
async def parse(page: int) -> int:
    await asyncio.sleep(0.02)
    return page


@step
async def report(*pages: int) -> int:
    return sum(pages)


@workflow
def crawl(pages: int) -> int:
    with group("fetched"):
        fetched = [fetch.options(id=f"fetch-{page}").bind(page) for page in range(1, pages + 1)]
    parsed = [parse.options(id=f"parse-{page}").bind(value) for page, value in enumerate(fetched, start=1)]
    return report.bind(*parsed)


async def main() -> None:
    # A plan can be asked before anything has run.
    plan = crawl.plan(3).analysis()
    for number, steps in enumerate(plan.levels(), start=1):
        print(f"level {number}: {', '.join(steps)}")
    print("longest chain:", " -> ".join(plan.critical_path()))
    print("report needs:", ", ".join(plan.all_dependencies("report")))
    print("without report:", plan.subgraph(name for name in plan.steps if name != "report").independent_sets())

    # A guess at the times shows where more speed would help, and where it would not.
    guess = plan.schedule({"fetched/fetch-3": 5.0}, default=1.0)
    print(f"guessed: {guess.seconds:g} s by {' -> '.join(guess.critical_path)}")
    for span in guess.spans:
        print(f"  {span.step}: from {span.start:g} to {span.finish:g}, slack {span.slack:g}")

    async with connect("memory://") as app:
        run = await app.start(crawl, 3, id="crawl-1")
        await run.result()
        # The same questions to a run, with the times that its steps took.
        measured = await run.analysis()
        print("took longest:", " -> ".join(measured.measured().critical_path))

        # Those times tell when another run will have finished.
        again = await app.start(crawl, 3, id="crawl-2")
        forecast = (await again.analysis()).forecast(measured.seconds)
        print("waiting for:", " -> ".join(forecast.critical_path), "unknown:", forecast.unknown)
        await again.result()


if __name__ == "__main__":
    asyncio.run(main())
