"""Many runs of one workflow: ids as idempotency keys, labels to find them by, pages of listings."""

import asyncio

from treadle import RunExistsError, connect, step, workflow


@step
async def charge(customer: str, amount: int) -> str:
    if amount > 900:
        raise ValueError(f"{customer} has not that much")
    return f"{customer} paid {amount}"


@workflow
def invoice(customer: str, amount: int) -> str:
    return charge.bind(customer, amount)


async def main() -> None:
    async with connect("memory://") as app:
        # Starting is durable when it returns; that may be awaited for many at a time.
        runs = await asyncio.gather(
            *(
                app.start(invoice, f"c{n % 5}", n * 10, id=f"invoice-{n:03}", labels={"customer": f"c{n % 5}"})
                for n in range(100)
            )
        )
        outcomes = [(await run.wait()).status for run in runs]
        print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))})

        # The same id with the same input is the same run; with another input it is a mistake.
        again = await app.start(invoice, "c3", 30, id="invoice-003")
        print(await again.result())
        try:
            await app.start(invoice, "c3", 31, id="invoice-003")
        except RunExistsError as error:
            print(error)

        # Queries go over ids, states, workflows and labels, newest first, in pages.
        page = await app.runs(labels={"customer": "c4"}, status="failed", limit=3)
        print([row.id for row in page])
        page = await app.runs(labels={"customer": "c4"}, status="failed", limit=3, after=page[-1].key)
        print([row.id for row in page])
        # Steps that failed for good, over all runs.
        run, dead = (await app.dead())[0]
        print(f"dead letter: {run.id}/{dead.address}: {dead.message}")
        # A closed run can be removed wholly.
        await again.delete()
        print("left:", len(await app.runs(id_prefix="invoice-00")))


if __name__ == "__main__":
    asyncio.run(main())
