"""`artifact`: a large file becomes an artifact, and is read back; measured against copying the file."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

from treadle.authoring.builder import PlanBuilder
from treadle.authoring.context import context
from treadle.authoring.decorators import step
from treadle.authoring.registry import Registry
from treadle.bench.ceilings import plain_copy
from treadle.connect import connect
from treadle.core.effects import Artifact

registry = Registry()
MIB = 1024 * 1024
ROUNDS = 3
# Seconds of the last write and read.
_spent: dict[str, float] = {}


@step(registry=registry, name="bench:store")
def store_file(path: str) -> Artifact:
    """Make an artifact of a file."""
    began = time.perf_counter()
    made = context().artifact("large.bin", Path(path)).result()
    _spent["write"] = time.perf_counter() - began
    return made


@step(registry=registry, name="bench:load")
def load_file(made: Artifact) -> int:
    """Read an artifact."""
    began = time.perf_counter()
    with context().open(made) as stream:
        size = sum(len(chunk) for chunk in stream)
    _spent["read"] = time.perf_counter() - began
    return size


def _write_file(path: Path, size: int, mark: int) -> None:
    block = os.urandom(MIB)
    with path.open("wb") as file:
        file.write(mark.to_bytes(8, "big"))
        for _ in range(size):
            file.write(block)
        # What is still to be written of it would be paid for by whoever syncs next.
        file.flush()
        os.fsync(file.fileno())


def _held() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def artifact(store: str, size: int) -> tuple[float, int, list[float], float, str]:
    """Store and read `size` MiB, with plain copies of the same file in between; the medians of three."""
    writes: list[float] = []
    reads: list[float] = []
    copies: list[float] = []
    with tempfile.TemporaryDirectory(prefix="treadle-bench-", dir=Path.cwd()) as folder:
        place = Path(folder)
        source = place / "source"
        async with connect(store, registry=registry, artifacts=place / "blobs") as app:
            before = 0
            for number in range(ROUNDS):
                # Other content each time, or nothing would be written.
                _write_file(source, size, number)
                copies.append(plain_copy(source, place / "copy"))
                before = before or _held()
                builder = PlanBuilder("artifact", registry=registry)
                builder.output(builder.step("load", load_file, builder.step("store", store_file, str(source))))
                run = await app.start(builder.build())
                assert await run.result() == size * MIB + 8
                writes.append(_spent["write"])
                reads.append(_spent["read"])
            grown = (_held() - before) / 1024
    seconds = statistics.median(writes)
    copied = statistics.median(copies)
    notes = (
        f"MiB a second instead of steps; reading back {size / statistics.median(reads):.0f} MiB a second; "
        f"{grown:.0f} MiB more memory than before; ceiling: copying the file, synced"
    )
    return seconds, size, [seconds / size], size / copied, notes
