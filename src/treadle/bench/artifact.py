"""`artifact`: a large file becomes an artifact, and is read back; measured against copying the file."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
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
    began, busy = time.perf_counter(), time.process_time()
    made = context().artifact("large.bin", Path(path)).result()
    _spent["write"] = time.perf_counter() - began
    _spent["busy"] = time.process_time() - busy
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
        source, copy, blobs = place / "source", place / "copy", place / "blobs"
        async with connect(store, registry=registry, artifacts=blobs) as app:
            before = 0
            copying = 0.0
            for number in range(ROUNDS):
                # Other content each time, or nothing would be written.
                _write_file(source, size, number)
                busy = time.process_time()
                copies.append(plain_copy(source, copy))
                copying = time.process_time() - busy
                before = before or _held()
                # Both find the memory that the other's file has left: to take new memory may cost a virtual machine
                # more than all the rest.
                copy.unlink()
                builder = PlanBuilder("artifact", registry=registry)
                builder.output(builder.step("load", load_file, builder.step("store", store_file, str(source))))
                run = await app.start(builder.build())
                assert await run.result() == size * MIB + 8
                writes.append(_spent["write"])
                reads.append(_spent["read"])
                shutil.rmtree(blobs)
            grown = (_held() - before) / 1024
    seconds = statistics.median(writes)
    copied = statistics.median(copies)
    notes = (
        f"MiB a second instead of steps; reading back {size / statistics.median(reads):.0f} MiB a second; "
        f"hashing alone {_hashed():.0f} MiB a second; {grown:.0f} MiB more memory than before; "
        f"processor time {_spent['busy']:.2f} s, that of copying {copying:.2f} s; "
        "both are synced once, at the end; ceiling: copying the file"
    )
    return seconds, size, [seconds / size], size / copied, notes


def _hashed() -> float:
    """MiB a second of the hash that names artifacts."""
    block, digest = bytes(MIB), hashlib.sha256()
    began = time.perf_counter()
    for _ in range(256):
        digest.update(block)
    return 256 / (time.perf_counter() - began)
