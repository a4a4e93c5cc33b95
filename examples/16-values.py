"""Values between steps are stored as JSON and come back as what the annotations say. No pickle, no base class."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import TypedDict
from uuid import UUID, uuid5

from treadle import DefinitionError, connect, step, workflow


class Kind(Enum):
    LETTER = "letter"
    PARCEL = "parcel"


class Address(TypedDict):
    street: str
    town: str


@dataclass
class Item:
    id: UUID
    kind: Kind
    price: Decimal
    to: Address
    sent_at: datetime
    label: bytes
    files: list[PurePosixPath] = field(default_factory=list)
    tags: frozenset[str] = frozenset()


@step
async def pack(kind: Kind, price: Decimal) -> Item:
    return Item(
        id=uuid5(UUID(int=0), "item"),
        kind=kind,
        price=price,
        to={"street": "Quay 1", "town": "Riga"},
        sent_at=datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
        label=b"\x00\xff",
        files=[PurePosixPath("a/b.txt")],
        tags=frozenset({"fragile"}),
    )


@step
async def arrive(item: Item, takes: timedelta) -> datetime:
    # Every field has its type again, after a trip through the store.
    assert isinstance(item.price, Decimal)
    assert item.label == b"\x00\xff"
    return item.sent_at + takes


@workflow
def post(kind: Kind, price: Decimal, takes: timedelta) -> list[object]:
    item = pack.bind(kind, price)
    return [item.price, item.to["town"], arrive.bind(item, takes)]


async def main() -> None:
    async with connect("memory://") as app:
        run = await app.start(post, Kind.PARCEL, Decimal("12.50"), timedelta(days=2))
        print(await run.result())
        print(await run.step("arrive", type=datetime))
        print((await run.step("pack", type=Item)).kind)
    try:
        post.plan("balloon", Decimal(1), timedelta(1))  # type: ignore[arg-type]  # to show what is refused
    except DefinitionError as error:
        print(f"refused before anything runs: {error}")


if __name__ == "__main__":
    asyncio.run(main())
