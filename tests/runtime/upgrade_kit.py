"""A newer version of Treadle for tests of upgrades: this one with changes, and processes of either."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import treadle

TARGET = Path(__file__).with_name("upgrade_target.py")
PACKAGE = Path(treadle.__file__).parent
OLDER = PACKAGE.parent

# A file of the package, a pattern in it, and what stands there in the newer version.
Edit = tuple[str, str, str]


def make_newer(root: Path, edits: Sequence[Edit]) -> Path:
    """Where the newer version is imported from."""
    shutil.copytree(PACKAGE, root / "treadle", ignore=shutil.ignore_patterns("__pycache__"))
    for name, pattern, text in edits:
        path = root / "treadle" / name
        edited, count = re.subn(pattern, text, path.read_text(encoding="utf-8"))
        assert count == 1, (name, pattern)
        path.write_text(edited, encoding="utf-8")
    return root


@contextmanager
def life(root: Path, url: str, gate: Path, role: str, *ids: str) -> Iterator[subprocess.Popen[str]]:
    """A process of the version in a folder, from when it has started its runs until it is killed."""
    process = subprocess.Popen(
        [sys.executable, str(TARGET), url, role, *ids],
        env={**os.environ, "PYTHONPATH": str(root), "UPGRADE_GATE": str(gate)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], command: str) -> str:
    """What a process answers to a command, in a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(command + "\n")
    process.stdin.flush()
    return process.stdout.readline().rstrip("\n")
