"""Packages: what a domain brings to an application, registered together.

    crawler = Package("crawler", settings=CrawlSettings)

    @crawler.step(queue="http", retry=3)
    async def fetch(url: str) -> Page: ...

    @crawler.entrypoint
    def crawl(url: str) -> Report:
        describe_run(name=f"crawl of {url}", labels={"host": host_of(url)})
        return report.bind(fetch.bind(url))

    async with connect("sqlite:///crawl.db", packages=[crawler], package_settings={"crawler": {"depth": 3}}) as app:
        run = await app.start("crawler", "http://localhost:8000/")

Names in a package are stored as `package/function`, wherever its code lies, so its modules can be moved and renamed.
A package notes its mistakes and goes on; `check_packages` reports those of all packages together.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import Any, Final, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from treadle.authoring import codec, decorators
from treadle.authoring.bound import this_frame
from treadle.authoring.builder import raise_all
from treadle.authoring.context import step_context
from treadle.authoring.decorators import (
    AsyncStepFunction,
    PredicateDecorator,
    PredicateFunction,
    StepDecorator,
    SyncStepFunction,
    WorkflowDecorator,
    WorkflowFunction,
)
from treadle.authoring.isolation import Process
from treadle.authoring.options import OnFailure, Retry, StaticOptions
from treadle.authoring.registry import Defined, Definition, Registry
from treadle.errors import DecodeError, DefinitionError, EncodeError, StepNameError, UsageError

P = ParamSpec("P")
R = TypeVar("R")
_NONE: Final[Mapping[str, Any]] = {}
# The settings of the packages of the application that is planning a run.
planning_settings: Final[ContextVar[Mapping[str, Any]]] = ContextVar("treadle_package_settings", default=_NONE)


class ProjectionLike(Protocol):
    """What a package needs to know of a projection."""

    @property
    def name(self) -> str:
        """What steps call it."""
        ...


class EncodedSettings(str):
    """The JSON text of settings: in a step's own process their type is known only to the package."""

    __slots__ = ()


class Package:
    """A domain's entrypoints, steps, settings and projections.

    Args:
        name: what it is called in stores, so it must last; steps and entrypoints are stored as `name/function`.
        title: what people call it; the name of its runs that give themselves none.
        settings: a type with a default for every field (a dataclass, msgspec or pydantic class).
        projections: its read models.
    """

    def __init__(
        self,
        name: str,
        *,
        title: str = "",
        settings: type[Any] | None = None,
        projections: Iterable[ProjectionLike] = (),
    ) -> None:
        self.name: Final = name
        self.title: Final = title
        self.settings_type: Final = settings
        self.registry: Final = Registry()
        self.entrypoints: Final[dict[str, WorkflowFunction[..., Any]]] = {}
        self.projections: Final[list[ProjectionLike]] = []
        self._mistakes: list[DefinitionError] = []
        self._check_name(name)
        for projection in projections:
            self.add_projection(projection)

    def __repr__(self) -> str:
        return f"<package {self.name}: {', '.join(self.entrypoints) or 'no entrypoint'}>"

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable() or name != name.strip():
            self._wrong(f"{name!r} is no name for a package; use printable characters without a slash")

    def _wrong(self, text: str) -> None:
        self._mistakes.append(DefinitionError(f"package {self.name!r}: {text}"))

    # -- what it holds -----------------------------------------------------------------------------------------------

    @overload
    def step(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]  # the first fit is meant
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncStepFunction[P, R]: ...
    @overload
    def step(self, function: Callable[P, R], /) -> SyncStepFunction[P, R]: ...
    @overload
    def step(
        self,
        /,
        *,
        name: str | None = ...,
        aliases: Iterable[str] = ...,
        undo: Callable[..., Any] | None = ...,
        prepare: Callable[..., Any] | None = ...,
        reconcile: Callable[..., Any] | None = ...,
        resource: str = ...,
        process: Process | bool = ...,
        **options: Unpack[StaticOptions],
    ) -> StepDecorator: ...
    def step(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        **options: Any,
    ) -> Any:
        """Make a function a step of this package; as `treadle.step` does. Names and aliases are within it."""
        return self._decorator(decorators.step, function, name, aliases, options)

    @overload
    def predicate(
        self, function: Callable[P, Coroutine[Any, Any, bool]], /
    ) -> PredicateFunction[P, Coroutine[Any, Any, bool]]: ...
    @overload
    def predicate(self, function: Callable[P, bool], /) -> PredicateFunction[P, bool]: ...
    @overload
    def predicate(self, /, *, name: str | None = ..., aliases: Iterable[str] = ...) -> PredicateDecorator: ...
    def predicate(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
    ) -> Any:
        """Make a function a predicate of this package; see `treadle.predicate`."""
        return self._decorator(decorators.predicate, function, name, aliases, {})

    @overload
    def entrypoint(self, function: Callable[P, R], /) -> WorkflowFunction[P, R]: ...
    @overload
    def entrypoint(
        self,
        /,
        *,
        name: str | None = ...,
        aliases: Iterable[str] = ...,
        retry: Retry | int | None = ...,
        on_failure: OnFailure = ...,
        undo_limit: int | None = ...,
    ) -> WorkflowDecorator: ...
    def entrypoint(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        **options: Any,
    ) -> Any:
        """Make a function that plans steps an entrypoint: a workflow that the application starts by its name.

        It may give its run a name, labels and metadata by `describe_run`, before any step exists. `treadle.workflow`
        has the options.
        """
        return self._decorator(decorators.workflow, function, name, aliases, options)

    def add(self, *definitions: Defined) -> None:
        """Take in steps, predicates and workflows that were defined outside, under the names that they have."""
        for one in definitions:
            self._register(one)

    def add_projection(self, projection: ProjectionLike) -> None:
        """Take in a read model."""
        name = getattr(projection, "name", None)
        if not isinstance(name, str) or not name:
            self._wrong(f"{projection!r} has no name; a projection is an object with a name")
        elif any(known.name == name for known in self.projections):
            self._wrong(f"two projections are called {name!r}; give one of them another name")
        else:
            self.projections.append(projection)

    def _decorator(
        self,
        decorator: Any,
        function: Callable[..., Any] | None,
        given: str | None,
        aliases: Iterable[str],
        options: dict[str, Any],
    ) -> Any:
        own = [f"{self.name}/{alias}" for alias in ((aliases,) if isinstance(aliases, str) else aliases)]

        def decorate(function: Callable[..., Any], frame: FrameType | None = None) -> Any:
            name = f"{self.name}/{given or getattr(function, '__name__', '')}"
            # A second one of its name is noted, and works all the same until the package is checked.
            made = decorator(name=name, aliases=own, registry=Registry(), **options)(function, frame or this_frame(1))
            self._register(made)
            return made

        return decorate if function is None else decorate(function, this_frame(2))

    def _register(self, made: Defined) -> None:
        definition = made.definition
        try:
            self.registry.add(definition)
        except StepNameError as error:
            self._wrong(f"{str(error).removesuffix(': pass name=')}, or is a mistake")
            return
        if isinstance(made, WorkflowFunction):
            self.entrypoints[made.name.rpartition("/")[2]] = made

    # -- settings ----------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Any:
        """The settings that hold here: in a step or entrypoint those of its application, else the defaults.

        Raises:
            UsageError: the package has no settings.
        """
        if self.settings_type is None:
            raise UsageError(f"package {self.name!r} has no settings; declare a type for them: Package(settings=...)")
        own = step_context.get(None)
        known = own.settings if own is not None else planning_settings.get()
        found = known[self.name] if self.name in known else self.settings_type()
        return codec.decode(str(found), self.settings_type) if isinstance(found, EncodedSettings) else found

    def read_settings(self, given: Mapping[str, Any], mistakes: list[DefinitionError]) -> Any:
        """The settings of one application, from what it gives; what is wrong with that is added to the mistakes."""
        declared = self.settings_type
        if declared is None:
            if given:
                mistakes.append(DefinitionError(f"package {self.name!r} has no settings; {sorted(given)} are unknown"))
            return None
        known = _fields_of(declared)
        for name in sorted(given.keys() - known):
            there = ", ".join(sorted(known)) or "none"
            mistakes.append(DefinitionError(f"package {self.name!r} has no setting {name!r}; there are: {there}"))
        values: dict[str, Any] = {}
        for name in sorted(given.keys() & known):
            try:
                value = codec.plain(codec.encode(given[name]))
                # One by one, so that all that do not fit are told.
                codec.convert({name: value}, declared)
                values[name] = value
            except (DecodeError, EncodeError) as error:
                mistakes.append(DefinitionError(f"package {self.name!r}, setting {name!r}: {error}"))
        try:
            return codec.convert(values, declared)
        except DecodeError as error:
            mistakes.append(DefinitionError(f"package {self.name!r}: every setting needs a default ({error})"))
            return None

    # -- the check ---------------------------------------------------------------------------------------------------

    def mistakes(self) -> list[DefinitionError]:
        """All that is wrong with it."""
        found = list(self._mistakes)
        if not self.entrypoints:
            text = f"package {self.name!r} has no entrypoint; decorate a function that plans its steps: @....entrypoint"
            found.append(DefinitionError(text))
        return found


def check_packages(packages: Sequence[object], given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of an application's packages, by package.

    Raises:
        DefinitionError: a package, or a setting, is wrong; all mistakes of all packages at once.
    """
    mistakes: list[DefinitionError] = []
    known: dict[str, Package] = {}
    for one in packages:
        if not isinstance(one, Package):
            mistakes.append(DefinitionError(f"{one!r} is no Package; make one, or import the right name"))
            continue
        if known.setdefault(one.name, one) is not one:
            mistakes.append(DefinitionError(f"two packages are called {one.name!r}; leave one of them out"))
        mistakes += one.mistakes()
    for name in sorted(given.keys() - known.keys()):
        there = ", ".join(sorted(known)) or "none"
        mistakes.append(DefinitionError(f"settings for an unknown package {name!r}; there are: {there}"))
    settings = {name: package.read_settings(given.get(name, {}), mistakes) for name, package in known.items()}
    raise_all(mistakes, "the packages")
    return {name: values for name, values in settings.items() if values is not None}


def named_workflow(name: str, registry: Registry, packages: Sequence[Package]) -> WorkflowFunction[..., Any]:
    """The workflow of a stored name, or the one entrypoint of a package of this name.

    Raises:
        UsageError: there is none, or the package has several.
    """
    definition = registry.workflow(name)
    if definition is not None:
        return WorkflowFunction[..., Any](definition)
    package = next((one for one in packages if one.name == name), None)
    if package is None:
        there = ", ".join(sorted([*registry.workflows(), *(one.name for one in packages)])) or "none"
        raise UsageError(f"no workflow or package is called {name!r} here; there are: {there}")
    if len(package.entrypoints) > 1:
        there = ", ".join(repr(f"{name}/{entrypoint}") for entrypoint in package.entrypoints)
        raise UsageError(f"package {name!r} has several entrypoints; name one of them: {there}")
    return next(iter(package.entrypoints.values()))


def _fields_of(declared: Any) -> set[str]:
    """The names of a settings type's fields."""
    schema = codec.describe(declared)
    target = schema.get("$ref", "").rpartition("/")[2]
    found = schema.get("$defs", {}).get(target, schema)
    return set(cast("dict[str, Any]", found.get("properties", {})))


class JoinedRegistry(Registry):
    """A registry, and behind it those of packages; what is added goes to the first. A live view of all of them."""

    def __init__(self, own: Registry, packages: Sequence[Package]) -> None:
        super().__init__()
        self._own = own
        self._parts = [own, *(package.registry for package in packages)]

    def add(self, definition: Definition | Defined) -> None:
        """Add a definition to the first registry."""
        self._own.add(definition)

    def remove(self, definition: Definition) -> None:
        """Forget a definition in all of them."""
        for part in self._parts:
            part.remove(definition)

    def known(self, name: str) -> Definition | None:
        """What a name stands for in the first registry that knows it."""
        found = (part.known(name) for part in self._parts)
        return next((known for known in found if known is not None), None)

    def definitions(self) -> dict[str, Definition]:
        """All of them by name and alias."""
        return {name: known for part in reversed(self._parts) for name, known in part.definitions().items()}
