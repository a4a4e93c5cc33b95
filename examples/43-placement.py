"""Where steps run: on what a worker offers, beside another step, and what happens while nobody offers it."""

import asyncio
import tempfile

from treadle import App, Run, connect, context, step, workflow


@step(on="camera")
async def take(subject: str) -> str:
    """Only a worker with a camera can do this; the film stays in its machine."""
    return f"{subject} by {context().worker_id}"


@step
async def develop(film: str) -> str:
    return f"{film}, developed by {context().worker_id}"


@step
async def frame(picture: str) -> str:
    return f"{picture}, framed by {context().worker_id}"


@workflow
def portrait(subject: str) -> str:
    film = take.bind(subject)
    picture = develop.options(beside=film).bind(film)
    return frame.options(on="workshop").bind(picture)


async def why_not(run: Run[str], at: str) -> str:
    """Wait until a step has nowhere to go."""
    while True:
        for reason in await run.why(at):
            if reason.code == "target_missing":
                return reason.message
        await asyncio.sleep(0.01)


async def main() -> None:
    url = f"sqlite:///{tempfile.mkdtemp()}/studio.db"
    # Three workers of one store; in real life each is a process, on a machine of its own.
    app: App
    async with (
        connect(url, worker=False) as app,
        connect(url, worker_id="ann", targets=["camera"]),
        connect(url, worker_id="bob") as bob,
    ):
        run = await app.start(portrait, "lighthouse")

        # Nothing fails: the step waits, and says for what.
        print(await why_not(run, "frame"))
        await bob.set_targets(["workshop"])

        result = await run.result(timeout=30)
        print(result)
        assert result == "lighthouse by ann, developed by ann, framed by bob"


if __name__ == "__main__":
    asyncio.run(main())
