"""What an action's name stands for in a worker: the function, and how its arguments and its result are coded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import Any, cast

from treadle.authoring.context import step_context
from treadle.authoring.isolation import Isolation
from treadle.authoring.registry import Registry, StepDefinition
from treadle.authoring.secrets import with_secrets
from treadle.authoring.signatures import Parameter
from treadle.authoring.undo import RESULT, STATE, UndoDefinition
from treadle.core.commands import Task
from treadle.errors import DecodeError, UnregisteredStepError, UsageError
from treadle.runtime.middleware import Middleware, around
from treadle.runtime.step_context import RunningStep
from treadle.runtime.streams import collecting


def _nothing(_result: object) -> str:
    return "null"


def _decoded_or_none(decode: Callable[[str], Any], text: str) -> Any:
    return None if text == "null" else decode(text)


def _with_defaults(invoke: Callable[[dict[str, Any]], Any], defaults: dict[str, Any], values: dict[str, Any]) -> Any:
    return invoke({**defaults, **values})


class Callee:
    """What an action's name stands for here, looked up once."""

    decoders: dict[str, Callable[[str], Any]]
    encode: Callable[[Any], str]
    __slots__ = ("action", "adapters", "answers", "decoders", "encode", "invoke", "middleware", "picks", "read")

    def __init__(
        self, action: str, definition: StepDefinition, middleware: Sequence[Middleware], *, hides: bool = False
    ) -> None:
        self.action = action
        self.adapters = {name: parameter.adapter for name, parameter in definition.parameters.items()}
        self.decoders = {name: adapter.decode for name, adapter in self.adapters.items()}
        self.invoke = definition.invoke if definition.yields is None else collecting(definition, hides=hides)
        # Parameters that are read piece by piece, while the step runs.
        self.read: dict[str, Parameter] = {
            name: parameter for name, parameter in definition.parameters.items() if parameter.item is not None
        }
        # The question of a condition is no attempt of a step.
        self.middleware = middleware if definition.kind == "step" else ()
        # Of what is yielded, the text is there already.
        self.encode = definition.result.encode if definition.yields is None else str
        if definition.isolation is not None:
            self._be_isolated(definition, definition.isolation, hides=hides)
        elif self.middleware and definition.is_async:
            self.invoke = around(self.invoke, self.middleware)
        if hides:
            self.encode = partial(with_secrets, self.encode)
        # Whether the kernel reads what it answers: true or false.
        self.answers = definition.kind in ("predicate", "reconcile")
        # Whether it takes only some of the arguments it is offered.
        self.picks = isinstance(definition, UndoDefinition)
        if isinstance(definition, UndoDefinition):
            self._be_undo(definition)

    def _be_undo(self, definition: UndoDefinition) -> None:
        """Take the step's defaults for what its plan left out; what an undo returns is of no use to anybody.

        A step that did not succeed has no result, whatever type it is declared to have.
        """
        for name in (STATE, RESULT):
            if (decode := self.decoders.get(name)) is not None:
                self.decoders[name] = partial(_decoded_or_none, decode)
        if definition.kind == "undo":
            self.encode = _nothing
        if defaults := definition.defaults:
            self.invoke = partial(_with_defaults, definition.invoke, defaults)

    def _be_isolated(self, definition: StepDefinition, isolation: Isolation, *, hides: bool) -> None:
        """Call it in a process of its own, from the thread that the attempt has."""
        from treadle.runtime.processes import encoded_text, plain_text

        if self.read:
            raise UsageError(
                f"step {self.action!r} reads {', '.join(map(repr, self.read))} piece by piece, which it cannot in a"
                " process of its own; take a list, or leave process= out"
            )

        def invoke(values: dict[str, Any]) -> Any:
            own = cast("RunningStep", step_context.get())
            return own.processes.execute(isolation, definition, values)

        self.invoke = invoke
        self.encode = encoded_text if hides else plain_text

    def probing(self) -> Callee:
        """The same as a probe: while its value is not true, it has no text."""
        probe = copy(self)
        encode = self.encode

        def encode_true(value: Any) -> str:
            return encode(value) if value else ""

        probe.encode = encode_true
        return probe

    def unknown(self, name: str) -> DecodeError:
        """The error of an argument that the function does not take."""
        return DecodeError(f"step {self.action!r} has no parameter {name!r}; its signature has changed")


class Callees:
    """What the names of actions stand for, as the registry has them now."""

    __slots__ = ("_callers", "_hides", "_middleware", "_registry", "changes", "known")

    def __init__(self, registry: Registry, middleware: Sequence[Middleware], *, hides: bool = False) -> None:
        self._registry = registry
        # Whether what is stored is hidden, so that it may hold secrets.
        self._hides = hides
        self._middleware = middleware
        self.changes = Registry.changes
        # The steps called so far, by name; good until a name comes to stand for something else (`look`).
        self.known: dict[str, Callee] = {}
        # Workflows that steps call.
        self._callers: dict[str, Callee] = {}

    def __iter__(self) -> Iterator[Callee]:
        """All steps that were called so far."""
        return iter(self.known.values())

    def look(self) -> None:
        """Forget what names stood for if any stands for something else now, as in a notebook."""
        if self.changes != Registry.changes:
            self.known.clear()
            self._callers.clear()
            self.changes = Registry.changes

    def of(self, task: Task) -> Callee:
        """What a task calls.

        Raises:
            UnregisteredStepError: nothing has the name here.
        """
        self.look()
        call = task.call
        if call.child is not None:
            return self._caller(task.action)
        found = self.known.get(task.action)
        if found is None:
            found = self._made(task.action)
        return found if call.poll is None else found.probing()

    def _made(self, action: str) -> Callee:
        made = self.known[action] = Callee(action, self._registry.get(action), self._middleware, hides=self._hides)
        return made

    def _caller(self, action: str) -> Callee:
        found = self._callers.get(action)
        if found is None:
            definition = self._registry.workflow(action)
            if definition is None:
                raise UnregisteredStepError(
                    f"no workflow {action!r} is registered here; import the module that defines it"
                )
            found = self._callers[action] = Callee(action, definition, ())
        return found
