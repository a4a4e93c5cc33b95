"""The builder of plans: what `.bind` fills inside a workflow function, and what programs that generate graphs use.

    builder = PlanBuilder("totals")
    pages = [builder.step(f"fetch {url}", fetch, url) for url in urls]
    builder.output(builder.step("total", total, pages, retry=3))
    planned = builder.build()

A builder notes mistakes and goes on, so that `build` reports all of them together, each with its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import FrameType
from typing import Any, Final, Protocol, TypeGuard, TypeVar, Unpack, cast, overload

import msgspec

from treadle.authoring.bound import UNSET, Action, Bound, Condition, Named, Node, Signalled, this_frame
from treadle.authoring.codec import Adapter, adapter
from treadle.authoring.conflicts import OnConflict
from treadle.authoring.drafts import draft, draft_arguments
from treadle.authoring.options import (
    NOTHING,
    Chosen,
    OnFailure,
    Retry,
    StepOptions,
    check_key,
    choose,
    on_failure_of,
    policy_of,
    undo_limit_of,
)
from treadle.authoring.registry import Registry, default_registry
from treadle.authoring.scopes import GroupPlace, Scope, owner_text, referred
from treadle.authoring.signatures import ANYTHING, Signature, Target
from treadle.core.addresses import child, encode_id
from treadle.core.analysis import check_plan
from treadle.core.graph_analysis import Analysis
from treadle.core.plan import UNLIMITED, Block, Child, Group, Plan, RetryPolicy, Slot
from treadle.errors import DefinitionError, DefinitionErrors, SlotError, UsageError

R_co = TypeVar("R_co", covariant=True)


class Usable(Protocol[R_co]):
    """A step function as the builder sees it; `R_co` is the type of its result."""

    @property
    def definition(self) -> Action:
        """What it calls."""
        ...

    @property
    def chosen(self) -> Chosen:
        """Its options."""
        ...

    @property
    def __treadle_result__(self) -> R_co:
        """The type of its result, for checkers only."""
        ...


class ForeignAction:
    """An action that is known by its name only, so that its arguments are not checked here."""

    __slots__ = ("name", "short", "signature")

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.short: Final = name.rsplit(":", 1)[-1].rsplit(".", 1)[-1] or name
        self.signature: Signature | None = None


class About(msgspec.Struct):
    """What a run is called and labelled; `labels` are few and found by index, `metadata` is any text by name."""

    name: str = ""
    labels: dict[str, str] = {}
    metadata: dict[str, str] = {}


class Planned:
    """A workflow's plan, ready to run: the graph, its constants (JSON texts, by number), the result's adapter.

    `about` is what `describe_run` said while it was planned; `singleton` the name that its run is to hold ("": none),
    and `on_conflict` what a start does about another one that holds it, unless it says so itself.
    """

    __slots__ = ("about", "constants", "encoded", "hash", "on_conflict", "plan", "result", "singleton", "workflow")

    def __init__(self, plan: Plan, constants: list[str], result: Adapter, about: About | None = None) -> None:
        self.plan = plan
        self.constants = constants
        # The plan as it is stored, and its content hash, once they were needed: one plan may be started many times.
        self.encoded, self.hash = b"", ""
        self.workflow = plan.workflow
        self.result = result
        self.about = about if about is not None else About()
        self.singleton = ""
        self.on_conflict: OnConflict | None = None

    def __repr__(self) -> str:
        return f"<plan of {self.workflow!r}: {len(self.plan.blocks)} blocks, {len(self.constants)} constants>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from treadle.authoring.plan_html import plan_html

        return plan_html(self.plan)

    def analysis(self) -> Analysis:
        """Questions to the graph: what depends on what, levels, the critical path."""
        return Analysis.of(self.plan)


class Addition:
    """Blocks that a step adds to one scope of its run, with their constants (JSON texts, by number).

    `into` is the scope's address ("" is the root), None the adder's own.
    """

    __slots__ = ("blocks", "constants", "into")

    def __init__(self, blocks: list[Block], constants: list[str], into: str | None) -> None:
        self.blocks = blocks
        self.constants = constants
        self.into = into


class PlanBuilder:
    """Makes one plan, step by step.

    `retry` is the policy of steps that have none. Inside `with builder:` every `.bind` adds to it too. `on_failure`
    says what becomes of what was done when something fails (see `workflow`); `undo_limit` is how many undos may run
    together (None: no limit of its own; 1: strictly the reverse of completion).
    """

    inside_step = False

    def __init__(
        self,
        name: str,
        *,
        retry: Retry | RetryPolicy | int | None = None,
        result: object = UNSET,
        registry: Registry | None = None,
        on_failure: OnFailure | None = None,
        undo_limit: int | None = None,
    ) -> None:
        self.name = name
        self.on_failure: Final = on_failure_of(on_failure)
        self.undo_limit: Final = undo_limit_of(undo_limit)
        self.registry = registry if registry is not None else default_registry
        self.errors: list[DefinitionError] = []
        self.defaults: dict[str, Any] = {} if retry is None else {"retry": policy_of(retry)}
        self.suspect = False
        self.root = Scope(self, "", None, [])
        # The innermost open group; `.bind` and `step` add to it.
        self.scope = self.root
        # All scopes but the root.
        self.inner: list[Scope] = []
        self._declared = result
        self.about = About()
        self._output: Any = None
        self._tokens: list[Token[PlanBuilder | None]] = []

    # -- building ----------------------------------------------------------------------------------------

    @overload
    def step(
        self,
        id: str | None,
        function: Usable[R_co],
        /,
        *args: Any,
        slots: Mapping[str, Any] = ...,
        **options: Unpack[StepOptions],
    ) -> R_co: ...
    @overload
    def step(
        self,
        id: str | None,
        function: str,
        /,
        *args: Any,
        slots: Mapping[str, Any] = ...,
        **options: Unpack[StepOptions],
    ) -> Any: ...
    def step(
        self,
        id: str | None,
        function: Usable[Any] | str,
        /,
        *args: Any,
        slots: Mapping[str, Any] | None = None,
        **options: Unpack[StepOptions],
    ) -> Any:
        """Plan a step: `id` (None: from the function's name), the function or a registered name, its arguments.

        Arguments go by position, or by name in `slots`; keyword arguments are options. The result is a planned value.
        """
        definition: Action
        if isinstance(function, str):
            definition, chosen = self._named(function)
        else:
            definition, chosen = function.definition, function.chosen
        given: dict[str, Any] = {**options} if id is None else {**options, "id": id}
        if given:
            chosen = choose(chosen, given)
        node = _drafted(definition, chosen, args, dict(slots or {}), this_frame(1))
        self.scope.place(node)
        return Bound(node)

    def _named(self, name: str) -> tuple[Action, Chosen]:
        """What a stored name stands for: a step, a workflow to be called, or something that is not known here."""
        known = self.registry.find(name)
        if known is not None:
            # The options of a decorated function hold here too.
            return known, known.options
        flow = self.registry.workflow(name)
        return (
            (flow, Chosen({"child": Child(), "queue": UNLIMITED}, {}))
            if flow is not None
            else (ForeignAction(name), NOTHING)
        )

    def group(self, id: str, *, after: object = None, after_any: object = None, optional: bool = False) -> GroupPlace:
        """Open a group in the present scope: `with builder.group("deploy") as deploy: ...`."""
        return self.open_group(id, after, after_any, optional, this_frame(1))

    def open_group(self, id_: str, after: object, after_any: object, optional: bool, frame: FrameType) -> GroupPlace:
        """Make a group whose place in the source is `frame`'s."""
        self.suspect = True
        outer = self.scope
        made = GroupPlace(self, id_, outer, (frame.f_code, frame.f_lasti))
        outer.claim(id_, made)
        block = Group(
            id=id_,
            blocks=made.__treadle_inner__.blocks,
            after=outer.names_of(after, f"{made!r}: after=", made),
            after_any=outer.names_of(after_any, f"{made!r}: after_any=", made),
            optional=optional,
        )
        outer.blocks.append(block)
        self.inner.append(made.__treadle_inner__)
        return made

    @contextmanager
    def inside(self, scope: Scope) -> Generator[Scope]:
        """Make a scope, such as a branch, the place of what is planned meanwhile."""
        outer, self.scope = self.scope, scope
        self.inner.append(scope)
        self.suspect = True
        try:
            yield scope
        finally:
            self.scope = outer

    def block_node(self, id_: str | None, short: str, frame: FrameType) -> Node:
        """The node of a block that opens its content while the run goes on, with its id claimed."""
        self.suspect = True
        scope = self.scope
        node = Node(ForeignAction(short), NOTHING, None, frame.f_code, frame.f_lasti)
        node.id = id_ if id_ is not None else scope.free_id(short)
        scope.claim(node.id, node)
        node.segment = encode_id(node.id)
        node.scope = scope
        return node

    def output(self, value: object) -> None:
        """Say what the run's result is made of: planned values, lists and dicts with them, or a plain value."""
        self._output = value

    def __enter__(self) -> PlanBuilder:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._tokens.pop())

    # -- the result ------------------------------------------------------------------------------------------

    def build(self) -> Planned:
        """The finished plan.

        Raises:
            DefinitionError: a mistake; several are raised together as DefinitionErrors.
        """
        output = self._lower_output()
        plan = Plan(
            workflow=self.name,
            blocks=self.root.blocks,
            output=output,
            retry=self.defaults.get("retry"),
            on_failure=self.on_failure,
            undo_limit=self.undo_limit,
        )
        # Planned values only refer to what was planned before, so circles and unknown names need names or groups.
        if self.suspect or not plan.blocks:
            for scope in self.inner:
                scope.check_crossings()
            owners = self._owners() if self.suspect else {}
            self.errors += check_plan(plan, lambda address: owners.get(address, f"step {address!r}"), ids=False)
        raise_all(self.errors, f"workflow {self.name!r}")
        return Planned(plan, self.root.constants, self._result(), self.about)

    def _owners(self) -> dict[str, str]:
        """How errors call the blocks, by address."""
        return {
            child(scope.address, encode_id(id_)): owner_text(owner)
            for scope in (self.root, *self.inner)
            for id_, owner in scope.used.items()
        }

    def _lower_output(self) -> Slot | None:
        if self._output is None:
            return None
        complaints: list[str] = []
        target = ANYTHING if self._declared is UNSET else Target(self._declared)
        drafted = draft(self._output, target, "its output", complaints)
        if _takes_signal(drafted):
            complaints.append("its output: a signal's value goes to a step, which may return it")
        self.errors += [SlotError(f"workflow {self.name!r}: {text}") for text in complaints]
        return None if complaints else self.root.lower(drafted, f"the output of workflow {self.name!r}")

    def _result(self) -> Adapter:
        if self._declared is not UNSET:
            return adapter(self._declared)
        output = self._output
        if isinstance(output, Bound) and not output.__treadle_path__ and output.__treadle_default__ is UNSET:
            node = output.__treadle_node__
            if isinstance(node, Node):
                return adapter(node.returns)
        return adapter(Any)


class Additions:
    """What one attempt of a step adds to its run: gives free planned steps their ids and makes blocks of them.

    `address` is the adding step's. The runtime keeps one for each attempt, so that default ids count on
    from one `add` to the next and a later step may refer to one added earlier.
    """

    inside_step = True

    def __init__(self, address: str = "", *, retry: Retry | RetryPolicy | int | None = None) -> None:
        self.address = address
        self.errors: list[DefinitionError] = []
        self.defaults: dict[str, Any] = {} if retry is None else {"retry": policy_of(retry)}
        self.suspect = False
        self._scopes: dict[str | None, Scope] = {}

    def add(self, bounds: Iterable[object], into: object = None) -> list[Addition]:
        """The blocks of the given planned steps and of all that they refer to, one addition for each scope.

        A function among them plans steps and blocks (`gather`, `choose`, `Phases`, groups) as that of a workflow does.
        `into` (or a step's own `into=` option) is None for the adder's own scope, "root", or the address of a
        scope that contains the adder. What was added before is not added again.

        Raises:
            DefinitionError: a mistake; several are raised together. Then nothing was added.
        """
        given = [*bounds]
        placed = _unplaced([bound for bound in given if not _plans(bound)], self)
        for node in placed:
            self._scope(node, node.chosen.into if node.chosen.into is not None else into).place(node)
        known = {key: dict(scope.used) for key, scope in self._scopes.items()}
        try:
            for function in filter(_plans, given):
                self._plan(function, into)
        except BaseException:
            self._take_back(placed, known)
            raise
        for scope in self._scopes.values():
            scope.check_crossings()
            scope.crossings.clear()
        found = [Addition(scope.blocks, scope.constants, key) for key, scope in self._scopes.items() if scope.blocks]
        for scope in self._scopes.values():
            scope.blocks, scope.constants = [], []
        errors, self.errors = self.errors, []
        if errors:
            self._take_back(placed, known)
        raise_all(errors, f"the steps that {self.address!r} adds")
        return found

    def _take_back(self, placed: list[Node], known: Mapping[str | None, Mapping[str, object]]) -> None:
        """Forget what one call has placed and planned to no end."""
        for node in placed:
            assert node.scope is not None
            node.scope.release(node)
        for key, scope in self._scopes.items():
            before = known.get(key, {})
            scope.used = {id_: owner for id_, owner in scope.used.items() if before.get(id_) is owner}
            scope.blocks, scope.constants = [], []
            scope.crossings.clear()
        self.errors = []

    def _plan(self, function: Callable[[], object], into: object) -> None:
        """Let a function plan steps and blocks in a scope, as a workflow's function does."""
        builder = PlanBuilder(self.address)
        builder.scope = builder.root = self._scope(function, into)
        builder.errors = self.errors
        with builder:
            planned = function()
        if inspect.iscoroutine(planned):
            planned.close()
            self.errors.append(DefinitionError(f"{function!r} is async; what plans steps is a plain function"))
        for scope in builder.inner:
            scope.check_crossings()

    def _scope(self, node: object, wanted: object) -> Scope:
        key: str | None = None
        if isinstance(wanted, Bound):
            target = wanted.__treadle_node__
            if isinstance(target, Named):
                key = target.text
            elif isinstance(target, Node) and target.scope is not None:
                key = child(target.scope.address, target.segment)
        elif isinstance(wanted, str):
            key = "" if wanted == "root" else wanted
        if key is None and wanted is not None:
            self.errors.append(DefinitionError(f'{node}: into={wanted!r}: give "root" or the address of a scope'))
        if key is not None and key == self.address:
            # By its own address a step means its own scope.
            key = None
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = Scope(self, self.address if key is None else key, None, [])
        return scope


def _plans(bound: object) -> TypeGuard[Callable[[], object]]:
    """Whether it is a function that plans, not what one has planned."""
    return inspect.isroutine(bound)


def _unplaced(bounds: Iterable[object], owner: PlanBuilder | Additions) -> list[Node]:
    """The planned steps that have no place yet, with all they refer to, in the order in which they were planned."""
    todo: list[Node] = []
    for bound in bounds:
        node = bound.__treadle_node__ if isinstance(bound, Bound) else None
        if not isinstance(node, Node):
            text = f"{bound!r} is no planned step; give what .bind(...) gives, or a function that plans blocks"
            owner.errors.append(DefinitionError(text))
        elif node.scope is not None and not node.scope.is_of(owner):
            owner.errors.append(DefinitionError(f"{node} belongs to another plan; plan it anew here"))
        else:
            todo.append(node)
    found: dict[int, Node] = {}
    while todo:
        node = todo.pop()
        if node.serial not in found and node.scope is None:
            found[node.serial] = node
            todo += referred(node)
    return [found[serial] for serial in sorted(found)]


def plan_value(value: object, registry: Registry) -> Planned:
    """The plan of a run that does what a planned value needs, and has it as its result; its workflow is named after it.

    Raises:
        DefinitionError: it is no planned value, or was planned for another run; all mistakes at once.
    """
    node = value.__treadle_node__ if isinstance(value, Bound) else None
    builder = PlanBuilder(node.definition.name if isinstance(node, Node) else "", registry=registry)
    nodes = _unplaced([value], builder)
    raise_all(builder.errors, "the call")
    for node in nodes:
        builder.scope.place(node)
    builder.output(value)
    return builder.build()


def _takes_signal(drafted: object) -> bool:
    if isinstance(drafted, dict):
        return any(map(_takes_signal, cast("dict[str, object]", drafted).values()))
    if isinstance(drafted, list):
        return any(map(_takes_signal, cast("list[object]", drafted)))
    return isinstance(drafted, Signalled)


# -- the plan that is being made -------------------------------------------------------------------------------

_current: ContextVar[PlanBuilder | None] = ContextVar("treadle_builder", default=None)
current_builder: Final = _current.get


def _drafted(
    definition: Action, chosen: Chosen, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
) -> Node:
    signature = definition.signature
    node = Node(definition, chosen, signature, frame.f_code, frame.f_lasti)
    node.drafts = draft_arguments(signature, args, kwargs, node.complaints)
    node.complaints += check_key(chosen, node.drafts if signature is None else signature.parameters)
    return node


def plan_call(
    definition: Action, chosen: Chosen, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
) -> Any:
    """Plan a call: in the plan that is being made, else free, for a running step to add."""
    node = _drafted(definition, chosen, args, kwargs, frame)
    builder = _current.get()
    if builder is not None:
        builder.scope.place(node)
    return Bound(node)


def ask(definition: Action, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Any:
    """A predicate with its arguments, for `when=`."""
    return Condition(_drafted(definition, NOTHING, args, kwargs, frame))


def describe_run(
    *, name: str | None = None, labels: Mapping[str, str] | None = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Say what the run is that is being planned: its name, and labels and metadata to find it by.

    For workflow functions; they know their input, and no step exists yet. Called again it adds to what was said. What
    is given where the run is started wins.

    Raises:
        UsageError: no workflow is being planned.
        DefinitionError: a label or a text is none.
    """
    builder = _current.get()
    if builder is None:
        raise UsageError("describe_run() works while a workflow is planned; to start() give name=, labels=, metadata=")
    about = builder.about
    if name is not None:
        about.name = check_about({"name": name}, "the run's name")["name"]
    about.labels = {**about.labels, **check_about(labels or {}, "labels")}
    about.metadata = {**about.metadata, **check_about(metadata or {}, "metadata")}


def check_about(given: Mapping[Any, Any], what: str) -> dict[str, str]:
    """Texts by name, checked.

    Raises:
        DefinitionError: one of them is no text, or holds what no store takes.
    """
    for key, text in given.items():
        for part in (key, text):
            if not isinstance(part, str):
                raise DefinitionError(f"{what}: {part!r} is no text; write what people and listings are to see")
            if not part.isascii():
                try:
                    part.encode()
                except UnicodeEncodeError:
                    raise DefinitionError(f"{what}: {part!r} has a lone surrogate, which is no text") from None
    return dict(given)


def group(id: str, *, after: object = None, after_any: object = None, optional: bool = False) -> GroupPlace:
    """A group in the workflow that is being planned, to be opened by `with`.

    What is planned inside gets ids below the group's; the group waits for `after`, and what waits for the group
    waits for all of it.

    Raises:
        UsageError: no workflow is being planned.
    """
    builder = _current.get()
    if builder is None:
        raise UsageError("group() works while a workflow is planned; a step adds steps without groups")
    return builder.open_group(id, after, after_any, optional, this_frame(1))


def raise_all(errors: list[DefinitionError], what: str) -> None:
    """Raise what was noted: one mistake as it is, several together."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DefinitionErrors(f"{len(errors)} mistakes in {what}", errors)
