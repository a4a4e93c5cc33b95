"""`recover`: a worker is killed half-way; how long until all runs are complete, and what was executed twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from treadle.bench.victim import LOG, plan
from treadle.connect import connect
from treadle.errors import UsageError


def recover(store: str, runs: int) -> tuple[float, int, list[float], float, str]:
    """Seconds from the kill until all is complete, steps, delays, the undisturbed rate as ceiling, notes."""
    if store.startswith("memory"):
        raise UsageError("recover needs a store that outlives a process; use sqlite:///file.db")
    steps = runs * 5
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        began = time.perf_counter()
        _victim(f"sqlite:///{folder}/undisturbed.db", runs, Path(folder) / "undisturbed.log").wait()
        undisturbed = time.perf_counter() - began
        began = time.perf_counter()
        victim = _victim(store, runs, log)
        while _lines(log) < steps // 2:
            if victim.poll() is not None:
                raise UsageError(f"the victim ended by itself with {victim.returncode}")
            time.sleep(0.001)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        killed = time.perf_counter()
        os.environ[LOG] = str(log)
        lost = asyncio.run(_finish(store, runs))
        ended = time.perf_counter()
        executed = Counter(log.read_text().split("\n")[:-1])
        twice = sum(count - 1 for count in executed.values())
        notes = (
            f"undisturbed {undisturbed:.3f} s; with the kill {ended - began:.3f} s in all, "
            f"{ended - killed:.3f} s after it; "
            f"{twice} steps executed twice, {lost} lost; ceiling: undisturbed"
        )
        return ended - began, steps, [ended - killed], steps / undisturbed, notes


def _victim(store: str, runs: int, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, LOG: str(log)}
    return subprocess.Popen([sys.executable, "-m", "treadle.bench.victim", store, str(runs)], env=environment)


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


async def _finish(store: str, runs: int) -> int:
    """Complete what the victim left (and start what it had not); returns how many runs have no right result."""
    async with connect(store) as app:
        started = await asyncio.gather(*[app.start(plan(f"r{n}"), id=f"r{n}") for n in range(runs)])
        results = await asyncio.gather(*[run.result() for run in started])
        return sum(result != 5 for result in results)
