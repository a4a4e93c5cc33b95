"""Two versions of Treadle on one NATS store: they apply one log, which rises when the last older process has left.

The newer one is this one with a level more: an operation that this one cannot read, a rule of the state machine that
changes what lies in the state, and a field of snapshots.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.nats_kit import new_name
from tests.runtime.upgrade_kit import OLDER, TARGET, Edit, ask, life, make_newer
from tests.runtime.upgrade_target import LENGTH

from treadle import Queue, connect
from treadle.errors import SchemaVersionError
from treadle.store.nats.development import Node
from treadle.store.nats.wire import LEVEL

pytestmark = pytest.mark.nats
NEXT = LEVEL + 1
EDITS: tuple[Edit, ...] = (
    ("store/nats/wire.py", rf"\nLEVEL = {LEVEL}\n", f"\nLEVEL = {NEXT}\n"),
    (
        "store/nats/wire.py",
        r"\nclass BuryOp",
        '\nclass PulseOp(Operation, tag="pulse"):\n    waits: int | None = None\n\n\nclass BuryOp',
    ),
    ("store/nats/wire.py", r"    OpenOp\n", "    OpenOp\n    | PulseOp\n"),
    (
        "store/nats/machine.py",
        r"            wire.BuryOp: ",
        "            wire.PulseOp: self._pulse,\n            wire.BuryOp: ",
    ),
    ("store/nats/machine.py", r"        self.cleared = 0\n", "        self.cleared = 0\n        self.pulses = 0\n"),
    (
        "store/nats/machine.py",
        r"    def _bury\(.*\n",
        "    def _pulse(self, op: wire.PulseOp, number: int) -> Any:\n        self.pulses += number\n"
        "        return self.store.renew(op.session, op.waits)\n\n\\g<0>"
        f"        self.data.token += 1000 if self.level >= {NEXT} else 0\n",
    ),
    ("store/nats/snapshots.py", r"    lines: dict.*\n", "\\g<0>    pulses: int = 0\n"),
    ("store/nats/snapshots.py", r"        machine.level = .*\n", "\\g<0>        machine.pulses = self.pulses\n"),
    ("store/nats/snapshots.py", r"            lines=data.lines,\n", "\\g<0>            pulses=machine.pulses,\n"),
    (
        "store/nats/store.py",
        r"wire.RenewOp\(",
        f"(wire.PulseOp if self._rooms.log.machine.level >= {NEXT} else wire.RenewOp)(",
    ),
)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the newer version is imported from."""
    return make_newer(tmp_path_factory.mktemp("newer"), EDITS)


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of a version that ends by itself."""
    return subprocess.run(
        [sys.executable, str(TARGET), *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def last_words(process: subprocess.Popen[str], wanted: str) -> str:
    """The next line with these words among what a process logs."""
    assert process.stderr is not None
    return next(line for line in process.stderr if wanted in line)


async def test_two_versions_work_side_by_side_and_the_log_rises_when_the_older_one_has_left(
    newer: Path, nats_url: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    ids = ["a0", "a1", "a2", "b0", "b1", "c0"]

    with ExitStack() as lives:

        def begin(root: Path, role: str, *run_ids: str) -> subprocess.Popen[str]:
            return lives.enter_context(life(root, nats_url, gate, role, *run_ids))

        first = begin(OLDER, "worker", "a0", "a1")
        starter = begin(newer, "client", "b0", "b1")
        # An older process reads what a newer one has stored of the state.
        assert ask(starter, "snapshot") == "stored"
        last = begin(OLDER, "worker", "a2")
        decider = begin(newer, "client")
        for process in (first, starter):
            process.kill()
            process.wait()
        # All older ones are seen to be dead, though one of them has only stood still.
        last.send_signal(signal.SIGSTOP)
        assert ask(decider, f"rise {NEXT}") == "risen"
        decider.kill()
        decider.wait()
        last.send_signal(signal.SIGCONT)
        outgrown = last_words(last, "no new session yet")
        finisher = begin(newer, "worker", "c0")
        assert ask(finisher, "snapshot") == "stored"
        gate.touch()
        found = json.loads(ask(finisher, f"wait {' '.join(ids)}"))
        lives.callback(last.kill)
        last.kill()
        last.wait()
        state = ask(finisher, "end")

    refused = run(OLDER, nats_url, "worker")
    with pytest.raises(
        SchemaVersionError, match=f"risen to level {NEXT}, and this Treadle applies logs up to level {LEVEL}: upgrade"
    ):
        async with connect(nats_url, worker=False):
            pass
    steps = sorted(f"s{number}" for number in range(LENGTH))
    assert found == {run_id: ["succeeded", steps] for run_id in ids}
    assert "upgrade this program" in outgrown
    assert refused.returncode == 1
    assert "upgrade this program" in refused.stderr
    # Whoever begins with the log now comes to what those came to who saw it rise.
    assert state.split()[1] == str(NEXT)
    assert run(newer, nats_url, "look").stdout == state + "\n"


async def test_a_store_that_only_newer_processes_have_seen_is_on_their_level_from_its_first_sweep(
    newer: Path, nats_url: str, tmp_path: Path
) -> None:
    with life(newer, nats_url, tmp_path / "gate", "client") as process:
        risen = ask(process, f"rise {NEXT}")

    assert risen == "risen"
    with pytest.raises(SchemaVersionError, match="upgrade this program"):
        async with connect(nats_url, worker=False):
            pass


def test_what_an_older_process_makes_of_a_log_is_what_a_newer_one_makes_of_it(
    newer: Path, nats_url: str, tmp_path: Path
) -> None:
    with life(OLDER, nats_url, tmp_path / "gate", "worker") as older:
        with life(newer, nats_url, tmp_path / "gate", "client", "r"):
            # It dies while an older one lives, who goes on.
            ask(older, "snapshot")
        (tmp_path / "gate").touch()
        ask(older, "wait r")
        state = ask(older, "end")

    assert state.split()[1] == str(LEVEL)
    assert run(OLDER, nats_url, "look").stdout == state + "\n"
    assert run(newer, nats_url, "look").stdout == state + "\n"


def test_a_log_does_not_rise_while_processes_are_told_to_hold_it(newer: Path, nats_url: str, tmp_path: Path) -> None:
    held = f"{nats_url}?level={LEVEL}"
    gate = tmp_path / "gate"
    with life(newer, held, gate, "worker", "a") as first:
        second = run(newer, held, "look")
        gate.touch()
        ask(first, "wait a")
        state = ask(first, "end")

    # Back to the version before, after all processes were newer.
    with life(OLDER, nats_url, gate, "worker", "b") as older:
        found = json.loads(ask(older, "wait a b"))

    assert second.returncode == 0
    assert state.split()[1] == str(LEVEL)
    assert [status for status, _ in found.values()] == ["succeeded", "succeeded"]


def test_the_way_back_from_a_log_that_has_risen_is_a_copy_whose_log_is_held(
    newer: Path, nats_server: Node, nats_url: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    back = f"{nats_server.url}/{new_name()}"
    with life(newer, nats_url, gate, "worker", "a", "b") as process:
        assert ask(process, f"rise {NEXT}") == "risen"
        ask(process, "end")
    held = run(newer, f"{nats_url}?level={LEVEL}", "worker")

    copied = subprocess.run(
        [sys.executable, "-m", "treadle", "store", "copy", nats_url, f"{back}?level={LEVEL}"],
        env={**os.environ, "PYTHONPATH": str(newer)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert held.returncode == 1
    assert f"has risen above level {LEVEL}" in held.stderr
    assert copied.returncode == 0, copied.stderr
    gate.touch()
    with life(OLDER, back, gate, "worker", "c") as older:
        found = json.loads(ask(older, "wait a b c"))
        problems = json.loads(ask(older, "check"))
    steps = sorted(f"s{number}" for number in range(LENGTH))
    assert found == {run_id: ["succeeded", steps] for run_id in "abc"}
    assert problems == []


async def test_a_copy_tells_what_an_older_level_has_no_word_for(nats_url: str) -> None:
    queues = [Queue("q", length=5, on_full="wait")]
    async with (
        connect("memory://", worker=False, queues=queues) as source,
        connect(f"{nats_url}?level=1", worker=False) as target,
    ):
        report = await source.copy_to(target)

        assert report.differing == {"queue q": "has other limits"}
