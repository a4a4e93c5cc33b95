"""A step that is asked again until its value is true: between two probes it costs one row, and no slot."""

import asyncio
import time
from pathlib import Path

from treadle import StepFailedError, connect, context, step, workflow


@step
def arrived(path: str) -> str | None:
    # Not yet: None, False, 0 or anything empty. What it raises would be a failure, by its retry policy.
    return Path(path).read_text() if Path(path).exists() else None


@step
def import_rows(text: str) -> int:
    return len(text.splitlines())


@step
def write_later(path: str) -> None:
    time.sleep(0.1)
    Path(path).write_text("one\ntwo\nthree\n")


@step
def moon_is_blue() -> bool:
    print(f"probe {context().probe}: not yet")
    return False


@workflow
def nightly(path: str) -> int:
    write_later.bind(path)
    moon_is_blue.wait_until("20ms", timeout="50ms").options(optional=True).bind()
    return import_rows.bind(arrived.wait_until("20ms", timeout="1h").bind(path))


async def main() -> None:
    async with connect("sqlite:///wait.db") as app:
        run = await app.start(nightly, "rows.txt")
        print("rows:", await run.result())
        try:
            await run.step("moon_is_blue")
        except StepFailedError as error:
            print(f"{error} (kind {error.kind!r})")


if __name__ == "__main__":
    asyncio.run(main())
