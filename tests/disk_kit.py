"""A file system that is small enough to be filled."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A folder that has a file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ballast = path / "ballast"

    def fill(self) -> None:
        """Leave no room."""
        with contextlib.suppress(OSError), self.ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def clear(self) -> None:
        """Make room again."""
        self.ballast.unlink()


@contextlib.contextmanager
def small_disk() -> Iterator[SmallDisk]:
    """One of 24 MiB, until the end; where it may not be mounted the test is skipped."""
    mount = shutil.which("mount")
    path = Path(tempfile.mkdtemp(prefix="treadle-small-", dir="/tmp"))
    path.chmod(0o755)
    command = [str(mount), "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
    if mount is None or subprocess.run(command, check=False, capture_output=True).returncode:
        path.rmdir()
        pytest.skip("this user may not mount a file system that is small enough to be filled")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", str(path)], check=True)
        path.rmdir()
