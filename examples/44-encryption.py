"""Encryption: the store holds ciphertext only, keys are rotated, and a missing key loses nothing."""

import asyncio
import os
import tempfile
from pathlib import Path

from treadle import Encryption, MissingKeyError, connect, context, step, workflow


@step
async def diagnose(patient: str) -> str:
    await context().artifact("scan.txt", f"scan of {patient}\n" * 1000)
    return f"{patient} is well"


@step
async def letter(finding: str) -> str:
    return f"Dear colleague, {finding}."


@workflow
def visit(patient: str) -> str:
    return letter.bind(diagnose.bind(patient))


def is_readable(folder: str, text: bytes) -> bool:
    return any(text in file.read_bytes() for file in Path(folder).rglob("*") if file.is_file())


async def main() -> None:
    older, newer = os.urandom(32), os.urandom(32)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/clinic.db"
        async with connect(url, codec=Encryption({"2026-05": older})) as app:
            run = await app.start(visit, "Ada Lovelace", id="visit-1")
            print(await run.result())

        print("the name is in a file:", is_readable(folder, b"Lovelace"))

        # The newest key encrypts, all keys decrypt.
        async with connect(url, codec=Encryption({"2026-11": newer, "2026-05": older})) as app:
            print(await (await app.start(visit, "Grace Hopper", id="visit-2")).result())
            print(await app.run("visit-1").result())
            print("runs that need each key:", await app.keys())

        # An operator without keys sees that the runs are there, and not what they hold.
        async with connect(url, worker=False) as app:
            print([(row.id, row.status) for row in await app.runs()])
            try:
                await app.run("visit-2").result()
            except MissingKeyError as error:
                print("missing:", error.key_id)


asyncio.run(main())
