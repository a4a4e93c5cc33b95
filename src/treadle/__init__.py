"""Treadle runs graphs of steps durably, inside any Python program.

A workflow is planned from decorated functions, started on a store given by its URL, and goes on after any crash:
every decision is committed before anything is done about it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from treadle.authoring.bound import FROM_DATA, lane_value, or_default, ref, scope, signal_value, state_value
from treadle.authoring.builder import PlanBuilder, Planned, describe_run, group
from treadle.authoring.cells import Cell, Compensation, Patch, Row
from treadle.authoring.context import Dependency, RunRecord, StepContext, context
from treadle.authoring.decorators import (
    PredicateFunction,
    StepFunction,
    WorkflowFunction,
    predicate,
    step,
    workflow,
)
from treadle.authoring.documents import dump_document, planned_of
from treadle.authoring.isolation import Process
from treadle.authoring.openings import Case, case, choose, gather, holds
from treadle.authoring.options import Poll, Retry
from treadle.authoring.packages import Package
from treadle.authoring.phases import LanePlan, Phase, Phases, Rule
from treadle.authoring.projections import Projection
from treadle.authoring.registry import Registry
from treadle.authoring.sleep import sleep
from treadle.authoring.triggers import Batch, Debounce
from treadle.authoring.undoable import Undoable
from treadle.connect import connect, lifespan
from treadle.core.documents import Document
from treadle.core.effects import Artifact
from treadle.core.graph_analysis import Analysis, Schedule
from treadle.errors import (
    ArtifactNotFoundError,
    ChecksumError,
    ConflictError,
    CycleError,
    DecodeError,
    DefinitionError,
    DefinitionErrors,
    DocumentError,
    DocumentVersionError,
    DuplicateStepError,
    EncodeError,
    ExpressionError,
    ExpressionSyntaxError,
    InternalError,
    LeaseLostError,
    MissingExtraError,
    MissingKeyError,
    MissingPathError,
    NotApplicableError,
    NotCompensable,
    Permanent,
    PhasesFailedError,
    PluginError,
    ProjectionError,
    QueueFullError,
    Retryable,
    RetryLater,
    RunCancelledError,
    RunError,
    RunExistsError,
    RunFailedError,
    RunNotActiveError,
    RunNotFoundError,
    RunNotPausedError,
    RunNotRunningError,
    RunNotSettledError,
    SchemaVersionError,
    SecretError,
    SigningError,
    SlotError,
    StaleVersionError,
    StepBusyError,
    StepCancelledError,
    StepFailedError,
    StepInterrupt,
    StepLimitError,
    StepNameError,
    StepNotFoundError,
    StepSkippedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreUrlError,
    TransitionError,
    TreadleError,
    UnknownStepError,
    UnregisteredStepError,
    UsageError,
)

if TYPE_CHECKING:
    from treadle.authoring.outcomes import LaneRun, PhasesCancelled, PhasesResult, RowRun, Ticket
    from treadle.authoring.secrets import Secret
    from treadle.ports import PayloadCodec
    from treadle.runtime.artifacts import ArtifactStream
    from treadle.runtime.blocking import BlockingApp, BlockingRun
    from treadle.runtime.client import App
    from treadle.runtime.collecting import Collected
    from treadle.runtime.cycles import Cycle
    from treadle.runtime.documents import keep_receipt, load_document, plan_document, save_document
    from treadle.runtime.encryption import Encryption
    from treadle.runtime.event_sinks import EventCallback, EventSink
    from treadle.runtime.hooks import Boundary, Hooks
    from treadle.runtime.middleware import Next, StepCall
    from treadle.runtime.outcomes import StepOutcome
    from treadle.runtime.queues import Queue
    from treadle.runtime.retention import Retention
    from treadle.runtime.run import Run
    from treadle.runtime.run_analysis import Forecast, RunAnalysis
    from treadle.runtime.signing.verification import Verification, sign_document, verify_document
    from treadle.runtime.webhooks import Webhook

__version__ = "0.1.0"

# What is imported when it is first asked for: programs that plan steps do not wait for what executes them, or asyncio.
_LATER = {
    "App": "runtime.client",
    "ArtifactStream": "runtime.artifacts",
    "BlockingApp": "runtime.blocking",
    "BlockingRun": "runtime.blocking",
    "Boundary": "runtime.hooks",
    "Collected": "runtime.collecting",
    "Cycle": "runtime.cycles",
    "Encryption": "runtime.encryption",
    "EventCallback": "runtime.event_sinks",
    "EventSink": "runtime.event_sinks",
    "Forecast": "runtime.run_analysis",
    "Hooks": "runtime.hooks",
    "LaneRun": "authoring.outcomes",
    "Next": "runtime.middleware",
    "PayloadCodec": "ports",
    "PhasesCancelled": "authoring.outcomes",
    "PhasesResult": "authoring.outcomes",
    "Queue": "runtime.queues",
    "Retention": "runtime.retention",
    "RowRun": "authoring.outcomes",
    "Run": "runtime.run",
    "RunAnalysis": "runtime.run_analysis",
    "Secret": "authoring.secrets",
    "StepCall": "runtime.middleware",
    "StepOutcome": "runtime.outcomes",
    "Ticket": "authoring.outcomes",
    "Verification": "runtime.signing.verification",
    "Webhook": "runtime.webhooks",
    "keep_receipt": "runtime.documents",
    "load_document": "runtime.documents",
    "plan_document": "runtime.documents",
    "save_document": "runtime.documents",
    "sign_document": "runtime.signing.verification",
    "verify_document": "runtime.signing.verification",
}


def __getattr__(name: str) -> Any:
    """A public name of the runtime, by its module."""
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module 'treadle' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"treadle.{module}"), name)
    return value


__all__ = [
    "Analysis",
    "App",
    "Artifact",
    "ArtifactNotFoundError",
    "ArtifactStream",
    "Batch",
    "BlockingApp",
    "BlockingRun",
    "Boundary",
    "Case",
    "Cell",
    "ChecksumError",
    "Collected",
    "Compensation",
    "ConflictError",
    "Cycle",
    "CycleError",
    "Debounce",
    "DecodeError",
    "DefinitionError",
    "DefinitionErrors",
    "Dependency",
    "Document",
    "DocumentError",
    "DocumentVersionError",
    "DuplicateStepError",
    "EncodeError",
    "Encryption",
    "EventCallback",
    "EventSink",
    "ExpressionError",
    "ExpressionSyntaxError",
    "FROM_DATA",
    "Forecast",
    "Hooks",
    "InternalError",
    "LanePlan",
    "LaneRun",
    "LeaseLostError",
    "MissingExtraError",
    "MissingKeyError",
    "MissingPathError",
    "Next",
    "NotApplicableError",
    "NotCompensable",
    "Package",
    "Patch",
    "PayloadCodec",
    "Permanent",
    "Phase",
    "Phases",
    "PhasesCancelled",
    "PhasesFailedError",
    "PhasesResult",
    "PlanBuilder",
    "Planned",
    "PluginError",
    "Poll",
    "PredicateFunction",
    "Process",
    "Projection",
    "ProjectionError",
    "Queue",
    "QueueFullError",
    "Registry",
    "Retention",
    "Retry",
    "RetryLater",
    "Retryable",
    "Row",
    "RowRun",
    "Rule",
    "Run",
    "RunAnalysis",
    "RunCancelledError",
    "RunError",
    "RunExistsError",
    "RunFailedError",
    "RunNotActiveError",
    "RunNotFoundError",
    "RunNotPausedError",
    "RunNotRunningError",
    "RunNotSettledError",
    "RunRecord",
    "Schedule",
    "SchemaVersionError",
    "Secret",
    "SecretError",
    "SigningError",
    "SlotError",
    "StaleVersionError",
    "StepBusyError",
    "StepCall",
    "StepCancelledError",
    "StepContext",
    "StepFailedError",
    "StepFunction",
    "StepInterrupt",
    "StepLimitError",
    "StepNameError",
    "StepNotFoundError",
    "StepOutcome",
    "StepSkippedError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreNotFoundError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "StoreUrlError",
    "Ticket",
    "TransitionError",
    "TreadleError",
    "Undoable",
    "UnknownStepError",
    "UnregisteredStepError",
    "UsageError",
    "Verification",
    "Webhook",
    "WorkflowFunction",
    "case",
    "choose",
    "connect",
    "context",
    "describe_run",
    "dump_document",
    "gather",
    "group",
    "holds",
    "keep_receipt",
    "lane_value",
    "lifespan",
    "load_document",
    "or_default",
    "plan_document",
    "planned_of",
    "predicate",
    "ref",
    "save_document",
    "scope",
    "sign_document",
    "signal_value",
    "sleep",
    "state_value",
    "step",
    "verify_document",
    "workflow",
]
