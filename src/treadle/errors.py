"""Every exception that Treadle raises, split by whose fault it is and what to do next.

    TreadleError
    ├─ DefinitionError        the workflow as written is wrong; raised before any run exists
    │   ├─ CycleError · DuplicateStepError · UnknownStepError · SlotError · StepNameError
    │   ├─ ExpressionSyntaxError(source, column)
    │   └─ DefinitionErrors   several of them at once
    ├─ RunError(run_id)       what a caller learns about one run
    │   ├─ RunNotFoundError · StepNotFoundError · ArtifactNotFoundError · RunExistsError · QueueFullError
    │   ├─ RunNotActiveError ─ RunNotRunningError · RunNotPausedError
    │   ├─ RunNotSettledError · NotApplicableError
    │   ├─ RunFailedError · RunCancelledError
    │   └─ StepFailedError · StepSkippedError(upstream) · StepCancelledError
    ├─ Permanent · Retryable · RetryLater · NotCompensable     raised BY step code to steer the engine
    ├─ StoreError             the store could not do it
    │   ├─ StoreUnavailableError · ConflictError · LeaseLostError · SchemaVersionError
    │   └─ StoreCorruptError · StoreReadOnlyError · StoreFullError · StaleVersionError
    ├─ ExpressionError        an expression has no value; `code` says why
    ├─ ProjectionError        a read model: a migration, a statement, a record that it does not take
    ├─ EncodeError · DecodeError · MissingPathError     a value that JSON or the declared type cannot hold, or lacks
    ├─ DocumentError          a plan or receipt that cannot be used as it is
    │   └─ ChecksumError · DocumentVersionError
    ├─ SigningError           a key or a signer that does not work
    ├─ MissingExtraError      what was asked needs a package that is not installed
    ├─ PluginError            an entry point that is not there, or cannot be loaded
    ├─ SecretError            a secret is not there under its name
    ├─ MissingKeyError        a stored value is encoded with a key that this process does not have
    ├─ UnregisteredStepError  this process has no function of that name
    └─ InternalError          a broken invariant of ours: the run is held, never guessed on

    StepInterrupt(BaseException)   cancellation or a lost lease reaching step code

Each class has one stable `code`; exit codes and JSON derive from it (`EXIT_CODES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TreadleError(Exception):
    """The root of the tree; catch it to catch all that Treadle raises on purpose."""

    code = "treadle_error"


class DefinitionError(TreadleError):
    """The workflow as written is wrong; mend the definition. No run was made."""

    code = "definition_invalid"


class CycleError(DefinitionError):
    """Steps wait for each other in a circle; `cycle` names them in order."""

    code = "cycle"

    def __init__(self, cycle: Sequence[str]) -> None:
        self.cycle = list(cycle)
        super().__init__(f"steps wait for each other: {' -> '.join(self.cycle)}; remove one of these edges")


class DuplicateStepError(DefinitionError):
    """Two different steps claim one id in one scope; give one of them another `id=`."""

    code = "duplicate_step"


class UnknownStepError(DefinitionError):
    """A Ref or an order names a step that the scope does not hold."""

    code = "unknown_step"


class SlotError(DefinitionError):
    """An argument does not fit the step's parameters; the message names the parameter."""

    code = "slot_invalid"


class StepNameError(DefinitionError):
    """A function cannot be named durably (a lambda or closure), or two share a name; pass `name=`."""

    code = "name_invalid"


def _pointed(source: str, offset: int) -> tuple[int, int, str]:
    """Line and column (from 1) of a place in a text, and the line with a caret below it, cut to what fits a screen."""
    start = source.rfind("\n", 0, offset) + 1
    end = source.find("\n", offset)
    line = source[start : len(source) if end < 0 else end].replace("\t", " ")
    at = offset - start
    first = max(0, at - 60)
    shown = line[first : first + 100]
    return source.count("\n", 0, offset) + 1, at + 1, f"    {shown}\n    {' ' * (at - first)}^"


def _placed(source: str, offset: int, message: str) -> str:
    line, column, shown = _pointed(source, offset)
    place = f"line {line}, column {column}" if "\n" in source else f"column {column}"
    return f"{place}: {message}\n{shown}"


class ExpressionSyntaxError(DefinitionError):
    """The text of an expression is wrong; the message points at every mistake.

    `mistakes` holds the place in `source` (from 0) and the description of each; `line` and `column`, from 1, are the
    first one's.
    """

    code = "expression_syntax"

    def __init__(self, source: str, mistakes: Sequence[tuple[int, str]]) -> None:
        self.source = source
        self.mistakes = list(mistakes)
        self.line, self.column, _ = _pointed(source, self.mistakes[0][0])
        places = "\n".join(_placed(source, offset, message) for offset, message in self.mistakes)
        super().__init__(f"the expression cannot be read\n{places}")


class DefinitionErrors(DefinitionError, ExceptionGroup[DefinitionError]):  # noqa: N818 - a group of errors
    """All mistakes of one definition, found in one pass; `exceptions` holds each."""

    code = "definition_invalid"

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.exceptions)

    def derive(self, excs: Sequence[DefinitionError], /) -> DefinitionErrors:  # type: ignore[override]  # narrower on purpose  # pyright: ignore[reportIncompatibleMethodOverride]  # the same
        """Keep this class when the group is split."""
        return DefinitionErrors(self.message, excs)


class RunError(TreadleError):
    """Something about one run; `run_id` names it."""

    code = "run_error"

    def __init__(self, message: str, *, run_id: str = "") -> None:
        self.run_id = run_id
        super().__init__(message)


class RunNotFoundError(RunError):
    """No run has this id in this store; see `treadle runs`."""

    code = "run_not_found"


class StepNotFoundError(RunError):
    """The run closed (or its plan is fixed) and holds no step of this id."""

    code = "step_not_found"


class ArtifactNotFoundError(RunError):
    """No step whose success counts has made an artifact of this id; see `treadle artifacts`."""

    code = "artifact_not_found"


class ProjectionError(TreadleError):
    """A projection cannot be used as it is written, or does not take what it is given; the message says which part."""

    code = "projection_invalid"


class RunExistsError(RunError):
    """A run of this id exists and does something else; choose another id or another `on_conflict`."""

    code = "run_exists"


class QueueFullError(RunError):
    """A queue in which the run would begin is as long as it may be; the run was not made, start it again later."""

    code = "queue_full"


class RunNotActiveError(RunError):
    """The operation came too late: the run is final."""

    code = "run_not_active"

    def __init__(self, message: str, *, run_id: str = "", status: str = "") -> None:
        self.status = status
        super().__init__(message, run_id=run_id)


class RunNotRunningError(RunNotActiveError):
    """Only a running run can be paused; `status` says what this one is."""

    code = "run_not_running"


class RunNotPausedError(RunNotActiveError):
    """Only a pausing or paused run can be resumed; `status` says what this one is."""

    code = "run_not_paused"


class RunNotSettledError(RunError):
    """What a run has done is undone when it has its outcome; wait for it, or cancel the run with `unwind`."""

    code = "run_not_settled"


class NotApplicableError(RunError):
    """A run or step is not such that this could be done: nothing to retry, say; the message tells what can be done."""

    code = "not_applicable"


class RunFailedError(RunError):
    """The run failed; `failures` maps the addresses of the failed steps to what went wrong, root cause first.

    `unwound` is `fully` or `partly` if what the run did has been undone, else empty.
    """

    code = "run_failed"

    def __init__(
        self, message: str, *, run_id: str = "", failures: dict[str, str] | None = None, unwound: str = ""
    ) -> None:
        self.failures = failures or {}
        self.unwound = unwound
        super().__init__(message, run_id=run_id)


class PhasesFailedError(TreadleError):
    """A Phases block that was executed in process failed; `kind` is a stable code.

    `partial` (a `PhasesResult`) is what had been done: rows, state, tickets of detached cells.
    """

    code = "phases_failed"

    def __init__(self, message: str, *, partial: object = None, kind: str = "") -> None:
        self.partial: Any = partial
        self.kind = kind
        super().__init__(message)


class TransitionError(PhasesFailedError):
    """What follows a row could not be decided: no rule held, or one could not be evaluated."""

    code = "transition_failed"


class StepLimitError(PhasesFailedError):
    """More rows than allowed would have been executed."""

    code = "step_limit"


class RunCancelledError(RunError):
    """The run was cancelled before it finished."""

    code = "run_cancelled"


class StepFailedError(RunError):
    """The awaited step failed for good; `kind` is its failure's stable code."""

    code = "step_failed"

    def __init__(self, message: str, *, run_id: str = "", step: str = "", kind: str = "") -> None:
        self.step = step
        self.kind = kind
        super().__init__(message, run_id=run_id)


class StepSkippedError(RunError):
    """The awaited step was skipped; `upstream` names the steps that caused it (itself for its own condition)."""

    code = "step_skipped"

    def __init__(self, message: str, *, run_id: str = "", step: str = "", upstream: Sequence[str] = ()) -> None:
        self.step = step
        self.upstream = list(upstream)
        super().__init__(message, run_id=run_id)


class StepCancelledError(RunError):
    """The awaited step was cancelled with its run."""

    code = "step_cancelled"

    def __init__(self, message: str, *, run_id: str = "", step: str = "") -> None:
        self.step = step
        super().__init__(message, run_id=run_id)


class StepBusyError(RunError):
    """A rewind would reopen a step that is being executed now; pause the run and wait, or cancel it."""

    code = "step_busy"


class Permanent(TreadleError):  # noqa: N818 - read at the raise site as a verdict, not as an error class
    """Raise it in a step: the step fails now, whatever its retry policy says.

    `code` labels the failure wherever it is shown, instead of the class's own; `details` is any JSON value that is
    kept with it. `Retryable` and `RetryLater` take both too.
    """

    code = "permanent"

    def __init__(self, message: str = "", *, code: str | None = None, details: object = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.details = details


class Retryable(TreadleError):  # noqa: N818 - as Permanent
    """Raise it in a step: try again by the step's back-off, by the default one where it has none."""

    code = "retryable"

    def __init__(self, message: str = "", *, code: str | None = None, details: object = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.details = details


class RetryLater(TreadleError):  # noqa: N818 - as Permanent
    """Raise it in a step: try again after `delay` seconds (or text such as "5s"), within the step's attempts."""

    code = "retry_later"

    def __init__(
        self, delay: float | str, message: str = "", *, code: str | None = None, details: object = None
    ) -> None:
        self.delay = delay
        super().__init__(message or f"again in {delay}")
        if code is not None:
            self.code = code
        self.details = details


class NotCompensable(TreadleError):  # noqa: N818 - as Permanent
    """Raise it in an undo: this cannot be taken back, and that is known. The unwinding goes on with the rest."""

    code = "not_compensable"


class StoreError(TreadleError):
    """The store could not do it."""

    code = "store_error"


class StoreUnavailableError(StoreError):
    """The store does not answer (locked, unreachable); nothing is known to have been written. Try again."""

    code = "store_unavailable"


class StoreReadOnlyError(StoreError):
    """The store cannot be written (file or directory permissions, a read-only mount)."""

    code = "store_read_only"


class StoreFullError(StoreError):
    """No room is left where the store lives; free some, then resume: nothing that was committed is lost."""

    code = "store_full"


class StoreCorruptError(StoreError):
    """The store's file is not ours or is damaged; restore a backup, or see `treadle doctor`."""

    code = "store_corrupt"


class StoreNotFoundError(StoreError):
    """A store that was to be read does not exist; check the URL."""

    code = "store_not_found"


class ConflictError(StoreError):
    """Someone else wrote first; what was decided is void. Reload and decide again."""

    code = "conflict"


class StaleVersionError(StoreError):
    """The caller acted on an older version of the run than the store holds; read it again."""

    code = "stale_version"


class LeaseLostError(StoreError):
    """This session was declared dead; stop and write nothing."""

    code = "lease_lost"


class SchemaVersionError(StoreError):
    """The store or a run was written by a newer Treadle; upgrade this one. Older files migrate on open."""

    code = "schema_version"


class ExpressionError(TreadleError):
    """An expression has no value; `code` says why, and the message points at the place in `source`.

    The codes: `expression_missing` (a path leads to nothing), `expression_type` (an operation does not fit its
    values), `expression_value` (it has no result for them), `expression_overflow` (a number is too large) and
    `expression_fuel` (too much work). `line` and `column` count from 1.
    """

    code = "expression_error"

    def __init__(self, message: str, *, code: str, source: str, offset: int = 0) -> None:
        self.code = code
        self.source = source
        self.line, self.column, _ = _pointed(source, offset)
        super().__init__(_placed(source, offset, message))


class EncodeError(TreadleError, TypeError):
    """A value cannot be stored as JSON; the message names its place and type."""

    code = "unserialisable"


class DecodeError(TreadleError, ValueError):
    """A stored value does not fit the declared type; the message names its place."""

    code = "type_mismatch"


class MissingPathError(TreadleError, LookupError):
    """A path leads to nothing in a stored value (`page["title"]` of a page without one); the message names both."""

    code = "path_missing"


class DocumentError(TreadleError):
    """A plan or receipt cannot be used as it is; the message has every mistake, one a line, with its place."""

    code = "document_invalid"

    def __init__(self, message: str, *, path: str = "") -> None:
        self.path = path
        super().__init__(message)


class ChecksumError(DocumentError):
    """The document was changed after it was written. Plan anew; a receipt cannot be mended."""

    code = "checksum_mismatch"


class DocumentVersionError(DocumentError):
    """The document was written by a newer Treadle in a format that this one does not know; upgrade."""

    code = "document_version"


class SigningError(TreadleError):
    """A key cannot be read, or its signer (gpg, a key service) refused; the message says which and why."""

    code = "signing_failed"


class MissingExtraError(TreadleError, ImportError):
    """What was asked needs a package that is not installed; the message names the extra that brings it."""

    code = "extra_missing"


class PluginError(TreadleError, ImportError):
    """An entry point is not installed, or cannot be loaded; the message names it and its distribution."""

    code = "plugin"


class SecretError(TreadleError):
    """There is no secret under a name; the message says which. Give it to the process that executes the step."""

    code = "secret_missing"


class MissingKeyError(TreadleError):
    """A stored value is encoded with a key that this process does not have; give it the key `key_id`.

    Nothing is lost: a step that needs the value waits for a worker that has the key.
    """

    code = "missing_key"

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        super().__init__(
            f"a stored value is encoded with key {key_id!r}, which is not here; add it to the keys of this process"
            " (connect's codec=, TREADLE_CODEC)"
        )


class UnregisteredStepError(TreadleError):
    """This process has no function of that name; start a worker with the module that defines it."""

    code = "unregistered_step"


class StoreUrlError(TreadleError, ValueError):
    """The URL names no store that this installation knows."""

    code = "store_url"


class UsageError(TreadleError, ValueError):
    """A call's arguments make no sense together; the message says what to do."""

    code = "usage"


class InternalError(TreadleError):
    """A broken invariant of Treadle's own; please report it. The run is held, never guessed on."""

    code = "internal"


class StepInterrupt(BaseException):
    """Cancellation or a lost lease reaching step code in a thread, at its next look at the context.

    A BaseException, so that `except Exception` in steps lets it pass.
    """

    code = "interrupted"


# 0 ok, 1 failed, 2 usage, 3 definition, 4 not found, 5 conflict, 6 refused, 9 cancelled, 10 skipped.
EXIT_CODES: dict[str, int] = {
    "run_failed": 1,
    "step_failed": 1,
    "phases_failed": 1,
    "transition_failed": 1,
    "step_limit": 1,
    "usage": 2,
    "store_url": 2,
    "extra_missing": 2,
    "plugin": 2,
    "missing_key": 2,
    "secret_missing": 2,
    "definition_invalid": 3,
    "cycle": 3,
    "duplicate_step": 3,
    "unknown_step": 3,
    "slot_invalid": 3,
    "name_invalid": 3,
    "expression_syntax": 3,
    "projection_invalid": 3,
    "document_invalid": 3,
    "document_version": 3,
    "unregistered_step": 3,
    "run_not_found": 4,
    "step_not_found": 4,
    "artifact_not_found": 4,
    "store_not_found": 4,
    "run_exists": 5,
    "run_not_active": 5,
    "run_not_running": 5,
    "run_not_paused": 5,
    "run_not_settled": 5,
    "not_applicable": 5,
    "step_busy": 5,
    "stale_version": 5,
    "conflict": 5,
    "checksum_mismatch": 6,
    "signing_failed": 6,
    "run_cancelled": 9,
    "step_cancelled": 9,
    "step_skipped": 10,
}


def exit_code(error: TreadleError) -> int:
    """The process exit code that tells this error's group; 1 for all that have no group of their own."""
    return EXIT_CODES.get(error.code, 1)
