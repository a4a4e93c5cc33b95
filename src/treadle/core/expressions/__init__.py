"""Expressions: small texts over named values, such as `state.count < 3 and lanes.build.ok`.

They decide without user code, so `decide` evaluates them itself and any process can decide any run. The language is
total: every evaluation ends with a JSON value or an `ExpressionError`, within its fuel. Its reference is the page
docs/expressions.md; the parts are

    reading     text to tree, with all mistakes at their places
    nodes       the tree, and its canonical text
    values      what operators do with JSON values
    functions   the functions
    compiling   tree to nested Python functions

What an expression reads is known before it is evaluated (`Expression.names`), so that values can be fetched first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from treadle.core.expressions.compiling import Compiler
from treadle.core.expressions.nodes import Node, Path, Read, show, walk
from treadle.core.expressions.reading import read
from treadle.core.expressions.values import MISSING, Json, Lookup, Meter, Missing, follow
from treadle.errors import ExpressionError

__all__ = [
    "FUEL",
    "MISSING",
    "Expression",
    "Json",
    "Lookup",
    "Missing",
    "Path",
    "evaluate",
    "follow",
    "holds",
    "lookup_in",
    "parse",
]

# Some ten milliseconds of work at most: enough to search lists of some ten thousand items.
FUEL = 100_000


class Expression:
    """A parsed expression; immutable, equal by its text, and pickled as its text."""

    __slots__ = ("_condition", "_names", "_run", "_size", "_text", "_tree")

    def __init__(self, text: str, tree: Node) -> None:
        self._text = text
        self._tree = tree
        every = [node for node, _ in walk(tree)]
        self._size = len(every)
        self._names = tuple(dict.fromkeys(node.path for node in every if isinstance(node, Read)))
        compiler = Compiler(text)
        self._run = compiler.compile(tree)
        self._condition = compiler.condition(tree)

    @property
    def text(self) -> str:
        """The text as it was written."""
        return self._text

    def names(self) -> tuple[Path, ...]:
        """The paths that an evaluation may look up, each once, in the order of the text.

        A path is the name of a root, then keys and positions: `("lanes", "build", "ok")`. Where a key is computed,
        the path ends before it: `state.items[state.at]` reads `state.items` and `state.at`.
        """
        return self._names

    def __str__(self) -> str:
        """The canonical text: equal for expressions that differ in spaces, quotes and needless parentheses only."""
        return show(self._tree)

    def __repr__(self) -> str:
        return f"parse({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[Callable[[str], Expression], tuple[str]]:
        return parse, (self._text,)

    def run(self, lookup: Lookup, fuel: int, *, condition: bool) -> Json:
        """Evaluate; see `evaluate` and `holds`."""
        meter = Meter(lookup, fuel - self._size)
        if meter.fuel < 0:
            raise ExpressionError(
                "this takes more work than an evaluation may do", code="expression_fuel", source=self._text
            )
        return self._condition(meter) if condition else self._run(meter)


def parse(text: str, *, roots: Collection[str] | None = None) -> Expression:
    """Read an expression.

    Args:
        text: The expression.
        roots: The names that its paths may begin with; None for any.

    Raises:
        ExpressionSyntaxError: the text is wrong; it names every mistake that could be found, each with its place.
    """
    return Expression(text, read(text, roots))


def evaluate(expression: Expression, lookup: Lookup, *, fuel: int = FUEL) -> Json:
    """The value of an expression.

    Args:
        expression: What to evaluate.
        lookup: Gives the value at a path of `expression.names()`, or `MISSING`; `lookup_in` makes one from a dict.
        fuel: How much work may be done: a unit a node, and a unit an item or 64 characters looked at.

    Raises:
        ExpressionError: there is no value; `code` says why.
    """
    return expression.run(lookup, fuel, condition=False)


def holds(expression: Expression, lookup: Lookup, *, fuel: int = FUEL) -> bool:
    """Whether an expression is true as a condition: null, 0, false and blank text are not.

    Raises:
        ExpressionError: there is no value, or it is a list or a dict, which are neither true nor false.
    """
    return expression.run(lookup, fuel, condition=True) is True


def lookup_in(values: Mapping[str, object]) -> Lookup:
    """A lookup of roots by name, each any JSON value."""

    def lookup(path: Path) -> object:
        root, *rest = path
        value = values.get(str(root), MISSING)
        return follow(value, tuple(rest)) if rest else value

    return lookup
