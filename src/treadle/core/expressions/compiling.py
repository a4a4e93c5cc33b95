"""From a tree to nested functions: each node becomes one, made once and called at every evaluation.

A node costs one unit of fuel, paid for the whole tree at the start of an evaluation; work that depends on the size of
values is paid for as it is done. So no evaluation can run longer than its fuel, whatever the values are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from treadle.core.expressions import nodes
from treadle.core.expressions.functions import FUNCTIONS
from treadle.core.expressions.nodes import Node, show
from treadle.core.expressions.values import (
    ARITHMETIC,
    KINDS,
    MISSING,
    Meter,
    Refusal,
    comparable,
    contains,
    equal,
    item,
    kind_of,
    negative,
    truth,
    type_refusal,
)
from treadle.errors import ExpressionError

Run = Callable[[Meter], Any]

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _unequal(meter: Meter, left: object, right: object) -> bool:
    return not equal(meter, left, right)


def _is_in(meter: Meter, part: object, whole: object) -> bool:
    return contains(meter, whole, part)


def _is_not_in(meter: Meter, part: object, whole: object) -> bool:
    return not contains(meter, whole, part)


_COMPARISONS: dict[str, Callable[[Meter, Any, Any], bool]] = {
    "==": equal,
    "!=": _unequal,
    "in": _is_in,
    "not in": _is_not_in,
}


class Compiler:
    """Compiles the trees of one text; the text is kept for the places of errors."""

    def __init__(self, source: str) -> None:
        self.source = source

    def compile(self, node: Node) -> Run:
        """The function that evaluates a tree."""
        match node:
            case nodes.Constant(value=value):
                return lambda _: value
            case nodes.Read():
                return self._read(node)
            case nodes.Item():
                return self._present(node)
            case nodes.Compare():
                return self._compare(node)
            case nodes.Compute(operator=name):
                return self._applied(node, ARITHMETIC[name], (node.left, node.right))
            case nodes.Call():
                return self._call(node)
            case _:
                return self._compile_others(node)

    def _compile_others(self, node: Node) -> Run:
        match node:
            case nodes.Not(operand=operand):
                holds = self.condition(operand)
                return lambda meter: not holds(meter)
            case nodes.Negative(operand=operand):
                return self._applied(node, negative, (operand,))
            case nodes.All() | nodes.Any():
                return self._joined(node)
            case nodes.Choice():
                return self._choice(node)
            case nodes.Items(items=items):
                runs = [self.compile(each) for each in items]
                return lambda meter: [run(meter) for run in runs]
            case nodes.Entries(entries=entries):
                made = [(key, self.compile(value)) for key, value in entries]
                return lambda meter: {key: run(meter) for key, run in made}
            case _:
                raise AssertionError(node)

    def condition(self, node: Node) -> Callable[[Meter], bool]:
        """The function that tells whether what a tree gives is true."""
        run = self.compile(node)
        if isinstance(node, nodes.Compare | nodes.Not | nodes.All | nodes.Any):
            return run

        def holds(meter: Meter) -> bool:
            value = run(meter)
            if value is True or value is False:
                return value
            try:
                return truth(value)
            except Refusal as refusal:
                raise self.error(node, refusal) from None

        return holds

    def error(self, node: Node, refusal: Refusal) -> ExpressionError:
        """A refusal at the place of a node."""
        return ExpressionError(str(refusal), code=refusal.code, source=self.source, offset=node.at)

    def _missing(self, node: Node) -> ExpressionError:
        name = show(node)
        message = f"{name} has no value here; write default({name}, ...) where that is expected"
        return self.error(node, Refusal("expression_missing", message))

    def _foreign(self, node: Node, value: object) -> ExpressionError:
        return self.error(node, type_refusal(f"{show(node)} is {kind_of(value)}; expressions read JSON values"))

    # Reading

    def _read(self, node: nodes.Read) -> Run:
        path = node.path

        def read(meter: Meter) -> Any:
            value = meter.lookup(path)
            if type(value) in KINDS:
                return value
            raise self._missing(node) if value is MISSING else self._foreign(node, value)

        return read

    def _present(self, node: nodes.Item) -> Run:
        find = self._find(node)

        def read(meter: Meter) -> Any:
            value = find(meter)
            if value is MISSING:
                raise self._missing(node)
            return value

        return read

    def _find(self, node: Node) -> Run:
        """Like `compile`, but a path that leads to nothing gives `MISSING`."""
        if isinstance(node, nodes.Read):
            return self._find_read(node)
        if not isinstance(node, nodes.Item):
            return self.compile(node)
        base, key = self._find(node.base), self.compile(node.key)

        def find(meter: Meter) -> Any:
            whole = base(meter)
            if whole is MISSING or whole is None:
                return MISSING
            try:
                value = item(whole, key(meter))
            except Refusal as refusal:
                raise self.error(node, refusal) from None
            if type(value) in KINDS or value is MISSING:
                return value
            raise self._foreign(node, value)

        return find

    def _find_read(self, node: nodes.Read) -> Run:
        path = node.path

        def find(meter: Meter) -> Any:
            value = meter.lookup(path)
            if type(value) in KINDS or value is MISSING:
                return value
            raise self._foreign(node, value)

        return find

    # Operators

    def _applied(self, node: Node, apply: Callable[..., Any], operands: tuple[Node, ...]) -> Run:
        """A function over evaluated operands, its refusals placed at the node."""
        runs = [self.compile(operand) for operand in operands]
        if len(runs) == 2:
            left, right = runs

            def run_two(meter: Meter) -> Any:
                one, other = left(meter), right(meter)
                try:
                    return apply(meter, one, other)
                except Refusal as refusal:
                    raise self.error(node, refusal) from None

            return run_two

        def run_all(meter: Meter) -> Any:
            values = [run(meter) for run in runs]
            try:
                return apply(meter, *values)
            except Refusal as refusal:
                raise self.error(node, refusal) from None

        return run_all

    def _compare(self, node: nodes.Compare) -> Run:
        apply = _COMPARISONS.get(node.operator)
        return self._order(node) if apply is None else self._applied(node, apply, (node.left, node.right))

    def _order(self, node: nodes.Compare) -> Run:
        left, right, order = self.compile(node.left), self.compile(node.right), _ORDERS[node.operator]

        def compare(meter: Meter) -> bool:
            one, other = left(meter), right(meter)
            if comparable(one, other):
                return order(one, other)
            message = f"{kind_of(one)} and {kind_of(other)} have no order; {node.operator} compares numbers, or texts"
            raise self.error(node, type_refusal(message))

        return compare

    def _joined(self, node: nodes.All | nodes.Any) -> Run:
        conditions = [self.condition(operand) for operand in node.operands]
        # The value that decides at once.
        decisive = isinstance(node, nodes.Any)

        def joined(meter: Meter) -> bool:
            for condition in conditions:
                if condition(meter) is decisive:
                    return decisive
            return not decisive

        return joined

    def _choice(self, node: nodes.Choice) -> Run:
        then, otherwise = self.compile(node.then), self.compile(node.otherwise)
        condition = self.condition(node.condition)
        return lambda meter: then(meter) if condition(meter) else otherwise(meter)

    def _call(self, node: nodes.Call) -> Run:
        apply = FUNCTIONS[node.function].apply
        if apply is not None:
            return self._applied(node, apply, node.arguments)
        finds = [self._find(argument) for argument in node.arguments]
        if node.function == "defined":
            return lambda meter: finds[0](meter) is not MISSING
        if node.function == "default":
            fallback = self.compile(node.arguments[1])

            def default(meter: Meter) -> Any:
                value = finds[0](meter)
                return fallback(meter) if value is MISSING else value

            return default

        def coalesce(meter: Meter) -> Any:
            for find in finds:
                value = find(meter)
                if value is not None and value is not MISSING:
                    return value
            return None

        return coalesce
