"""Failures as data: what of an exception is stored, and how much."""

from __future__ import annotations

import traceback
from pathlib import Path

import msgspec

from treadle.authoring.durations import seconds_of
from treadle.core.events import Failure
from treadle.errors import TreadleError

# Error text kept in events and rows; the full text is a payload of its own.
DEFAULT_CAP = 4096
_PACKAGE = str(Path(__file__).parent.parent)


class ErrorText:
    """How error texts are kept: `cap` bytes of the message in the event; 0 keeps only the code."""

    __slots__ = ("cap",)

    def __init__(self, cap: int = DEFAULT_CAP) -> None:
        self.cap = cap

    def cut(self, text: str) -> str:
        """The text within the cap, cut on a character, the cut shown by an ellipsis inside the cap."""
        data = text.encode("utf-8", "backslashreplace")
        if len(data) <= self.cap:
            return data.decode()
        mark = "…".encode()
        if self.cap < len(mark):
            return ""
        return data[: self.cap - len(mark)].decode("utf-8", "ignore") + "…"

    def failure(self, code: str, message: str, type_: str = "") -> Failure:
        """A failure with a capped message."""
        return Failure(code=code, message=self.cut(message), type=type_)

    def seconds(self, delay: float | str) -> float:
        """The seconds of a delay that step code gave."""
        return seconds_of(delay)

    def encode(self, text: str) -> str:
        """The JSON text of a full error text."""
        return msgspec.json.encode(text.encode("utf-8", "backslashreplace").decode()).decode()


def describe(error: BaseException, errors: ErrorText) -> tuple[Failure, str]:
    """The failure of an exception, and its full text with the traceback (of user code, not of the worker)."""
    code = error.code if isinstance(error, TreadleError) else "error"
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        code = "exit"
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the failure
        message = "(its text cannot be shown)"
    if not message:
        message = name
    try:
        full = "".join(traceback.format_exception(_below_worker(error)))
    except Exception:  # noqa: BLE001 - as above
        full = message
    return errors.failure(code, message, name), full


def _below_worker(error: BaseException) -> BaseException:
    """The error with Treadle's own frames taken off the top of its traceback."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        tb = tb.tb_next
    return error.with_traceback(tb) if tb is not None else error
