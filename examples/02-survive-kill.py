"""A process dies by kill -9 between two steps; the next one finishes the run and repeats nothing that was recorded.

The program starts itself twice on one file. The first process kills itself in the middle of the second step.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from treadle import connect, context, step, workflow


@step
def collect() -> list[int]:
    print(f"  collect runs in process {os.getpid()}", flush=True)
    return [1, 2, 3]


@step
def total(numbers: list[int]) -> int:
    print(f"  total runs in process {os.getpid()}, attempt {context().attempt}", flush=True)
    if context().attempt == 1:
        # As a power cut or the kernel would do it: nothing is cleaned up.
        os.kill(os.getpid(), 9)
    return sum(numbers)


@workflow
def sums() -> int:
    return total.bind(collect.bind())


def work(url: str) -> None:
    with connect(url) as app:
        # The id is the run's name: a run that exists is gone on with, not started again.
        print("  result:", app.start(sums, id="sums").result())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder).resolve() / 'runs.db'}"
        for attempt in ("first", "second"):
            print(f"{attempt} process:", flush=True)
            done = subprocess.run([sys.executable, __file__, url], check=False)
            print(f"  ended with {done.returncode}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1])
    else:
        main()
