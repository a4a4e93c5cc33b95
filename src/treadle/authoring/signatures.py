"""A function's parameters, read once and lazily, so that annotations may name what is defined later.

`Signature.assign` binds the arguments of a call to parameters without `inspect`, since it runs for every planned
step; `Signature.invoke` is the reverse, for the worker.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, Final, get_args, get_origin

from treadle.authoring.bound import FromData
from treadle.authoring.cells import Patch
from treadle.authoring.codec import Adapter, adapter
from treadle.authoring.fitting import accepted_kinds, produced_kind
from treadle.authoring.streams import Reading, does_yield, reading_of, yielded_item
from treadle.errors import DefinitionError

_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_STAR = inspect.Parameter.VAR_POSITIONAL
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_DOUBLE_STAR = inspect.Parameter.VAR_KEYWORD

# A value of exactly such a type always fits an annotation that names it.
_SCALARS: Final = (str, bool, int, float, types.NoneType)


class Target:
    """What a value must fit: an annotation, with its adapter and what is known of it beforehand."""

    __slots__ = ("accepts", "adapter", "annotation", "exact", "unchecked")

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        self.adapter: Adapter = adapter(annotation)
        self.exact = _exact(annotation)
        self.accepts = accepted_kinds(annotation)
        self.unchecked = annotation is Any or annotation is object


class Parameter(Target):
    """One parameter of a step: its slot has the same name."""

    __slots__ = ("item", "iterator", "kind", "name", "on_loop", "required")

    def __init__(
        self, name: str, kind: Any, annotation: Any, *, required: bool, reading: Reading | None = None
    ) -> None:
        super().__init__(annotation if reading is None else types.GenericAlias(list, (reading.item,)))
        # For one that is read piece by piece: the adapter of an item, whether it is an iterator, where it is read.
        self.item = None if reading is None else adapter(reading.item)
        self.iterator = reading is not None and reading.iterator
        self.on_loop = reading is not None and reading.on_loop
        self.name = name
        self.kind = kind
        self.required = required

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, {self.annotation!r})"


def _exact(annotation: Any) -> frozenset[type]:
    parts = get_args(annotation) if get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    kinds = [types.NoneType if part is None else part for part in parts]
    return frozenset(kind for kind in kinds if kind in _SCALARS)


ANYTHING: Final = Target(Any)


class Signature:
    """The parameters of a function, and its result."""

    __slots__ = (
        "_double",
        "_keywords",
        "_positional",
        "_required",
        "_star",
        "from_data",
        "invoke",
        "parameters",
        "produces",
        "result",
        "yields",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        what: str,
        namespace: Mapping[str, Any] | None = None,
        *,
        piecewise: bool = False,
    ) -> None:
        hints = _hints(function, what, namespace)
        self.parameters: dict[str, Parameter] = {}
        positional: list[str] = []
        keywords: list[str] = []
        self._star = ""
        self._double = ""
        parameters = inspect.signature(function).parameters
        for name, raw in parameters.items():
            annotation = hints.get(name, Any)
            if raw.kind is _STAR:
                self._star = name
                annotation = types.GenericAlias(list, (annotation,))
            elif raw.kind is _DOUBLE_STAR:
                self._double = name
                annotation = types.GenericAlias(dict, (str, annotation))
            if raw.kind in (_POSITIONAL_ONLY, _POSITIONAL):
                positional.append(name)
            if raw.kind in (_POSITIONAL, _KEYWORD):
                keywords.append(name)
            required = raw.default is inspect.Parameter.empty and raw.kind not in (_STAR, _DOUBLE_STAR)
            reading = None
            if piecewise and raw.kind not in (_STAR, _DOUBLE_STAR):
                reading = reading_of(function, what, name, annotation)
            self.parameters[name] = _made(what, name, raw.kind, annotation, required=required, reading=reading)
        self._positional = tuple(positional)
        self._keywords = frozenset(keywords)
        # Parameters that take the value of their name from the run's data where a call gives none.
        self.from_data = tuple(name for name, raw in parameters.items() if type(raw.default) is FromData)
        self._required = frozenset(name for name, known in self.parameters.items() if known.required)
        returned = _result_type(hints.get("return", Any))
        # For a generator: the adapter of what it yields; its result is a list of that.
        self.yields: Adapter | None = None
        if does_yield(function):
            item = yielded_item(function, what, returned)
            self.yields = _made(what, "return", None, item, required=False).adapter
            returned = types.GenericAlias(list, (item,))
        self.result = _made(what, "return", None, returned, required=False)
        self.produces = produced_kind(returned)
        self.invoke: Callable[[dict[str, Any]], Any] = self._invoker(function)

    def returning(self, annotation: Any) -> Signature:
        """The same parameters, with another result."""
        other = copy(self)
        other.result = _made("the call of a workflow", "return", None, annotation, required=False)
        other.produces = produced_kind(annotation)
        return other

    def assign(self, args: tuple[Any, ...], kwargs: dict[str, Any], complaints: list[str]) -> dict[str, Any]:
        """The arguments by parameter name; what does not fit is left out and complained of.

        All that `*args` took is a list under the parameter's name, all that `**kwargs` took a dict.
        """
        if len(args) <= len(self._positional):
            values = dict(zip(self._positional, args, strict=False))
            if not kwargs or (kwargs.keys() <= self._keywords and values.keys().isdisjoint(kwargs)):
                values.update(kwargs)
                if self._required <= values.keys():
                    return values
        return self._assign(args, kwargs, complaints)

    def _assign(self, args: tuple[Any, ...], kwargs: dict[str, Any], complaints: list[str]) -> dict[str, Any]:
        values: dict[str, Any] = dict(zip(self._positional, args, strict=False))
        rest = args[len(self._positional) :]
        if rest and self._star:
            values[self._star] = list(rest)
        elif rest:
            count = len(self._positional)
            complaints.append(
                f"takes {count} positional argument{'' if count == 1 else 's'}, but {len(args)} were given"
            )
        more: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in self._keywords and name in values:
                complaints.append(f"got two values for argument {name!r}")
            elif name in self._keywords:
                values[name] = value
            elif self._double:
                more[name] = value
            elif name in self._positional:
                complaints.append(f"takes argument {name!r} by position only")
            else:
                complaints.append(f"has no parameter {name!r}; there are: {', '.join(self.parameters) or 'none'}")
        if more:
            values[self._double] = more
        missing = [name for name, known in self.parameters.items() if known.required and name not in values]
        complaints.extend(f"lacks argument {name!r}" for name in missing)
        return values

    def _invoker(self, function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
        leading = tuple(name for name, known in self.parameters.items() if known.kind is _POSITIONAL_ONLY)
        star, double, positional = self._star, self._double, self._positional
        if not (leading or star or double):
            return lambda values: function(**values)

        def invoke(values: dict[str, Any]) -> Any:
            rest = dict(values)
            extra = rest.pop(star, ()) if star else ()
            # What stands before *args can only be reached by position once *args has something.
            by_position = positional if extra else leading
            args = [rest.pop(name) for name in by_position if name in rest]
            more: dict[str, Any] = rest.pop(double, {}) if double else {}
            return function(*args, *extra, **rest, **more)

        return invoke


def _result_type(annotation: Any) -> Any:
    """The type of the value that others get: of a cell's `Patch[int]`, int."""
    if annotation is Patch:
        return Any
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Patch else annotation


def _made(
    what: str, name: str, kind: Any, annotation: Any, *, required: bool, reading: Reading | None = None
) -> Parameter:
    try:
        return Parameter(name, kind, annotation, required=required, reading=reading)
    except Exception as error:
        raise DefinitionError(
            f"{what}: the annotation of {name!r} ({annotation!r}) is no type of data: {error}"
        ) from error


def _hints(function: Callable[..., Any], what: str, namespace: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(namespace) if namespace else None, include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"{what}: an annotation names {error.name!r}, which is not defined when the function is used; "
            "import it for real, not only under TYPE_CHECKING"
        ) from None
    except Exception as error:
        raise DefinitionError(f"{what}: its annotations cannot be read: {error}") from error
