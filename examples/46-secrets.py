"""Secrets: by name, looked up where the step is executed; by value, through an encrypting codec only."""

import asyncio
import os

from treadle import DefinitionError, Encryption, RunFailedError, Secret, connect, step, workflow


@step
async def log_in(user: str, password: Secret[str]) -> Secret[str]:
    # What is shown of a secret is never its value.
    print("logging in", user, "with", password)
    return Secret(f"session-{len(password.reveal())}-{user}")


@step
async def fetch(session: Secret[str]) -> str:
    return f"42 orders of {session.reveal().rpartition('-')[2]}"


@step
async def careless(password: Secret[str]) -> str:
    raise ValueError(f"the server refused {password.reveal()!r}")


@workflow
def orders(user: str) -> str:
    return fetch.bind(log_in.bind(user, Secret.named("env:SHOP_PASSWORD")))


@workflow
def refused() -> str:
    return careless.bind(Secret.named("env:SHOP_PASSWORD"))


async def main() -> None:
    os.environ["SHOP_PASSWORD"] = "correct horse"  # noqa: S105 - no secret of anybody's
    async with connect("memory://", codec=Encryption({"k1": os.urandom(32)})) as app:
        print(await (await app.start(orders, "ada")).result())

        run = await app.start(refused)
        try:
            await run.result()
        except RunFailedError as error:
            print(error)

    # Without a codec that hides it, a session that goes from step to step would be stored in clear.
    async with connect("memory://") as app:
        try:
            await app.start(orders, "ada")
        except DefinitionError as error:
            print("refused:", str(error).partition(";")[0])


asyncio.run(main())
