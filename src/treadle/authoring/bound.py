"""Planned values: what `.bind` gives while a graph is made, and what may stand in for a step's argument.

A `Bound` is a reference to the result of a planned step, or to a part of it. Statically it has the value's own type,
so that checkers compare it with the parameters it is passed to; at run time it has no value yet, and whatever
would need one (truth, iteration, comparison, formatting, arithmetic) raises an error that says so.

A field of the result may have any name, therefore these classes have no public attributes: their own
are spelled `__treadle_*__`, which no field of a result is.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar, cast, overload

from treadle.errors import DefinitionError

if TYPE_CHECKING:
    from treadle.authoring.options import Chosen
    from treadle.authoring.scopes import Scope
    from treadle.authoring.signatures import Signature

T = TypeVar("T")
D = TypeVar("D")

_serial = itertools.count(1)

# `type`, as a function whose result checkers know.
kind_of: Callable[[object], type[Any]] = type

# The caller's frame costs nothing until an error wants its line; `inspect` would build a list of all frames.
this_frame: Final = sys._getframe  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # there is no other way


class _Unset:
    """The absence of a default; None is a default."""

    def __repr__(self) -> str:
        return "<unset>"


UNSET: Final = _Unset()


def shown(text: str) -> str:
    """A text that may be of any length, as errors print it."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def place_of(code: CodeType | None, instruction: int) -> str:
    """`file:line` of an instruction. Computed only when an error needs it."""
    if code is None:
        return ""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return f"{code.co_filename}:{line}"
    return f"{code.co_filename}:{code.co_firstlineno}"


class Action(Protocol):
    """What is known of a function that steps call. A foreign one has no signature."""

    @property
    def name(self) -> str:
        """The name it is stored under."""
        ...

    @property
    def short(self) -> str:
        """What default ids are made from."""
        ...

    @property
    def signature(self) -> Signature | None:
        """Its parameters and result."""
        ...


class Node:
    """One planned step: which function, with which drafted arguments and options, and where it was written.

    `scope` is None until the step is placed. `serial` is the order of creation; since a Bound exists before
    whatever uses it, that order never puts a step before one it refers to.
    """

    __slots__ = (
        "chosen",
        "code",
        "complaints",
        "definition",
        "drafts",
        "id",
        "instruction",
        "produces",
        "scope",
        "segment",
        "serial",
    )

    def __init__(
        self,
        definition: Action,
        chosen: Chosen,
        signature: Signature | None,
        code: CodeType | None,
        instruction: int,
    ) -> None:
        self.definition = definition
        # The JSON kind of the result, where the annotation is clear about it.
        self.produces = signature.produces if signature is not None else None
        self.chosen = chosen
        self.code = code
        self.instruction = instruction
        self.serial = next(_serial)
        self.drafts: dict[str, Any] = {}
        # Mistakes in this call, reported with all others when the plan is made.
        self.complaints: list[str] = []
        self.scope: Scope | None = None
        self.id = ""
        self.segment = ""

    @property
    def returns(self) -> Any:
        """The annotation of the result."""
        signature = self.definition.signature
        return signature.result.annotation if signature is not None else Any

    def __str__(self) -> str:
        """How errors name the step."""
        name = shown(self.id or self.chosen.id or self.definition.short)
        place = place_of(self.code, self.instruction)
        return f"step {name!r} ({place})" if place else f"step {name!r}"


class Named:
    """A step known only by the text of its address."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f"step {shown(self.text)!r}"


class Ambient:
    """A value that depends on where its reader stands: a gather's item, a variable, the value of a lane.

    `what` is item, index, state or lane; `scope` is the body of the gather that an item belongs to.
    """

    __slots__ = ("name", "scope", "what")

    def __init__(self, what: str, name: str = "", scope: Scope | None = None) -> None:
        self.what = what
        self.name = name
        self.scope = scope

    def __str__(self) -> str:
        return f"{self.what} {self.name!r}" if self.name else f"the {self.what}"


class Promised:
    """The root of all that has no value while a plan is made."""

    __slots__ = ()

    def __treadle_refuse__(self, doing: str) -> NoReturn:
        raise DefinitionError(
            f"{self!r} has no value yet: it cannot be {doing} while the plan is made; "
            "pass it to a step, which gets the value"
        )

    def __bool__(self) -> bool:
        self.__treadle_refuse__("tested for truth")

    def __iter__(self) -> Iterator[Any]:
        self.__treadle_refuse__("iterated over or unpacked")

    def __len__(self) -> int:
        self.__treadle_refuse__("measured")

    def __contains__(self, item: object) -> bool:
        self.__treadle_refuse__("searched")

    def __hash__(self) -> int:
        self.__treadle_refuse__("hashed")

    def __str__(self) -> str:
        self.__treadle_refuse__("turned into text")

    def __format__(self, spec: str) -> str:
        self.__treadle_refuse__("formatted")

    def __call__(self, *_args: object, **_kwargs: object) -> Any:  # noqa: D102 - it refuses, as all here do
        self.__treadle_refuse__("called")

    def __await__(self) -> Iterator[Any]:
        self.__treadle_refuse__("awaited")

    def __setitem__(self, key: object, value: object) -> None:
        self.__treadle_refuse__("changed")

    def __delitem__(self, key: object) -> None:
        self.__treadle_refuse__("changed")


def _forbid(names: str, doing: str) -> None:
    """Give `Promised` special methods that refuse; one by one they would fill a page."""

    def refuse(self: Promised, *_others: object) -> Any:
        self.__treadle_refuse__(doing)

    for name in names.split():
        setattr(Promised, f"__{name}__", refuse)


_forbid("eq ne lt le gt ge", "compared")
_forbid("int float complex index bytes round trunc floor ceil", "converted")
_forbid("neg pos abs invert divmod rdivmod pow rpow", "used in arithmetic")
for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "lshift", "rshift", "and", "or", "xor"):
    _forbid(f"{_name} r{_name} i{_name}", "used in arithmetic")


class Bound(Promised):
    """The result of a planned step, or by `bound.field`, `bound["key"]`, `bound[0]` a part of it."""

    __slots__ = ("__treadle_default__", "__treadle_node__", "__treadle_path__")

    def __init__(self, node: Node | Named | Ambient, path: tuple[str | int, ...] = (), default: object = UNSET) -> None:
        self.__treadle_node__ = node
        self.__treadle_path__ = path
        self.__treadle_default__ = default

    def __getattr__(self, name: str) -> Any:
        # Python, notebooks and debuggers probe objects for names with underscores; none of them means a field.
        if name.startswith("_"):
            raise AttributeError(f'a planned value has no attribute {name}; a field of this name is bound["{name}"]')
        return self.__treadle_part__(name)

    def __getitem__(self, key: object) -> Any:
        if isinstance(key, bool) or not isinstance(key, str | int):
            self.__treadle_refuse__(f"indexed by {key!r} (a key is text or a whole number)")
        return self.__treadle_part__(key)

    def __treadle_part__(self, key: str | int) -> Bound:
        if self.__treadle_default__ is not UNSET:
            raise DefinitionError(f"{self!r}: take the part first, then give the default: or_default(page.title, None)")
        return Bound(self.__treadle_node__, (*self.__treadle_path__, key))

    def __repr__(self) -> str:
        path = "".join(f"[{part!r}]" for part in self.__treadle_path__)
        of = "" if isinstance(self.__treadle_node__, Ambient) else "result of "
        return f"<{of}{self.__treadle_node__}{path}>"


class Signalled(Promised):
    """The payload of a signal that has not come yet."""

    __slots__ = ("__treadle_name__", "__treadle_type__")

    def __init__(self, name: str, declared: Any) -> None:
        self.__treadle_name__ = name
        self.__treadle_type__ = declared

    def __repr__(self) -> str:
        return f"<value of signal {self.__treadle_name__!r}>"


class Tested(Promised):
    """An expression with the values of its roots, for `when=` and for branches."""

    __slots__ = ("__treadle_drafts__", "__treadle_text__")

    def __init__(self, text: str, drafts: dict[str, Any]) -> None:
        self.__treadle_text__ = text
        self.__treadle_drafts__ = drafts

    def __repr__(self) -> str:
        return f"<test {self.__treadle_text__!r}>"


class FromData(Promised):
    """A parameter's default that stands for the value of the parameter's name in the run's data."""

    __slots__ = ("__treadle_name__",)

    def __init__(self, name: str = "") -> None:
        # Of the parameter, where the default is that of one.
        self.__treadle_name__ = name

    def __treadle_refuse__(self, doing: str) -> NoReturn:
        raise DefinitionError(
            f"{self!r} is filled when a run executes the step: it cannot be {doing}; a plain call passes the argument"
        )

    def __repr__(self) -> str:
        return f"<{self.__treadle_name__!r} of the run's data>" if self.__treadle_name__ else "FROM_DATA"


# The default of a step's parameter that takes the value of its name from the run's data:
# `def copy(path: str, root: Path = FROM_DATA)`. Only parameters declared so are filled.
FROM_DATA: Final[Any] = FromData()


class Condition(Promised):
    """A registered predicate with its arguments, for `when=`."""

    __slots__ = ("__treadle_node__",)

    def __init__(self, node: Node) -> None:
        self.__treadle_node__ = node

    def __repr__(self) -> str:
        return f"<predicate {self.__treadle_node__.definition.name}>"


@overload
def state_value(name: str, *, type: type[T]) -> T: ...
@overload
def state_value(name: str, *, type: object = ...) -> Any: ...
def state_value(name: str, *, type: object = None) -> Any:
    """A variable of the Phases block around, as it is when the row begins, as a step's argument."""
    return Bound(Ambient("state", name))


@overload
def lane_value(lane: str, *, type: type[T]) -> T: ...
@overload
def lane_value(lane: str, *, type: object = ...) -> Any: ...
def lane_value(lane: str, *, type: object = None) -> Any:
    """What a lane gave in the row that was executed before, as a step's argument."""
    return Bound(Ambient("lane", lane))


class ScopeOf:
    """Everything that a step adds, as `after=` takes it."""

    __slots__ = ("target",)

    def __init__(self, target: object) -> None:
        self.target = target

    def __repr__(self) -> str:
        return f"scope({self.target!r})"


def or_default(bound: T, value: D) -> T | D:
    """The planned value, or `value` where its step did not succeed (failed, skipped or cancelled).

    The reader runs either way, also where `after=` names the same step.
    """
    if not isinstance(bound, Bound):
        raise DefinitionError(f"or_default takes a planned value first, not {bound!r}")
    return cast("T", Bound(bound.__treadle_node__, bound.__treadle_path__, value))


# `type[T]` cannot spell a union such as `str | None`; the second form takes what the first cannot.
@overload
def ref(target: str, *, type: type[T]) -> T: ...
@overload
def ref(target: str, *, type: object = ...) -> Any: ...
@overload
def ref(target: T) -> T: ...
def ref(target: Any, *, type: object = None) -> Any:
    """The result of a step that is known by its id (or by its address: `group/step`), or a Bound as it is.

    `type` only tells checkers what the value is. In the text, the characters `/ # [ ] ~ %` of an id are
    percent-encoded, unless the very id was planned before.
    """
    if isinstance(target, Bound):
        return target
    if not isinstance(target, str):
        raise DefinitionError(f"ref takes a planned value or the id of a step, not {target!r}")
    return Bound(Named(target))


def scope(bound: object) -> ScopeOf:
    """Everything that a step adds: `after=scope(crawl)` waits for all of it, `after=crawl` for the step alone."""
    return ScopeOf(bound)


@overload
def signal_value(name: str, *, type: type[T]) -> T: ...
@overload
def signal_value(name: str, *, type: object = ...) -> Any: ...
def signal_value(name: str, *, type: object = None) -> Any:
    """The payload of a signal, as a step's argument; the step waits for the signal.

    With `type`, a parameter that certainly cannot take such a value is refused when the plan is made.
    """
    return Signalled(name, Any if type is None else type)
