"""`@step`, `@predicate` and `@workflow`: functions that can be planned, and still be called as what they are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, Final, Generic, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

import msgspec

from treadle.authoring.bound import UNSET, this_frame
from treadle.authoring.builder import PlanBuilder, Planned, ask, current_builder, plan_call, raise_all
from treadle.authoring.conflicts import OnConflict, checked_key, key_from, name_of, on_conflict_of
from treadle.authoring.drafts import literal
from treadle.authoring.durations import Duration
from treadle.authoring.isolation import Process, isolation_of
from treadle.authoring.options import (
    NOTHING,
    STATIC_NAMES,
    CallOptions,
    Chosen,
    OnFailure,
    Poll,
    Retry,
    StaticOptions,
    StepOptions,
    choose,
    on_failure_of,
    policy_of,
    undo_limit_of,
)
from treadle.authoring.registry import Definition, Registry, WorkflowDefinition, default_registry
from treadle.authoring.signatures import Signature
from treadle.authoring.streams import Results, does_yield
from treadle.authoring.triggers import Batch, Debounce, collecting_of
from treadle.authoring.undo import Declared, UndoDefinition
from treadle.core.plan import UNLIMITED, Child
from treadle.errors import DefinitionError, DefinitionErrors, SlotError, UsageError

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


class StepFunction(Generic[P, R]):
    """A function that can be planned as a step. `R` is the type of its value (for `async def`: the awaited one)."""

    def __init__(self, definition: Definition, chosen: Chosen, declared: Declared | None = None) -> None:
        _look_like(self, definition.function)
        self.definition: Final = definition
        self.chosen = chosen
        # The functions of its undo, if it has one.
        self.declared = declared

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Plan a step. Each argument is a value or a planned one; the result is a planned value of the function's type.

        Inside a workflow function the step joins its plan. Inside a running step it is free until `context().add`.
        """
        planned: R = plan_call(self.definition, self.chosen, args, kwargs, this_frame(1))
        return planned

    def options(self, **given: Unpack[StepOptions]) -> Self:
        """The same function with other options for the steps planned through it."""
        # Not by the constructor: steps that add steps do this for each of them.
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.chosen = choose(self.chosen, given)
        return made

    def wait_until(self, interval: Duration, *, timeout: Duration | None = None) -> Self:
        """The same function as a probe: it is called again after each `interval` until its value is true.

        The step's result is that value. Between two probes it holds no slot; what the probe raises goes by its
        retry policy; after `timeout` the step fails with the code `timeout`. Short for `.options(poll=Poll(...))`.
        """
        return self.options(poll=Poll(interval, timeout))

    @property
    def name(self) -> str:
        """The name under which the function is stored."""
        return self.definition.name

    @property
    def __treadle_result__(self) -> R:
        raise AttributeError

    def __repr__(self) -> str:
        return f"<step function {self.definition.name}>"


class SyncStepFunction(StepFunction[P, R]):
    """A step that is a plain function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself; nothing is planned or stored."""
        result: R = self.definition.function(*args, **kwargs)
        return result


class AsyncStepFunction(StepFunction[P, R]):
    """A step that is a coroutine function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the function itself; nothing is planned or stored."""
        result: Coroutine[Any, Any, R] = self.definition.function(*args, **kwargs)
        return result


class AsyncGeneratorStep(StepFunction[P, Results[R]]):
    """A step that is an async generator: its value is the list of what it yields."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        """Call the function itself; nothing is planned or stored."""
        result: AsyncIterator[R] = self.definition.function(*args, **kwargs)
        return result


class GeneratorStep(StepFunction[P, Results[R]]):
    """A step that is a generator: its value is the list of what it yields."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        """Call the function itself; nothing is planned or stored."""
        result: Iterator[R] = self.definition.function(*args, **kwargs)
        return result


class PredicateFunction(Generic[P, C]):
    """A function that decides whether a step runs: `when=is_big.bind(page)`. Calling it gives a `C`."""

    def __init__(self, definition: Definition) -> None:
        _look_like(self, definition.function)
        self.definition: Final = definition

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Call the function itself."""
        result: C = self.definition.function(*args, **kwargs)
        return result

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """The question with its arguments, for `when=`; asked once, when all else is ready."""
        condition: bool = ask(self.definition, args, kwargs, this_frame(1))
        return condition

    @property
    def name(self) -> str:
        """The name under which the function is stored."""
        return self.definition.name

    def __repr__(self) -> str:
        return f"<predicate {self.definition.name}>"


class WorkflowFunction(Generic[P, R]):
    """A function that plans steps with `.bind`. `R` is the type of the run's result."""

    def __init__(self, definition: WorkflowDefinition) -> None:
        _look_like(self, definition.function)
        self.definition: Final = definition
        self.chosen = Chosen({"child": Child(), "queue": UNLIMITED}, {})

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Plan a step that is a run of this workflow: a child of the run that holds the step.

        The planned value is the child's result; the step fails if the child fails. Cancel, pause and resume of the
        parent reach the child. `detached.bind` does not wait for it.
        """
        planned: R = plan_call(self.definition, self.chosen, args, kwargs, this_frame(1))
        return planned

    def options(self, **given: Unpack[CallOptions]) -> Self:
        """The same workflow with other options for the steps that call it."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.chosen = _choose_for_call(self.chosen, given)
        return made

    @property
    def detached(self) -> DetachedWorkflow[P]:
        """The workflow as a child that nobody waits for: `detached.bind(...)` gives the child's run id."""
        return DetachedWorkflow(self.definition, self.chosen)

    def plan(self, *args: P.args, **kwargs: P.kwargs) -> Planned:
        """Run the function and give the plan it made. Nothing is executed or stored.

        Raises:
            SlotError: an argument does not fit the function's parameters.
            DefinitionError: a mistake in the workflow; several are raised together as DefinitionErrors.
        """
        definition = self.definition
        values, changed = self._checked(args, kwargs)
        if changed:
            return plan_from(definition, values)
        return _plan(definition, values, lambda: definition.function(*args, **kwargs))

    def _checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The arguments by parameter, converted to what the annotations say, and whether any was."""
        signature = self.definition.signature
        complaints: list[str] = []
        values = signature.assign(args, kwargs, complaints)
        changed = False
        for name, value in values.items():
            parameter = signature.parameters[name]
            if type(value) in parameter.exact:
                continue
            # By way of JSON: a run gets what its input says, whoever gives it.
            count = len(complaints)
            text = literal(value, parameter, f"argument {name!r}", complaints)
            if len(complaints) == count and not parameter.unchecked:
                values[name] = parameter.adapter.decode(text)
                changed = True
        raise_all([SlotError(f"workflow {self.name!r}: {text}") for text in complaints], f"workflow {self.name!r}")
        return values, changed

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Inside another workflow: plan this one's steps as a part of it.

        Raises:
            UsageError: no workflow is being planned.
        """
        if current_builder() is None:
            raise UsageError(f"{self.name!r} is a workflow; start it, or look at its .plan(...)")
        result: R = self.definition.function(*args, **kwargs)
        return result

    @property
    def name(self) -> str:
        """The name under which the workflow is stored."""
        return self.definition.name

    def __repr__(self) -> str:
        return f"<workflow {self.definition.name}>"


def _choose_for_call(base: Chosen, given: Mapping[str, Any]) -> Chosen:
    if unknown := given.keys() - CallOptions.__annotations__.keys():
        known = ", ".join(sorted(CallOptions.__annotations__))
        raise TypeError(f"a call of a workflow has no option {min(unknown)!r}; there are {known}")
    own = {name: value for name, value in given.items() if name != "breakpoints"}
    made = choose(base, own)
    if "breakpoints" not in given:
        return made
    armed = given["breakpoints"]
    if not isinstance(armed, bool):
        raise TypeError(f"breakpoints={armed!r}: True arms what is armed in the run that calls, False nothing")
    called = msgspec.structs.replace(made.fields["child"], breakpoints=armed)
    return Chosen({**made.fields, "child": called}, made.links, made.id, made.into, made.mistakes)


class DetachedWorkflow(Generic[P]):
    """What `workflow.detached` gives."""

    def __init__(self, definition: WorkflowDefinition, chosen: Chosen) -> None:
        self.definition: Final = _Detached(definition)
        called = msgspec.structs.replace(chosen.fields["child"], detached=True)
        self.chosen = Chosen({**chosen.fields, "child": called}, chosen.links, chosen.id, chosen.into)

    def options(self, **given: Unpack[CallOptions]) -> Self:
        """The same with other options for the steps that start it."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.chosen = _choose_for_call(self.chosen, given)
        return made

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Plan a step that starts a run of the workflow and succeeds with its run id; the run goes its own way."""
        planned: str = plan_call(self.definition, self.chosen, args, kwargs, this_frame(1))
        return planned


class _Detached:
    """A workflow whose call gives a run id."""

    def __init__(self, definition: WorkflowDefinition) -> None:
        self.name: Final = definition.name
        self.short: Final = definition.short
        self._definition = definition

    @property
    def signature(self) -> Signature:
        """The workflow's parameters, and a text."""
        return self._definition.signature.returning(str)


def plan_from(definition: WorkflowDefinition, values: dict[str, Any]) -> Planned:
    """Plan a workflow with arguments by parameter; see `WorkflowFunction.plan`."""
    return _plan(definition, values, lambda: definition.invoke(values))


def _plan(definition: WorkflowDefinition, values: Mapping[str, Any], call: Callable[[], Any]) -> Planned:
    declared = definition.signature.result.annotation
    builder = PlanBuilder(
        definition.name,
        retry=definition.retry,
        result=UNSET if declared is Any else declared,
        on_failure=definition.on_failure or None,
        undo_limit=definition.undo_limit or None,
    )
    with builder:
        try:
            result = call()
        except DefinitionError as error:
            # What went wrong before may well be the cause; all of it is said.
            raise_all([*builder.errors, *_each(error)], f"workflow {definition.name!r}")
            raise
        builder.output(result)
    planned = builder.build()
    if definition.singleton is not None:
        key = key_from("singleton", definition.singleton, definition.function, values)
        planned.singleton = name_of("singleton", definition.name, key)
    planned.on_conflict = definition.on_conflict
    return planned


# -- the decorators ----------------------------------------------------------------------------------------------


class StepDecorator(Protocol):
    """What `step(...)` with options gives."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]  # the first fit is meant
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncStepFunction[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first fit is meant
        self, function: Callable[P, AsyncIterator[R]], /
    ) -> AsyncGeneratorStep[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first fit is meant
        self, function: Callable[P, Iterator[R]], /
    ) -> GeneratorStep[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncStepFunction[P, R]: ...


class PredicateDecorator(Protocol):
    """What `predicate(...)` with options gives."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, bool]], /
    ) -> PredicateFunction[P, Coroutine[Any, Any, bool]]: ...
    @overload
    def __call__(self, function: Callable[P, bool], /) -> PredicateFunction[P, bool]: ...


class WorkflowDecorator(Protocol):
    """What `workflow(...)` with options gives."""

    def __call__(self, function: Callable[P, R], /) -> WorkflowFunction[P, R]:
        """Make the function a workflow."""
        ...


@overload
def step(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]  # the first fit is meant
    function: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncStepFunction[P, R]: ...
@overload
def step(  # type: ignore[overload-overlap]  # the first fit is meant
    function: Callable[P, AsyncIterator[R]], /
) -> AsyncGeneratorStep[P, R]: ...
@overload
def step(  # type: ignore[overload-overlap]  # the first fit is meant
    function: Callable[P, Iterator[R]], /
) -> GeneratorStep[P, R]: ...
@overload
def step(function: Callable[P, R], /) -> SyncStepFunction[P, R]: ...
@overload
def step(
    *,
    name: str | None = ...,
    aliases: Iterable[str] = ...,
    registry: Registry | None = ...,
    undo: Callable[..., Any] | None = ...,
    prepare: Callable[..., Any] | None = ...,
    reconcile: Callable[..., Any] | None = ...,
    resource: str = ...,
    process: Process | bool = ...,
    **options: Unpack[StaticOptions],
) -> StepDecorator: ...
def step(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    registry: Registry | None = None,
    undo: Callable[..., Any] | None = None,
    prepare: Callable[..., Any] | None = None,
    reconcile: Callable[..., Any] | None = None,
    resource: str = "",
    process: Process | bool = False,
    **options: Unpack[StaticOptions],
) -> Any:
    """Make a function a step. It stays callable as what it is; `.bind` plans it, `.options` changes how it runs.

    Args:
        function: a `def` or `async def` at the top of a module.
        name: what it is stored as, instead of `module:qualname`.
        aliases: former names, so that runs made before a renaming still find it.
        registry: where to register it, instead of the process's own registry.
        undo: takes back what the step did, by the step's arguments, `state` and `result`. It must stand a step that
            acted in part or not at all, and being called twice.
        prepare: looks and backs up before the step acts; what it returns is the undo state, committed before the
            step starts.
        reconcile: asked before the undo whether that is safe; False leaves things as they are.
        resource: undos of one resource are made one at a time.
        process: execute it in a process of its own, which can be killed; `Process` limits its memory and sets its
            environment.
        options: what holds for all steps planned through it; see `StaticOptions`.

    Raises:
        StepNameError: it has no durable name, or another function has that name.
        DefinitionError: an option, or a function, makes no sense.
    """
    chosen = _static(options)
    names = _names(aliases)
    declared = Declared(undo, prepare, reconcile, resource)

    def decorate(function: Callable[..., Any], frame: FrameType | None = None) -> Any:
        _refuse_twice(function)
        namespace = _namespace(function, frame or this_frame(1))
        kept, helpers = chosen, list[UndoDefinition]()
        if declared and inspect.isroutine(function):
            stored, helpers = declared.definitions(function, name, names, namespace)
            kept = choose(chosen, {})
            kept.fields["undo"] = stored
        definition = Definition(function, name=name, aliases=names, options=kept, namespace=namespace)
        definition.helpers = tuple(helpers)
        definition.isolation = isolation_of(process, function)
        if definition.isolation is not None and does_yield(function):
            raise DefinitionError(f"{function.__qualname__!r} yields, which a process of its own cannot; return a list")
        (registry or default_registry).add(definition)
        if does_yield(function):
            kind = AsyncGeneratorStep[..., Any] if definition.is_async else GeneratorStep[..., Any]
            return kind(definition, kept)
        undoing = declared if helpers else None
        if definition.is_async:
            return AsyncStepFunction[..., Any](definition, kept, undoing)
        return SyncStepFunction[..., Any](definition, kept, undoing)

    return decorate if function is None else decorate(function, this_frame(1))


@overload
def predicate(
    function: Callable[P, Coroutine[Any, Any, bool]], /
) -> PredicateFunction[P, Coroutine[Any, Any, bool]]: ...
@overload
def predicate(function: Callable[P, bool], /) -> PredicateFunction[P, bool]: ...
@overload
def predicate(
    *, name: str | None = ..., aliases: Iterable[str] = ..., registry: Registry | None = ...
) -> PredicateDecorator: ...
def predicate(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    registry: Registry | None = None,
) -> Any:
    """Make a function that returns a bool usable in `when=`. Its arguments may be planned values.

    Raises:
        StepNameError: it has no durable name, or another function has that name.
    """
    names = _names(aliases)

    def decorate(function: Callable[..., Any], frame: FrameType | None = None) -> Any:
        _refuse_twice(function)
        namespace = _namespace(function, frame or this_frame(1))
        definition = Definition(function, kind="predicate", name=name, aliases=names, namespace=namespace)
        (registry or default_registry).add(definition)
        return PredicateFunction[..., Any](definition)

    return decorate if function is None else decorate(function, this_frame(1))


@overload
def workflow(function: Callable[P, R], /) -> WorkflowFunction[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = ...,
    aliases: Iterable[str] = ...,
    retry: Retry | int | None = ...,
    on_failure: OnFailure | None = ...,
    undo_limit: int | None = ...,
    singleton: str | bool = ...,
    on_conflict: OnConflict | None = ...,
    triggers: Debounce | Batch | None = ...,
    registry: Registry | None = ...,
) -> WorkflowDecorator: ...
def workflow(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    retry: Retry | int | None = None,
    on_failure: OnFailure | None = None,
    undo_limit: int | None = None,
    singleton: str | bool = False,
    on_conflict: OnConflict | None = None,
    triggers: Debounce | Batch | None = None,
    registry: Registry | None = None,
) -> Any:
    """Make a function that plans steps a workflow. `retry` is the policy of steps that have none of their own.

    With `on_failure="unwind"` a run that fails undoes what its steps have done, with `"stop"` nothing is undone.
    Without it a Phases block that fails is unwound, and all else stands. `undo_limit` is how many undos may run
    together: 1 undoes strictly in the reverse order of completion, None has no limit of its own.

    With `singleton=True` one run of it at a time goes on, in all processes on the store; with a parameter's name, or an
    expression over the parameters, one for each value of that. `on_conflict` is what a start does that says nothing
    itself (see `App.start`). `triggers` says how `App.trigger` makes one run of many triggers.

    Raises:
        DefinitionError: it is an `async def`; in this version a workflow is a `def` that plans steps.
        StepNameError: it has no durable name, or another function has that name.
    """
    policy = policy_of(retry)
    limit = undo_limit_of(undo_limit)
    failing = on_failure_of(on_failure)
    conflict = on_conflict_of(on_conflict)
    names = _names(aliases)

    def decorate(function: Callable[..., Any], frame: FrameType | None = None) -> Any:
        _refuse_twice(function)
        if inspect.iscoroutinefunction(function):
            raise DefinitionError(
                f"{function.__qualname__!r} is async: durable functions are not in this version; write a def "
                "that plans its steps with .bind, or make the whole function one @step"
            )
        namespace = _namespace(function, frame or this_frame(1))
        definition = WorkflowDefinition(
            function,
            retry=policy,
            on_failure=failing,
            undo_limit=limit,
            singleton=checked_key("singleton", singleton, function),
            on_conflict=conflict,
            triggers=collecting_of(triggers, function),
            name=name,
            aliases=names,
            namespace=namespace,
        )
        (registry or default_registry).add(definition)
        return WorkflowFunction[..., Any](definition)

    return decorate if function is None else decorate(function, this_frame(1))


def _look_like(wrapper: Any, function: Callable[..., Any]) -> None:
    """Give an object the name, docstring and signature of the function it stands for."""
    functools.update_wrapper(wrapper, function)


def _each(error: DefinitionError) -> list[DefinitionError]:
    if not isinstance(error, DefinitionErrors):
        return [error]
    return [one for inner in error.exceptions if isinstance(inner, DefinitionError) for one in _each(inner)]


def _static(options: Mapping[str, Any]) -> Chosen:
    if not options:
        return NOTHING
    if unknown := options.keys() - STATIC_NAMES:
        raise TypeError(f"@step has no option {min(unknown)!r}; there are {', '.join(sorted(STATIC_NAMES))}")
    chosen = choose(NOTHING, options)
    raise_all([DefinitionError(f"@step: {text}") for text in chosen.mistakes], "@step")
    return chosen


def _names(aliases: Iterable[str]) -> tuple[str, ...]:
    # A single text would be taken for one alias per letter.
    return (aliases,) if isinstance(aliases, str) else tuple(aliases)


def _refuse_twice(function: object) -> None:
    if isinstance(function, StepFunction | PredicateFunction | WorkflowFunction):
        raise DefinitionError(f"{function!r} is decorated already; decorate a plain function once")


def _namespace(function: Callable[..., Any], frame: FrameType) -> dict[str, Any] | None:
    """The names around a function that is defined inside another: its annotations may use them."""
    return dict(frame.f_locals) if "<locals>" in getattr(function, "__qualname__", "") else None
