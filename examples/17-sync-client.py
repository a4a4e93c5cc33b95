"""The same without async: `with` instead of `async with`, and every method blocks. Works in threads and notebooks."""

import tempfile
import time
from pathlib import Path

from treadle import BlockingApp, connect, step, workflow


@step
def read(path: str) -> str:
    # Sync steps run in threads, beside each other and beside the caller.
    time.sleep(0.05)
    return Path(path).read_text(encoding="utf-8")


@step
def count(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


@workflow
def words(paths: list[str]) -> int:
    return count.bind([read.bind(path) for path in paths])


def ask(app: BlockingApp, paths: list[str]) -> None:
    run = app.start(words, paths, id="words-1")
    print("result:", run.result(timeout=30))
    for version, _time, event in run.events():
        print(f"  {version}: {type(event).__name__}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / file) for file in ("a.txt", "b.txt")]
        for path in paths:
            Path(path).write_text("warp and weft", encoding="utf-8")
        with connect(f"sqlite:///{folder / 'runs.db'}") as app:
            ask(app, paths)
        # Another time, from another program: the result is in the file, and no step runs again.
        with connect(f"sqlite:///{folder / 'runs.db'}", worker=False) as app:
            print("read again:", app.run("words-1").result())


if __name__ == "__main__":
    main()
