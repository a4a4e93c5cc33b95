"""Steps in processes of their own: the worker's side. A process is used again by steps that ask for the same.

The attempt is one of a thread, which speaks with the process until the step has ended. An attempt that times out or is
interrupted kills the process: the thread is free at once, and no code of the step goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import msgspec

from treadle.authoring import codec
from treadle.authoring.context import step_context
from treadle.authoring.isolation import Isolation
from treadle.authoring.registry import Definition
from treadle.authoring.secrets import refuse_secret, with_secrets
from treadle.core.commands import Task
from treadle.core.plan import Fragment, encode_plan
from treadle.errors import UsageError
from treadle.ports import StepProcess
from treadle.runtime.failures import DEFAULT_CAP, ForeignError
from treadle.runtime.frames import Channel
from treadle.runtime.step_context import RunningStep

_LOGGERS = ("", "treadle.step", "treadle.output")
_MODULES = ("__main__", "__mp_main__")


class Encoded:
    """A result that is JSON text already."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def encoded_text(value: Encoded) -> str:
    """The text of a result."""
    return value.text


def plain_text(value: Encoded) -> str:
    """The text of a result that is stored in clear.

    Raises:
        EncodeError: it holds a secret.
    """
    refuse_secret(value.text, "the result")
    return value.text


class _Child:
    """One process of the system. See `ports.StepProcess`."""

    def __init__(self, isolation: Isolation) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this very interpreter, and a module of ours
            [
                sys.executable,
                "-m",
                "treadle.runtime.step_process",
                str(isolation.memory),
                msgspec.json.encode(sys.path).decode(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **dict(isolation.env)},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout, self._process.stdin)
        self.send = self._channel.send
        self.receive = self._channel.receive

    def kill(self) -> None:
        """End it at once; from any thread, and twice."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def ended(self) -> int:
        """Wait for its end; its exit code, or the signal's number below zero."""
        code = self._process.wait()
        self._channel.close()
        return code


class Processes:
    """The processes of one worker. From any thread."""

    def __init__(self, spawn: Callable[[Isolation], StepProcess] | None = None) -> None:
        self._spawn = spawn or _Child
        self._lock = threading.Lock()
        self._idle: dict[Isolation, list[StepProcess]] = {}
        # In the order in which they were taken, since they are hashed by address.
        self._busy: dict[StepProcess, None] = {}
        self._closed = False

    def _take(self, isolation: Isolation) -> tuple[StepProcess, bool]:
        """A process, and whether it has executed something before."""
        with self._lock:
            waiting = self._idle.get(isolation)
            child = waiting.pop() if waiting else self._spawn(isolation)
            self._busy[child] = None
            return child, waiting is not None

    def _give_back(self, child: StepProcess, isolation: Isolation) -> None:
        with self._lock:
            self._busy.pop(child, None)
            if not self._closed:
                self._idle.setdefault(isolation, []).append(child)
                return
        self._end(child)

    def _end(self, child: StepProcess) -> int:
        with self._lock:
            self._busy.pop(child, None)
        child.kill()
        return child.ended()

    def close(self) -> None:
        """End all of them; attempts that are under way are over."""
        with self._lock:
            self._closed = True
            idle = [child for waiting in self._idle.values() for child in waiting]
            self._idle.clear()
            busy = list(self._busy)
        for child in busy:
            # Whose thread waits for its end.
            child.kill()
        for child in idle:
            self._end(child)

    def execute(self, isolation: Isolation, definition: Definition, values: dict[str, Any]) -> Encoded:
        """Call the function of a step in a process; blocks.

        Raises:
            ForeignError: what the step has raised, or how its process ended.
        """
        own = cast("RunningStep", step_context.get())
        call = _call(own, definition, values)
        while True:
            child, is_used = self._take(isolation)
            own.on_cancel = child.kill
            try:
                if own.cancelled:
                    child.kill()
                with contextlib.suppress(OSError):
                    child.send("call", call)
                value = self._converse(child, own, is_used)
            except BaseException as error:
                own.on_cancel = None
                if isinstance(error, ForeignError) and not error.fatal and not own.cancelled:
                    self._give_back(child, isolation)
                else:
                    self._end(child)
                raise
            own.on_cancel = None
            if value is not None:
                self._give_back(child, isolation)
                return value
            self._end(child)

    def _converse(self, child: StepProcess, own: RunningStep, is_used: bool) -> Encoded | None:
        """Speak with a process until the step has ended; None if it had died before, while it had nothing to do."""
        while (message := child.receive()) is not None:
            match message:
                case ["began"]:
                    is_used = False
                case ["done", text, fragments, patch]:
                    own.fragments = msgspec.json.decode(fragments, type=tuple[Fragment, ...])
                    if patch is not None:
                        own.patch = {name: codec.decode(part) for name, part in patch.items()}
                    own.brings_more = bool(own.fragments) or patch is not None
                    return Encoded(text)
                case ["raised", told]:
                    raise ForeignError(**told)
                case _:
                    _hear(own, child, message)
        if is_used and not own.cancelled:
            return None
        raise _exit_error(child.ended())


def _hear(own: RunningStep, child: StepProcess, message: list[Any]) -> None:
    """What a process tells or asks while its step goes on."""
    match message:
        case ["progress", text]:
            own.relay(text)
        case ["log", name, level, text, extra]:
            logging.getLogger(name).log(level, "%s", text, extra=extra)
        case ["ask", number, question, details]:
            own.ask_for(question, details, partial(_answer, child, number))
        case ["add", number, fragments]:
            _add(own, child, number, msgspec.json.decode(fragments, type=list[Fragment]))
        case _:
            raise UsageError(f"the step's process sent what nobody understands: {message[0]!r}")


def _call(own: RunningStep, definition: Definition, values: dict[str, Any]) -> dict[str, Any]:
    function: Any = definition.function
    scope: dict[str, Any] = function.__globals__
    module: str = function.__module__
    file = str(scope.get("__file__") or "")
    if module in _MODULES:
        # By its file: the program that was started is not started again.
        module = definition.name.partition(":")[0] if ":" in definition.name else ""
        module = module or os.path.splitext(os.path.basename(file))[0]
    return {
        "module": module,
        "file": file,
        "name": function.__qualname__,
        "action": definition.name,
        "task": msgspec.json.encode(_plain_task(own)),
        "values": {name: with_secrets(codec.encode, value) for name, value in values.items()},
        "worker": own.worker_id,
        "started_at": own.started_at,
        "data": own.data_text,
        "settings": {name: codec.encode(value) for name, value in own.settings.items()},
        "levels": {name: logging.getLogger(name).getEffectiveLevel() for name in _LOGGERS},
        "error_bytes": DEFAULT_CAP,
    }


def _plain_task(own: RunningStep) -> Task:
    """The task as a process may have it, which has no keys."""
    call = own.task.call
    if not call.progress:
        return own.task
    return msgspec.structs.replace(own.task, call=msgspec.structs.replace(call, progress=own.earlier_progress))


def _answer(child: StepProcess, number: int, question: str, found: Any, error: BaseException | None) -> None:
    with contextlib.suppress(OSError):
        if error is not None:
            child.send("answer", number, str(error), type(error).__name__)
        elif question == "plan":
            child.send("answer", number, encode_plan(found).decode(), "")
        else:
            text = found if isinstance(found, str) else msgspec.json.encode(found).decode()
            child.send("answer", number, text, "")


def _add(own: RunningStep, child: StepProcess, number: int, fragments: list[Fragment]) -> None:
    try:
        own.add_fragments(fragments)
    except Exception as error:  # noqa: BLE001 - the step is told, and may raise it
        _answer(child, number, "add", None, error)
    else:
        _answer(child, number, "add", "", None)


def _exit_error(code: int) -> ForeignError:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return ForeignError("process_killed", f"the step's process was killed by {name}", fatal=True)
    return ForeignError("process_exited", f"the step's process ended with exit code {code}", fatal=True)
