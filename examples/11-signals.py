"""A step that waits for a signal from outside, with a payload like any other value; and one that gives up waiting."""

import asyncio

from treadle import RunFailedError, connect, signal_value, step, workflow


@step
async def draft(topic: str) -> str:
    return f"a text about {topic}"


@step
async def edit(text: str, remark: str) -> str:
    return f"{text}, now {remark}"


@step
async def publish(text: str) -> str:
    return f"published: {text}"


@workflow
def article(topic: str) -> str:
    # It waits for its two needs: the draft, and the signal whose payload it takes.
    edited = edit.bind(draft.bind(topic), signal_value("remark", type=str))
    # It waits for a signal without taking its payload.
    return publish.options(signals="approved").bind(edited)


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(article, "weaving")
        await run.step("draft")
        for reason in await run.why():
            print(f"  {reason.step}: {reason.code}: {reason.message}")
        # Durable when it returns. Any process that knows the run's id can send it, also before anyone waits.
        print("first:", await run.signal("remark", "shorter"))
        # A signal is once: the first wins, and is kept.
        print("second:", await run.signal("remark", "longer"))
        await run.signal("approved")
        print(await run.result())

        # Nobody has a remark about this one.
        late = await app.start(article, "dyeing", deadline="100ms")
        try:
            await late.result()
        except RunFailedError as error:
            print(error)


if __name__ == "__main__":
    asyncio.run(main())
