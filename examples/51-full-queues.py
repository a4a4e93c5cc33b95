"""What a start does that finds its queue full: it is refused, it waits, or the oldest one makes place for it."""

import asyncio

from treadle import App, Queue, QueueFullError, RunCancelledError, connect, step, workflow


@step(queue="reports")
async def render(name: str) -> str:
    return f"report {name}"


@step(queue="uploads")
async def upload(name: str) -> str:
    return f"upload {name}"


@step(queue="frames")
async def show(name: str) -> str:
    return f"frame {name}"


@workflow
def report(name: str):
    return render.bind(name)


@workflow
def send(name: str):
    return upload.bind(name)


@workflow
def picture(name: str):
    return show.bind(name)


# Two steps may wait in each of them.
QUEUES = [
    Queue("reports", length=2),
    Queue("uploads", length=2, on_full="wait"),
    Queue("frames", length=2, on_full="drop_oldest"),
]


async def refused(app: App) -> None:
    """Whoever asks for one report too many is told so at once."""
    for name in "abc":
        try:
            await app.start(report, name)
        except QueueFullError as error:
            print("refused:", error)


async def waits(producer: App, name: str) -> None:
    """Uploads are made as fast as they are sent: the third is no run until one of the others has begun."""
    run = await producer.start(send, name, deadline="1m")
    print("made:", await run.result())


async def drops(app: App) -> None:
    """Only the newest frames are of interest."""
    oldest = await app.start(picture, "a", id="frame-a")
    # Which run is older is told by the millisecond.
    await asyncio.sleep(0.01)
    others = [await app.start(picture, name, id=f"frame-{name}") for name in "bc"]
    try:
        await oldest.result()
    except RunCancelledError as error:
        (reason,) = [one for one in await oldest.why("show") if one.code == "cancel"]
        print("dropped:", error, "-", reason.message)
    assert [(await run.inspect()).status for run in others] == ["running", "running"]


async def main() -> None:
    # Nobody executes steps yet, so all queues fill up.
    async with connect("memory://", queues=QUEUES, worker="cycles") as app:
        await refused(app)
        await drops(app)
        uploads = [asyncio.create_task(waits(app, name)) for name in "abc"]
        while not all(upload.done() for upload in uploads):
            await app.run_once()


if __name__ == "__main__":
    asyncio.run(main())
