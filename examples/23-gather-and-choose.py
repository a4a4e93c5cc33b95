"""`gather` does one body for each item of a list; `choose` does one branch. Neither is known before the run goes on."""

import asyncio

from treadle import case, choose, connect, gather, holds, step, workflow


@step
async def list_orders(count: int) -> list[dict[str, int]]:
    return [{"id": number, "total": number * 30} for number in range(1, count + 1)]


@step
async def charge(order: dict[str, int]) -> int:
    return order["total"]


@step
async def review(order: dict[str, int], position: int) -> int:
    print(f"  order {order['id']} is large, and number {position} in the list")
    return order["total"]


@step
async def total(charged: list[int]) -> int:
    return sum(charged)


@step
async def say(text: str, amount: int) -> str:
    return f"{text}: {amount}"


@workflow
def billing(count: int) -> str:
    orders = list_orders.bind(count)

    # Called once, while the plan is made, with planned values: `order` is whichever item it will be.
    def bill(order: dict[str, int], position: int) -> int:
        amount: int = choose(
            case(holds("order.total > 100", order=order), lambda: review.bind(order, position)),
            otherwise=lambda: charge.bind(order),
            id="how",
        )
        return amount

    # At most two orders under way; the values come in the order of the items.
    amount = total.bind(gather(orders, bill, limit=2, id="bills"))
    result: str = choose(
        case(holds("amount >= 300", amount=amount), lambda: say.bind("a good day", amount), id="good"),
        otherwise=lambda: say.bind("a quiet day", amount),
    )
    return result


async def main() -> None:
    async with connect("memory://") as app:
        for count in (3, 5):
            run = await app.start(billing, count)
            print(await run.result())


if __name__ == "__main__":
    asyncio.run(main())
