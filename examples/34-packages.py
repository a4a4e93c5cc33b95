"""One application that serves two domains: entrypoints by name, settings, and runs that say what they are."""

import asyncio
from dataclasses import dataclass

from treadle import DefinitionErrors, Package, connect, context, describe_run


@dataclass
class ShopSettings:
    currency: str = "EUR"
    limit: int = 100


shop = Package("shop", title="Order", settings=ShopSettings)
mail = Package("mail", title="Letter")


@shop.step
def price(articles: list[str]) -> str:
    return f"{10 * len(articles)} {shop.settings.currency}"


@shop.step
async def record() -> str:
    known = await context().run()
    return f"{known.name} for {known.metadata['customer']}"


@shop.entrypoint
def order(customer: str, articles: list[str]) -> list[str]:
    # Before any step exists: the input says what this run is.
    describe_run(name=f"{len(articles)} articles", labels={"size": "large" if len(articles) > 2 else "small"})
    describe_run(metadata={"customer": customer})
    return [price.options(id="main").bind(articles), record.bind()]


@mail.step
def write(to: str) -> str:
    return f"dear {to}"


@mail.entrypoint
def letter(to: str) -> str:
    return write.options(id="main").bind(to)


async def main() -> None:
    settings = {"shop": {"currency": "CHF"}}
    async with connect("memory://", packages=[shop, mail], package_settings=settings) as app:
        orders = [await app.start("shop", name, ["tea"] * count) for name, count in (("ada", 1), ("bob", 3))]
        print("one id in every run:", await (await app.start("mail/letter", "ada")).step("main"))
        for run in orders:
            print(await run.result())
        print("large:", [row.name for row in await app.runs(package="shop", labels={"size": "large"})])
        print("of ada:", [row.name for row in await app.runs(metadata={"customer": "ada"})])

    @mail.step(name="write")
    def write_again(to: str) -> str:
        return to

    try:
        connect("memory://", packages=[mail, Package("empty")], package_settings={"shop": {}})
    except DefinitionErrors as error:
        print(f"{len(error.exceptions)} mistakes, told at once")


if __name__ == "__main__":
    asyncio.run(main())
