"""Undo: a release that fails half way restores what it had changed, and one that succeeded can be undone later."""

import asyncio
from pathlib import Path
from tempfile import mkdtemp

from treadle import connect, step, workflow

site = Path(mkdtemp())


def look(name: str) -> str | None:
    file = site / name
    return file.read_text() if file.exists() else None


def restore(name: str, state: str | None) -> None:
    if state is None:
        (site / name).unlink(missing_ok=True)
    else:
        (site / name).write_text(state)
    print(f"  undone: {name}")


# What `look` returns is committed before the file is written, so a kill in the middle is undone too.
@step(prepare=look, undo=restore)
def put(name: str, text: str) -> str:
    (site / name).write_text(text)
    return name


@step
async def check(pages: list[str], healthy: bool) -> int:
    if not healthy:
        raise RuntimeError("the new site does not answer")
    return len(pages)


@workflow(on_failure="unwind")
def release(version: str, healthy: bool) -> int:
    style = put.options(id="style").bind("style.css", f"/* {version} */")
    pages = [put.options(id=name, after=style).bind(f"{name}.html", f"{name} {version}") for name in ("home", "about")]
    return check.bind(pages, healthy)


def shown() -> str:
    return ", ".join(f"{file.name}: {file.read_text()}" for file in sorted(site.iterdir())) or "empty"


async def main() -> None:
    async with connect("memory://") as app:
        (site / "home.html").write_text("home, by hand")

        run = await app.start(release, "v1", True, id="release-1")
        print(f"{await run.result()} pages are out. {shown()}")

        run = await app.start(release, "v2", False, id="release-2")
        row = await run.wait()
        print(f"{row.status}, unwound {row.unwound}. {shown()}")

        # The first release is long over; its undo stack is still there.
        run = app.run("release-1")
        print("undo stack:", [entry.address for entry in await run.undo_stack()])
        await run.undo()
        row = await run.wait()
        print(f"{row.status}, unwound {row.unwound}. {shown()}")


if __name__ == "__main__":
    asyncio.run(main())
