"""A step that goes on where its last attempt stopped, and one that asks what became of another."""

import asyncio

from treadle import Permanent, Retryable, connect, context, step, workflow


@step(retry=5, progress_timeout="1m", annotations={"team": "import"})
async def copy_pages(count: int) -> int:
    own = context()
    first = own.last_progress or 0
    print(f"  attempt {own.attempt} of team {own.annotations['team']} begins at page {first}")
    for page in range(first, count):
        if own.attempt == 1 and page == 2:
            raise Retryable("the line went dead", code="line")
        own.progress(page + 1)
    return count - first


@step(optional=True)
async def charge(amount: int) -> str:
    try:
        raise TimeoutError("the bank does not answer")
    except TimeoutError as error:
        raise Permanent("no money", code="card_refused", details={"missing": amount}) from error


@step
def report() -> str:
    own = context()
    # In a thread: ask, and wait for the answer.
    paid = own.dependency("charge").result()
    record = own.run().result()
    return f"{record.id} {record.labels}: {paid.outcome} ({paid.code}, {paid.details['missing']} are missing)"


@workflow
def order(pages: int) -> tuple[int, str]:
    return copy_pages.bind(pages), report.options(after_any=charge.bind(pages * 2)).bind()


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(order, 5, id="order-1", labels={"customer": "ada"})
        copied, said = await run.result()
        print(f"copied in the last attempt: {copied}\n{said}")
        failed = (await run.inspect()).failures[0]
        print("behind it:", (await run.account(failed.detail)).causes)


if __name__ == "__main__":
    asyncio.run(main())
