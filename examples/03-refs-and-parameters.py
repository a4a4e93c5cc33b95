"""What one step gives, another takes: whole results, parts of them, inside lists and dicts, and plain parameters."""

import asyncio
from dataclasses import dataclass

from treadle import connect, ref, step, workflow


@dataclass
class Page:
    url: str
    title: str
    words: list[str]


@step
async def fetch(url: str, *, words: int = 3) -> Page:
    return Page(url, title=f"About {url}", words=["alpha", "beta", "gamma"][:words])


@step
def describe(title: str, first: str, extra: dict[str, str]) -> str:
    return f"{title}: starts with {first!r}, {extra}"


@step
def join(lines: list[str]) -> str:
    return "\n".join(lines)


@workflow
def overview(url: str) -> str:
    page = fetch.bind(url, words=2)
    # A planned value has the fields and items of the value it stands for. Type checkers see its type.
    one = describe.bind(page.title, page.words[0], {"from": page.url, "kind": "page"})
    two = describe.options(id="second").bind("A plain title", page.words[1], {})
    # A step that is known by its id alone.
    return join.bind([one, two, ref("second", type=str)])


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(overview, "localhost")
        print(await run.result())
        # The value of one step, from any process that knows the two ids.
        print((await run.step("fetch", type=Page)).words)


if __name__ == "__main__":
    asyncio.run(main())
