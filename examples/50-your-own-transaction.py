"""A row of yours and the run that it asks for: both are committed, or neither."""

import asyncio
import tempfile

import apsw

from treadle import connect, step, workflow


@step
async def ship(order: str) -> str:
    return f"{order} shipped"


@workflow
def fulfil(order: str) -> str:
    return ship.bind(order)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/shop.db"
        async with connect(f"sqlite:///{path}") as app:
            shop = apsw.Connection(path)
            # Other connections write too; wait for them.
            shop.set_busy_timeout(10_000)
            shop.execute("CREATE TABLE orders (id TEXT PRIMARY KEY)")

            shop.execute("BEGIN IMMEDIATE")
            shop.execute("INSERT INTO orders VALUES ('a-16')")
            await app.start(fulfil, "a-16", id="order-a-16", transaction=shop)
            shop.execute("ROLLBACK")
            print("after a rollback:", await app.find("order-a-16"), shop.execute("SELECT id FROM orders").fetchall())

            shop.execute("BEGIN IMMEDIATE")
            shop.execute("INSERT INTO orders VALUES ('a-17')")
            run = await app.start(fulfil, "a-17", id="order-a-17", transaction=shop)
            shop.execute("COMMIT")
            print("after a commit:", await run.result())
            shop.close()


asyncio.run(main())
