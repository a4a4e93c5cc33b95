"""Several processes on one file: any of them starts runs, executes steps, watches, and takes over from the others."""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from treadle import connect, context, step, workflow


@step
def part(number: int) -> str:
    time.sleep(0.02)
    return context().worker_id


@step
def share(workers: list[str]) -> dict[str, int]:
    return dict(Counter(workers))


@workflow
def shared(count: int) -> dict[str, int]:
    return share.bind([part.options(id=f"part {number}").bind(number) for number in range(count)])


def work(url: str, name: str) -> None:
    """A worker process: it executes steps of all runs of the file until it is told to stop."""
    with connect(url, worker_id=name, threads=4):
        sys.stdin.read()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder).resolve() / 'runs.db'}"
        # This process starts the run and waits; it executes nothing itself.
        with connect(url, worker=False) as app:
            run = app.start(shared, 100)
            workers = {
                name: subprocess.Popen([sys.executable, __file__, url, name], stdin=subprocess.PIPE)
                for name in ("left", "right")
            }
            while run.inspect().counts["succeeded"] < 30:
                time.sleep(0.01)
            # One of them dies without a word. Its attempts are lost, and made again by the other one.
            os.kill(workers["left"].pid, 9)
            print("result:", run.result(timeout=50))
            snapshot = run.inspect()
            print("lost with the killed process:", sum(view.lost for view in snapshot.steps) > 0)
            print("all steps:", snapshot.counts["succeeded"])
            for process in workers.values():
                process.communicate()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(*sys.argv[1:])
    else:
        main()
