"""What a step writes for people: lines that are logged, and the last of them shown as the attempt's progress."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from treadle.authoring.secrets import masked

if TYPE_CHECKING:
    from treadle.runtime.step_context import RunningStep

# Records carry `run_id`, `step` and `attempt`; who wants the lines sets the level to INFO and adds a handler.
OUTPUT = logging.getLogger("treadle.output")


class LineOutput:
    """Text in lines, as `print(..., file=...)` writes it. Not a file: it has nothing to seek or to close."""

    __slots__ = ("_rest", "_step")

    def __init__(self, step: RunningStep) -> None:
        self._step = step
        # What was written since the last line.
        self._rest = ""

    def write(self, text: str, /) -> int:
        """Write text; each line counts when it is complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._say(line.removesuffix("\r"))
        return len(text)

    def flush(self) -> None:
        """Take what was written since the last line as a line."""
        if self._rest:
            rest, self._rest = self._rest, ""
            self._say(rest)

    def _say(self, line: str) -> None:
        step = self._step
        line = masked(line)
        OUTPUT.info("%s", line, extra={"run_id": step.run_id, "step": step.step, "attempt": step.attempt})
        if line and not step.cancelled:
            step.note(line)
