"""Work that is found while working: a step adds steps. They appear when it succeeds, in the same commit.

A page found twice is one step: an id, with the same definition, names one step whoever adds it.
"""

import asyncio

from treadle import connect, context, scope, step, workflow

LINKS = {"home": ["news", "shop"], "news": ["home", "sport"], "shop": ["home", "sport"], "sport": []}


@step
async def visit(page: str) -> int:
    found = [visit.options(id=link).bind(link) for link in LINKS[page]]
    # Into the root: one place for all pages, so that `sport` is visited once. Cycles do no harm.
    context().add(*found, into="root")
    return len(found)


@step
async def split(text: str) -> int:
    words = text.split()
    # Without `into` they live below the step that adds them: `split/measure`, `split/measure-2`, ...
    context().add(*(measure.bind(word) for word in words))
    return len(words)


@step
async def measure(word: str) -> int:
    return len(word)


@step
async def report(words: int) -> str:
    return f"{words} words, and all of them are measured"


@workflow
def crawl(start: str) -> None:
    visit.options(id=start).bind(start)


@workflow
def lengths(text: str) -> str:
    words = split.bind(text)
    # `after=words` would wait for the step alone; its scope is everything that it adds.
    return report.options(after=scope(words)).bind(words)


async def main() -> None:
    async with connect("memory://") as app:
        visits = await app.start(crawl, "home")
        await visits.wait()
        for view in (await visits.inspect()).steps:
            print(f"  {view.address:8} added by {view.added_by or 'the plan'}")
        measured = await app.start(lengths, "one three seven")
        print(await measured.result())
        print(await measured.step("split/measure-2", type=int))


if __name__ == "__main__":
    asyncio.run(main())
