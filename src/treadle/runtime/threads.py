"""A pool of threads that grows to its size and never raises."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class ThreadPool:
    """Runs functions in at most `size` daemon threads; a thread that is stuck does not keep the process alive."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], None]) -> None:
        """Run `function` soon; it must handle its own errors."""
        with self._lock:
            if self._idle == 0 and len(self._threads) < self.size:
                thread = threading.Thread(target=self._run, name=f"treadle-step-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            else:
                self._idle -= 1
        self._queue.put(function)

    def close(self, *, wait: bool) -> None:
        """Take no more; with `wait`, return when all threads have ended."""
        for _ in self._threads:
            self._queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _run(self) -> None:
        while (function := self._queue.get()) is not None:
            function()
            with self._lock:
                self._idle += 1
