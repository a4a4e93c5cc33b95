"""Artifacts: files of any size that steps make, stored by content, named by the journal, streamed both ways."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from treadle import Artifact, connect, context, step, workflow


@step
async def export(rows: int) -> Artifact:
    async def lines() -> AsyncIterator[bytes]:
        for number in range(rows):
            yield f"{number},{number * number}\n".encode()

    # Streamed: however many rows there are, one chunk of them is in memory.
    return await context().artifact("squares.csv", lines(), metadata={"rows": str(rows)})


@step
def total(table: Artifact) -> int:
    # A sync step reads it like a file.
    with context().open(table) as stream:
        text = stream.read().decode()
    return sum(int(line.partition(",")[2]) for line in text.splitlines())


@workflow
def report(rows: int) -> int:
    return total.bind(export.bind(rows))


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with connect(f"sqlite:///{folder}/runs.db", artifacts=Path(folder, "artifacts")) as app:
            run = await app.start(report, 1000, id="report-1")
            print("total", await run.result())

            for made in await run.artifacts():
                print(made.id, made.name, made.kind, made.content_type, made.size, made.metadata)
            async with await run.open("export:artifact:001") as stream:
                first = (await stream.content()).splitlines()[2]
                print("third row", first.decode())

            outcome = await run.outcome("export")
            print(outcome.status, [made.name for made in outcome.artifacts])

            # The run goes, and with it, once they are old, the bytes that nobody else names.
            await run.delete()
            print(await app.collect("1d", dry_run=True))


asyncio.run(main())
