"""`gather` and `choose` inside a workflow: bodies are functions that plan steps, called once while the plan is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Literal, TypeVar, cast, overload

from treadle.authoring.adapters import TAG
from treadle.authoring.bound import Ambient, Bound, Node, Promised, Tested, this_frame
from treadle.authoring.builder import PlanBuilder, current_builder
from treadle.authoring.decorators import StepFunction
from treadle.authoring.drafts import draft
from treadle.authoring.scopes import Scope
from treadle.authoring.signatures import ANYTHING
from treadle.authoring.streams import Results
from treadle.core.addresses import child, encode_id
from treadle.core.expressions import parse
from treadle.core.plan import Body, Branch, Choose, Const, Gather, MapOf, Slot
from treadle.errors import DefinitionError, SlotError, UsageError

T = TypeVar("T")
R = TypeVar("R")
Mode = Literal["any_error", "all", "first"]
Kind = inspect.Parameter
# Of a list in which nothing fits not every item is told.
_TOLD = 5


def building(what: str) -> PlanBuilder:
    """The plan that is being made.

    Raises:
        UsageError: no workflow is being planned.
    """
    builder = current_builder()
    if builder is None:
        raise UsageError(f"{what}() works while a workflow is planned")
    return builder


def drafted(value: object, label: str, reader: Node, scope: Scope) -> Slot:
    """The slot of a planned or plain value in a scope; mistakes are noted."""
    complaints: list[str] = []
    made = draft(value, ANYTHING, label, complaints)
    scope.site.errors += [SlotError(f"{reader}: {text}") for text in complaints]
    return scope.lower(made, reader)


# -- gather ------------------------------------------------------------------------------------------------------------


@overload
def gather(
    items: Iterable[T],
    body: StepFunction[[T], R],
    *,
    id: str | None = ...,
    limit: int = ...,
    mode: Mode = ...,
    after: object = ...,
    after_any: object = ...,
    optional: bool = ...,
) -> Results[R]: ...
@overload
def gather(
    items: Iterable[T],
    body: Callable[[T], R],
    *,
    id: str | None = ...,
    limit: int = ...,
    mode: Mode = ...,
    after: object = ...,
    after_any: object = ...,
    optional: bool = ...,
) -> Results[R]: ...
@overload
def gather(
    items: Iterable[T],
    body: Callable[[T, int], R],
    *,
    id: str | None = ...,
    limit: int = ...,
    mode: Mode = ...,
    after: object = ...,
    after_any: object = ...,
    optional: bool = ...,
) -> Results[R]: ...
def gather(
    items: Any,
    body: Any,
    *,
    id: str | None = None,
    limit: int = 0,
    mode: Mode = "any_error",
    after: object = None,
    after_any: object = None,
    optional: bool = False,
) -> Any:
    """Do one body for each item of a list; gives the list of the bodies' values, in the order of the items.

    Args:
        items: a list, or the planned value of one.
        body: a step function, or a function of the item (and its number) that plans steps and returns a planned value.
            It is called once, with planned values, while the plan is made; it may use planned values from around.
        id: what the gather is called; the body's name without it. The third item's steps are `id[2]/...`.
        limit: how many items may be under way at a time; 0 is no limit but the run's own.
        mode: `any_error`: the first failure ends it, cancels the rest and fails it. `all`: all items are done, then it
            fails if one had failed. `first`: the first success ends it, cancels the rest, and is its value.
        after: what must have succeeded before.
        after_any: what must have ended before.
        optional: its failure does not fail what is around.

    Raises:
        UsageError: no workflow is being planned.
    """
    return _gather(building("gather"), items, body, (id, limit, mode, after, after_any, optional), this_frame(1))


def _gather(
    builder: PlanBuilder,
    items: Any,
    body: Any,
    options: tuple[str | None, int, Mode, object, object, bool],
    frame: FrameType,
) -> Bound:
    id_, limit, mode, after, after_any, optional = options
    outer = builder.scope
    node = builder.block_node(id_, name_of(body, "gather"), frame)
    # Before the scope of the body is entered: what the gather itself reads lies outside.
    slot = drafted(items, "its items", node, outer)
    if not _may_be_list(slot, outer):
        outer.site.errors.append(DefinitionError(f"{node}: its items are {items!r:.60}, which is no list"))
    else:
        outer.site.errors += [SlotError(f"{node}: {text}") for text in _misfits(items, body)]
    inner = Scope(
        outer.site, f"{child(outer.address, node.segment)}[]", outer, outer.constants, kind="gather", block=node
    )
    with builder.inside(inner):
        value = called(body, [Bound(Ambient("item", scope=inner)), Bound(Ambient("index", scope=inner))], node)
        output = drafted(value, "what its body returns", node, inner)
    outer.blocks.append(
        Gather(
            id=node.id,
            items=slot,
            body=Body(blocks=inner.blocks, output=output),
            limit=limit,
            mode=mode,
            after=outer.names_of(after, f"{node}: after=", node),
            after_any=outer.names_of(after_any, f"{node}: after_any=", node),
            optional=optional,
        )
    )
    return Bound(node)


def _misfits(items: Any, body: Any) -> list[str]:
    """Complaints of items that are known now and do not fit the parameter of the step that is to take each."""
    complaints: list[str] = []
    if not isinstance(body, StepFunction) or type(items) not in (list, tuple, set, frozenset):
        return complaints
    definition = cast("StepFunction[..., Any]", body).definition
    name = next(iter(definition.parameters), "")
    parameter = definition.parameters.get(name)
    if parameter is not None and parameter.kind in (Kind.POSITIONAL_ONLY, Kind.POSITIONAL_OR_KEYWORD):
        for number, item in enumerate(items):
            if not isinstance(item, Promised):
                draft(item, parameter, f"item {number} for argument {name!r}", complaints)
            if len(complaints) >= _TOLD:
                break
    return complaints


def _may_be_list(slot: Slot, outer: Scope) -> bool:
    """Whether items can be a list, as far as that is known before anything runs."""
    if not isinstance(slot, Const):
        return not isinstance(slot, MapOf)
    text = outer.constants[slot.index]
    tags = tuple(f'{{"{TAG}":["{kind}"' for kind in ("set", "frozenset"))
    return text.startswith(("[", *tags))


def name_of(body: Any, otherwise: str) -> str:
    """What a block is called after its body."""
    if isinstance(body, StepFunction):
        return cast("StepFunction[..., Any]", body).definition.short
    name: str = getattr(body, "__name__", "")
    return name if name and name != "<lambda>" else otherwise


def called(body: Any, values: list[Any], node: Node) -> Any:
    """What a body plans for as many of the values as it takes.

    Raises:
        DefinitionError: it is no function, or takes more.
    """
    if isinstance(body, StepFunction):
        step = cast("StepFunction[..., Any]", body)
        return step.bind(*values[: min(len(step.definition.parameters), 1)])
    if not callable(body):
        raise DefinitionError(f"{node}: a body is a step function or a function that plans steps, not {body!r}")
    taken = 0
    for parameter in inspect.signature(body).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            required = parameter.default is parameter.empty
            if required and taken >= len(values):
                raise DefinitionError(f"{node}: its body takes {parameter.name!r}, which there is no value for")
            taken += required
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise DefinitionError(f"{node}: its body takes {parameter.name!r} by keyword, which it is not given")
    found = body(*values[:taken])
    if inspect.iscoroutine(found):
        found.close()
        raise DefinitionError(f"{node}: its body is async; a body plans steps with .bind and returns what it planned")
    return found


# -- choose ------------------------------------------------------------------------------------------------------------


class Case:
    """One branch of a choose."""

    __slots__ = ("body", "condition", "id")

    def __init__(self, condition: object, body: Any, id_: str | None) -> None:
        self.condition = condition
        self.body = body
        self.id = id_


def case(condition: bool, body: Callable[[], object], *, id: str | None = None) -> Case:
    """A branch for `choose`: where `condition` holds, what `body` plans is done.

    `condition` is a planned bool, a predicate's `.bind(...)`, or `holds(...)`. The branch's steps are `choose/id/...`;
    without `id` it is named after the body, or `case-1`, `case-2` for lambdas.
    """
    return Case(condition, body, id)


def holds(text: str, /, **values: object) -> bool:
    """A condition as an expression over values: `holds("score > 3 and not urgent", score=score, urgent=urgent)`.

    The language is that of docs/expressions.md. Values are planned or plain ones.

    Raises:
        ExpressionSyntaxError: the text is wrong.
        DefinitionError: it reads a name that is not given.
    """
    expression = parse(text)
    unknown = sorted({str(path[0]) for path in expression.names()} - values.keys())
    if unknown:
        raise DefinitionError(
            f"test({text!r}) reads {', '.join(map(repr, unknown))}, which is not given: pass it by name"
        )
    complaints: list[str] = []
    drafts = {name: draft(value, ANYTHING, f"value {name!r}", complaints) for name, value in values.items()}
    if complaints:
        raise SlotError(f"holds({text!r}): {complaints[0]}")
    return cast("bool", Tested(text, drafts))


def choose(
    *cases: Case,
    otherwise: Callable[[], object] | None = None,
    id: str | None = None,
    after: object = None,
    after_any: object = None,
    optional: bool = False,
) -> Any:
    """Do the first of the cases whose condition holds; gives its value.

    Conditions are asked in order, once all that they need is there. Steps of the other branches never exist. If none
    holds and there is no `otherwise`, the value is None.

    Args:
        cases: what `case(...)` gives.
        otherwise: a function that plans what is done if no condition holds.
        id: what the choose is called.
        after: what must have succeeded before.
        after_any: what must have ended before.
        optional: its failure does not fail what is around.

    Raises:
        UsageError: no workflow is being planned.
    """
    builder = building("choose")
    outer = builder.scope
    node = builder.block_node(id, "choose", this_frame(1))
    address = child(outer.address, node.segment)
    all_cases = [*cases, *([Case(None, otherwise, "otherwise")] if otherwise is not None else [])]
    branches: list[Branch] = []
    for number, known in enumerate(all_cases, 1):
        if not isinstance(known, Case):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
            raise DefinitionError(f"{node}: {known!r} is no case(...)")
        branch_id = known.id or name_of(known.body, f"case-{number}")
        condition = outer.condition(node, known.condition) if known.condition is not None else None
        inner = Scope(
            outer.site, child(address, encode_id(branch_id)), outer, outer.constants, kind="branch", block=node
        )
        with builder.inside(inner):
            output = drafted(called(known.body, [], node), "what its body returns", node, inner)
        branches.append(Branch(id=branch_id, when=condition, blocks=inner.blocks, output=output))
    outer.blocks.append(
        Choose(
            id=node.id,
            branches=branches,
            after=outer.names_of(after, f"{node}: after=", node),
            after_any=outer.names_of(after_any, f"{node}: after_any=", node),
            optional=optional,
        )
    )
    return Bound(node)
