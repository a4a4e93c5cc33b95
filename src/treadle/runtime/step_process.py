"""The process of a step: `python -m treadle.runtime.step_process`, started and spoken to by `processes`.

It imports the module of the step by its name (the program that was started, by its file: nothing under
`if __name__ == "__main__"` runs), calls the function, and sends back what came of it. Its standard input and output are
the channel to the worker, so what the step prints goes to standard error. When the worker is gone, it ends.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import itertools
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol

import msgspec

from treadle import errors
from treadle.authoring import codec
from treadle.authoring.context import Dependency, RunRecord, step_context
from treadle.authoring.packages import EncodedSettings
from treadle.authoring.registry import Definition, import_file
from treadle.authoring.secrets import with_secrets
from treadle.core.commands import Task
from treadle.core.plan import Fragment, decode_plan
from treadle.errors import UsageError
from treadle.ports import Clock
from treadle.runtime.artifacts import ArtifactRoom
from treadle.runtime.clock import SystemClock
from treadle.runtime.failures import ErrorText, describe
from treadle.runtime.frames import Channel
from treadle.runtime.projections import ProjectionRoom
from treadle.runtime.step_context import RunningStep

_NO_ARTIFACTS = "a step in a process of its own has no artifacts; return the value, or let another step make them"


class ToWorker(Protocol):
    """The way to the worker."""

    def send(self, *message: Any) -> None:
        """Send a message."""
        ...


class Remote:
    """The worker, as the step's process sees it. See `step_context.Surroundings`."""

    def __init__(self, channel: ToWorker, clock: Clock) -> None:
        self.channel = channel
        self.name = ""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.package_settings: Mapping[str, Any] = {}
        self._clock = clock
        self._numbers = itertools.count(1)
        self._asked: dict[int, concurrent.futures.Future[Any]] = {}

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.now()

    def _send(self, kind: str, *details: Any) -> concurrent.futures.Future[Any]:
        number = next(self._numbers)
        future = self._asked[number] = concurrent.futures.Future[Any]()
        self.channel.send(kind, number, *details)
        return future

    def ask(self, question: str, task: Task, *details: str) -> concurrent.futures.Future[Any]:
        """Ask one of the store's questions."""
        raw = self._send("ask", question, list(details))
        read: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def answered(found: concurrent.futures.Future[Any]) -> None:
            try:
                read.set_result(_READ[question](found.result()))
            except Exception as error:  # noqa: BLE001 - whoever asked is told
                read.set_exception(error)

        raw.add_done_callback(answered)
        return read

    def answer(self, number: int, text: str, kind: str) -> None:
        """The worker has answered; `kind` names the error if it is one."""
        future = self._asked.pop(number)
        if not kind:
            future.set_result(text)
            return
        known = _ERRORS.get(kind)
        future.set_exception(RuntimeError(f"{kind}: {text}") if known is None else known(text))

    @property
    def artifacts(self) -> ArtifactRoom:
        """Artifacts need the worker's blobs."""
        raise UsageError(_NO_ARTIFACTS)

    @property
    def projections(self) -> ProjectionRoom:
        """Records and projections need the worker's connections."""
        raise UsageError(
            "a step in a process of its own cannot give records or use projections; return the data instead"
        )

    def to_loop(self, function: Callable[[], None]) -> None:
        """Here it can be done at once."""
        function()

    def send_progress(self, task: Task, text: str) -> None:
        """Report how far the step is."""
        self.channel.send("progress", text)

    def shown_progress(self, text: str) -> str:
        """The worker has decoded it."""
        return text

    def add_now(self, task: Task, fragments: list[Fragment]) -> Awaitable[None]:
        """Add steps at once; done when this returns."""
        self._send("add", msgspec.json.encode(fragments)).result()
        return _Done()


# What the worker's answer may be instead, of those that take one text.
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (errors.UsageError, errors.DefinitionError, errors.DuplicateStepError, errors.RunNotFoundError)
}


class _Done:
    def __await__(self) -> Any:
        return
        yield


def _dependency(text: str) -> tuple[Dependency, str]:
    found: tuple[Dependency, str] = msgspec.json.decode(text, type=tuple[Dependency, str])
    return found


_READ: dict[str, Callable[[str], Any]] = {
    "plan": lambda text: decode_plan(text.encode()),
    "record": lambda text: msgspec.json.decode(text, type=RunRecord),
    "dependency": _dependency,
    "raw_input": lambda text: text,
}


class _LogToWorker(logging.Handler):
    """Log records are the worker's to handle."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        extra = {name: getattr(record, name) for name in ("run_id", "step", "attempt") if hasattr(record, name)}
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        self._channel.send("log", record.name, record.levelno, text, extra)


class Call(msgspec.Struct):
    """One call of a step's function."""

    module: str
    file: str
    name: str
    action: str
    # The encoded task, and arguments and settings as JSON by name.
    task: bytes
    values: dict[str, str]
    worker: str
    started_at: float
    data: str
    settings: dict[str, str]
    levels: dict[str, int]
    error_bytes: int


def _definition(call: Call) -> Definition:
    module = sys.modules.get(call.module)
    if module is None or module is sys.modules["__main__"]:
        try:
            module = importlib.import_module(call.module)
        except ModuleNotFoundError:
            if not call.file:
                raise
            module = import_file(call.file)
    found: Any = module
    for part in call.name.split("."):
        found = getattr(found, part)
    definition = getattr(found, "definition", None)
    return definition if isinstance(definition, Definition) else Definition(found, name=call.action)


def execute(remote: Remote, call: Call) -> None:
    """Call the function, and tell the worker what came of it."""
    remote.name = call.worker
    remote.package_settings = {name: EncodedSettings(text) for name, text in call.settings.items()}
    task = msgspec.json.decode(call.task, type=Task)
    own = RunningStep(remote, task, call.started_at, True)
    own.data_text = call.data
    try:
        definition = _definition(call)
        values = {name: definition.parameters[name].adapter.decode(text) for name, text in call.values.items()}
        step_context.set(own)
        value = definition.invoke(values)
        if definition.is_async:
            value = asyncio.run(value)
        text = with_secrets(definition.result.encode, own.take(value))
        _flush(own)
        patch = (
            None if own.patch is None else {name: with_secrets(codec.encode, part) for name, part in own.patch.items()}
        )
        remote.channel.send("done", text, msgspec.json.encode(own.fragments), patch)
    except BaseException as error:  # noqa: BLE001 - whatever user code raises is told to the worker
        _flush(own)
        remote.channel.send("raised", described(error, call.error_bytes))


def _flush(own: RunningStep) -> None:
    """A line that was begun counts as one."""
    if own.lines is not None:
        own.lines.flush()


def described(error: BaseException, error_bytes: int) -> dict[str, Any]:
    """An exception as data; `processes` makes an error of it again."""
    texts = ErrorText(error_bytes)
    failure, full = describe(error, texts)
    return {
        "code": "memory" if isinstance(error, MemoryError) else failure.code,
        "message": failure.message,
        "type": failure.type,
        "account": texts.encode(full, error),
        "steers": next((kind.__name__ for kind in _STEERING if isinstance(error, kind)), ""),
        "delay": error.delay if isinstance(error, errors.RetryLater) else None,
    }


_STEERING: tuple[type[BaseException], ...] = (
    errors.Permanent,
    errors.RetryLater,
    errors.Retryable,
    errors.EncodeError,
    errors.DecodeError,
    errors.NotCompensable,
)


def _listen(channel: Channel, remote: Remote, calls: queue.SimpleQueue[Call]) -> NoReturn:
    """Take what the worker sends, until it is gone."""
    while (message := channel.receive()) is not None:
        if message[0] == "call":
            calls.put(msgspec.convert(message[1], Call))
        else:
            remote.answer(*message[1:])
    # Also in the middle of a step: nobody waits for it.
    os._exit(0)


def main() -> None:
    """Execute calls until the worker is gone."""
    channel = Channel(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    _limit_memory(int(sys.argv[1]))
    sys.path[:] = msgspec.json.decode(sys.argv[2], type=list[str])
    logging.getLogger().addHandler(_LogToWorker(channel))
    remote, calls = Remote(channel, SystemClock()), queue.SimpleQueue[Call]()
    threading.Thread(target=_listen, args=(channel, remote, calls), daemon=True).start()
    while True:
        call = calls.get()
        channel.send("began")
        for name, level in call.levels.items():
            logging.getLogger(name).setLevel(level)
        execute(remote, call)


def _limit_memory(size: int) -> None:
    if not size:
        return
    try:
        import resource
    except ImportError:
        # Windows cannot limit it so.
        return
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main()
