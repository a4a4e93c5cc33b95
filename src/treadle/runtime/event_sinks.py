"""Where events go: what a sink wants of them, and how a function of the program is one."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any, Final, get_args

from treadle.core.events import AnyEvent
from treadle.errors import UsageError
from treadle.runtime.cloud_events import SOURCE
from treadle.store.base import RunHead

# All that journals know.
EVENT_KINDS: Final = tuple(str(kind.__struct_config__.tag) for kind in get_args(AnyEvent))
# What most receivers want to know: how runs and their steps begin and end.
KINDS: Final = (
    "run_started",
    "run_settled",
    "step_succeeded",
    "step_failed",
    "step_skipped",
    "step_cancelled",
    "attempt_failed",
    "attempt_lost",
)


class DeliveryError(Exception):
    """An event was not delivered; `wait` is for how many seconds the receiver asks to be left alone."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class EventSink(ABC):
    """What gets events, and which: `kinds` of the journal (with `*`), of `workflows`, of runs with these `labels`.

    The `name` is that of its cursor: how far it has got is kept under it, in `cursor` (a sqlite:/// or postgresql://
    URL; by default in the store, or beside its file). A sink that is new begins now, or with all that the store holds
    if `history` says so.

    Raises:
        UsageError: there is no such kind, or no name.
    """

    def __init__(
        self,
        name: str,
        *,
        kinds: Sequence[str] = KINDS,
        workflows: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        source: str = SOURCE,
        history: bool = False,
        cursor: str = "",
    ) -> None:
        if not name:
            raise UsageError("an event sink needs a name: its cursor is kept under it")
        self.name = name
        self.workflows = frozenset(workflows)
        self.labels = dict(labels or {})
        self.source = source
        self.history = history
        self.cursor = cursor
        self.kinds = frozenset(kind for kind in EVENT_KINDS if any(fnmatchcase(kind, wanted) for wanted in kinds))
        unknown = [wanted for wanted in kinds if not any(fnmatchcase(kind, wanted) for kind in EVENT_KINDS)]
        if unknown:
            raise UsageError(f"there are no events of kind {', '.join(unknown)}; there are: {', '.join(EVENT_KINDS)}")

    def wants(self, head: RunHead) -> bool:
        """Whether it wants events of a run."""
        return (not self.workflows or head.workflow in self.workflows) and self.labels.items() <= head.labels.items()

    @abstractmethod
    async def deliver(self, event: Mapping[str, Any], now: float) -> None:
        """Deliver an event; whatever this raises, it is delivered again later."""

    def close(self) -> None:  # noqa: B027 - most sinks hold nothing
        """Let go of what it holds."""


class EventCallback(EventSink):
    """Events as calls of a function, `async def` or `def`, with each CloudEvent as a dict; a `def` runs in a thread.

    An event counts as delivered when the function returns. If it raises, it is called again later.
    """

    def __init__(
        self, function: Callable[[dict[str, Any]], Awaitable[None] | None], *, name: str, **wanted: Any
    ) -> None:
        super().__init__(name, **wanted)
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)
        self._thread: ThreadPoolExecutor | None = None

    async def deliver(self, event: Mapping[str, Any], now: float) -> None:
        """Call the function."""
        if self._is_async:
            called = self._function(dict(event))
            assert called is not None
            await called
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="treadle-events")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._function, dict(event))

    def close(self) -> None:
        """End its thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
