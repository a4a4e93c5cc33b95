"""Two versions of Treadle on a cluster of three NATS servers whose leader moves, and which are upgraded themselves."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.runtime.test_upgrades_nats import EDITS, NEXT, run
from tests.runtime.upgrade_kit import OLDER, ask, life, make_newer

from treadle.store.nats.development import Node, start_all, url_of

pytestmark = [pytest.mark.nats, pytest.mark.slow]
LENGTH = 100


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the newer version is imported from."""
    return make_newer(tmp_path_factory.mktemp("newer"), EDITS)


def restart(node: Node) -> None:
    """As when a server is upgraded."""
    node.stop()
    start_all([node])


def test_programs_and_servers_are_upgraded_one_by_one_while_the_leader_moves_and_dies(
    newer: Path, cluster: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPGRADE_LENGTH", str(LENGTH))
    monkeypatch.setenv("UPGRADE_LEASE", "8")
    url = url_of(cluster, "upgraded")
    gate = tmp_path / "gate"
    ids = ["a0", "a1", "b0", "b1", "c0", "d0"]

    with ExitStack() as lives:

        def begin(root: Path, role: str, *run_ids: str) -> subprocess.Popen[str]:
            return lives.enter_context(life(root, url, gate, role, *run_ids))

        first = begin(OLDER, "worker", "a0", "a1")
        starter = begin(newer, "client", "b0", "b1")
        assert ask(starter, "step down") == "stepped down"
        restart(cluster[0])
        # An older process reads what a newer one has stored of the state, from any node.
        assert ask(starter, "snapshot") == "stored"
        last = begin(OLDER, "worker", "c0")
        decider = begin(newer, "worker", "d0")
        restart(cluster[1])
        # From here on both versions execute and decide.
        gate.touch()
        for process in (first, starter):
            process.kill()
            process.wait()
        assert ask(decider, "check") == "[]"
        last.kill()
        last.wait()
        # The log rises under a new leader, in the middle of the work.
        leader = next(node for node in cluster if node.folder.name == ask(decider, "leader"))
        leader.kill()
        assert ask(decider, f"rise {NEXT}") == "risen"
        start_all([leader])
        restart(cluster[2])
        found = json.loads(ask(decider, f"wait {' '.join(ids)}"))
        problems = ask(decider, "check")
        state = ask(decider, "end")

    steps = sorted(f"s{number}" for number in range(LENGTH))
    assert found == {run_id: ["succeeded", steps] for run_id in ids}
    assert problems == "[]"
    assert state.split()[1] == str(NEXT)
    # Whoever begins with the log now comes to what those came to who saw all of it.
    assert run(newer, url, "look").stdout == state + "\n"
    refused = run(OLDER, url, "worker")
    assert refused.returncode == 1
    assert "upgrade this program" in refused.stderr
