"""Failures as data: what of an exception is stored, and how much."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any, cast

import msgspec

from treadle.authoring import codec
from treadle.authoring.durations import seconds_of
from treadle.authoring.secrets import masked
from treadle.core.events import Failure
from treadle.errors import (
    DecodeError,
    EncodeError,
    NotCompensable,
    Permanent,
    Retryable,
    RetryLater,
    StepInterrupt,
    StoreFullError,
    StoreUnavailableError,
    TreadleError,
)

# Error text kept in events and rows; the full text is a payload of its own.
DEFAULT_CAP = 4096
_PACKAGE = str(Path(__file__).parent.parent)


# So many links of a chain of causes are kept.
CHAIN = 8


class Account(msgspec.Struct, frozen=True):
    """The whole account of a failure, as the handle `Failure.detail` leads to it.

    `text` is the error with its traceback, `details` what the step gave, `causes` the chain of errors behind it, the
    nearest first, as `Type: message`. `message` is there if a payload codec has hidden that of the failure itself.
    """

    text: str
    details: Any = None
    causes: list[str] = []
    message: str = ""


def account_of(stored: object) -> Account:
    """A stored account: a text alone, or an object."""
    if isinstance(stored, dict):
        known = cast("dict[str, Any]", stored)
        text, details, causes = known.get("text", ""), known.get("details"), known.get("causes", [])
        chain = [str(cause) for cause in causes]
        return Account(str(text), codec.convert(details, Any), chain, str(known.get("message", "")))
    return Account(str(stored))


class ErrorText:
    """How error texts are kept: `cap` bytes of the message in the event; 0 keeps only the code."""

    __slots__ = ("cap",)

    def __init__(self, cap: int = DEFAULT_CAP) -> None:
        self.cap = cap

    def cut(self, text: str) -> str:
        """The text within the cap, cut on a character, the cut shown by an ellipsis inside the cap."""
        data = masked(text).encode("utf-8", "backslashreplace")
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

    def encode(self, text: str, error: BaseException | None = None, message: str = "") -> str:
        """The JSON text of an account: the full text, with the details and the causes of the error if it has any.

        `message` is what is kept here alone.
        """
        if isinstance(error, ForeignError):
            # It was made there.
            return text if not message else _with_message(text, message)
        readable = _readable(masked(text))
        details = getattr(error, "details", None) if isinstance(error, TreadleError) else None
        causes = [] if error is None else [self.cut(line) for line in _chain(error)]
        if details is None and not causes and not message:
            return msgspec.json.encode(readable).decode()
        account: dict[str, Any] = {"text": readable, "causes": causes, **({"message": message} if message else {})}
        if details is not None:
            try:
                codec.encode(details)
                account["details"] = details
            except EncodeError as fault:
                # What cannot be stored must not hide the failure.
                account["details"] = f"{fault}; {_shown(details)}"
        return codec.encode(account)


def _with_message(account: str, message: str) -> str:
    """An account that was made elsewhere, with the message."""
    tree = codec.plain(account) if account else ""
    members = cast("dict[str, Any]", tree) if isinstance(tree, dict) else {"text": tree}
    return msgspec.json.encode({**members, "message": message}).decode()


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(value: object) -> str:
    try:
        return _readable(repr(value))
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the failure
        return "(it cannot be shown)"


def _chain(error: BaseException) -> list[str]:
    """The errors behind an error, the nearest first, as Python would show them."""
    lines: list[str] = []
    seen = {id(error)}
    while len(lines) < CHAIN:
        behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if behind is None or id(behind) in seen:
            break
        error = behind
        seen.add(id(error))
        lines.append(f"{type(error).__name__}: {message_of(error)}")
    return lines


def message_of(error: BaseException) -> str:
    """An error's message; never raises."""
    try:
        return _readable(str(error))
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the failure
        return "(its text cannot be shown)"


class ForeignError(Exception):
    """An error of a step in another process, as it was described there.

    `account` is the JSON text of its account, `steers` the name of the steering class that it was, `fatal` says that
    the process is gone with it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        type: str = "",
        account: str = "",
        steers: str = "",
        delay: float | str | None = None,
        *,
        fatal: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.type = type
        self.account = account
        self.steers = steers
        self.delay = delay
        self.fatal = fatal


def verdict_of(error: BaseException) -> tuple[str, float | str | None]:
    """What an error says of a further attempt ("": the policy decides, `retry`, `final`), and its delay."""
    kind = type(error)
    if isinstance(error, ForeignError):
        kind = _STEERING.get(error.steers, kind)
    if issubclass(kind, Permanent):
        return "final", None
    if issubclass(kind, RetryLater):
        return "retry", getattr(error, "delay", None)
    if issubclass(kind, (Retryable, StoreUnavailableError, StoreFullError)):
        # What the step does not store now it may store later.
        return "retry", None
    # The same value would fail again.
    return ("final" if issubclass(kind, (EncodeError, DecodeError, StepInterrupt, NotCompensable)) else ""), None


_STEERING: dict[str, type[BaseException]] = {
    kind.__name__: kind for kind in (Permanent, RetryLater, Retryable, EncodeError, DecodeError, NotCompensable)
}


def describe(error: BaseException, errors: ErrorText) -> tuple[Failure, str]:
    """The failure of an exception, and its full text with the traceback (of user code, not of the worker)."""
    if isinstance(error, ForeignError):
        return errors.failure(error.code, str(error), error.type), error.account
    code = error.code if isinstance(error, TreadleError) else "error"
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        code = "exit"
    name = type(error).__name__
    message = message_of(error) or name
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
