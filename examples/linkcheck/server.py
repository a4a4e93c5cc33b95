"""The site: the standard library's documentation, served on loopback by the standard library's own pydoc."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from types import TracebackType


class PydocServer:
    """`python -m pydoc` in a process of its own, which ends with this one, however this one ends."""

    def __init__(self, port: int = 0) -> None:
        # pydoc offers modules of its working directory too; an empty one has none.
        self._folder = tempfile.TemporaryDirectory(prefix="linkcheck-")
        self.url = ""
        for _ in range(50):
            # -I -S: the standard library alone, so that the pages do not depend on what is installed.
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-I", "-S", "-W", "ignore", "-m", "pydoc", "-n", "127.0.0.1", "-p", str(port)],
                # pydoc reads commands: at the end of its input, so also at our death, it stops.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=self._folder.name,
            )
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if found := re.search(r"http://\S+/", line):
                    self.url = found[0].replace("localhost", "127.0.0.1")
                    return
            # The port is taken: the server of a killed process needs a moment to end.
            self._process.wait()
            time.sleep(0.1)
        self._folder.cleanup()
        raise SystemExit(f"pydoc cannot serve on port {port}: another program has it")

    def __enter__(self) -> PydocServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()
