"""Expressions: what they mean, how they are read and printed, and that no text or value can break them."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treadle.core.expressions import MISSING, evaluate, holds, lookup_in, parse
from treadle.core.expressions.functions import FUNCTIONS
from treadle.core.expressions.reading import MAX_DEPTH, MAX_TEXT
from treadle.errors import DefinitionError, ExpressionError, ExpressionSyntaxError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "expressions.md"

VALUES: dict[str, Any] = {
    "state": {
        "count": 2,
        "ratio": 0.5,
        "name": "Ada",
        "blank": "  ",
        "none": None,
        "items": [3, 1, 2],
        "users": [{"name": "bob"}, {"name": "eve"}],
        "odd key": {"in": 1},
        "huge": 10**400,
        "set": {1, 2},
        "sets": [{1, 2}],
        "numbered": {1: 2, "a": 3},
        "nan": math.nan,
    },
    "lanes": {"build": {"ok": True}, "test": {"ok": False}},
}
LOOKUP = lookup_in(VALUES)


def value_of(text: str) -> Any:
    return evaluate(parse(text), LOOKUP)


def same(left: object, right: object) -> bool:
    return type(left) is type(right) and left == right


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # constants
        ("null", None),
        ("None", None),
        ("true", True),
        ("False", False),
        ("0", 0),
        ("2.50", 2.5),
        ("1e3", 1000.0),
        (r"'it\'s \"x\" \\ \n\t\u00e9\ud83d\ude00'", 'it\'s "x" \\ \n\té😀'),
        ("[1, 'a', [],]", [1, "a", []]),
        ("{'a': 1, \"b c\": [2]}", {"a": 1, "b c": [2]}),
        ("{}", {}),
        # paths
        ("state.count", 2),
        ("state['count']", 2),
        ("state.users[1].name", "eve"),
        ("state.users[-1]['name']", "eve"),
        ("state['odd key'].in", 1),
        ("state.items[state.count]", 2),
        ("lanes['bu' + 'ild'].ok", True),
        ("[10, 20][1]", 20),
        ("{'a': {'b': 7}}.a.b", 7),
        # arithmetic
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("7 - 2 - 1", 4),
        ("6 / 2", 3.0),
        ("7 // 2", 3),
        ("-7 // 2", -4),
        ("-7 % 3", 2),
        ("7.5 % 2", 1.5),
        ("1 + 0.5", 1.5),
        ("--1", 1),
        ("-state.count", -2),
        ("'a' + 'b'", "ab"),
        ("[1] + [2]", [1, 2]),
        # comparison
        ("1 == 1.0", True),
        ("1 == true", False),
        ("0 == false", False),
        ("null == false", False),
        ("state.none == null", True),
        ("'1' == 1", False),
        ("[1, {'a': 2}] == [1.0, {'a': 2.0}]", True),
        ("[1, 2] == [1, 3]", False),
        ("[1] == [1, 1]", False),
        ("{'a': 1} == {'b': 1}", False),
        ("[1] != [true]", True),
        ("1 < 1.5", True),
        ("2 >= 2", True),
        ("'a' < 'b'", True),
        ("'b' <= 'a'", False),
        ("2 > 3", False),
        ("1 in state.items", True),
        ("9 not in state.items", True),
        ("true in [1]", False),
        ("'d' in state.name", True),
        ("'build' in lanes", True),
        # logic
        ("true and false", False),
        ("false or 3", True),
        ("not 0", True),
        ("not state.blank", True),
        ("state.name and state.count and state.ratio", True),
        ("null or ''", False),
        ("!false && !(true || false)", False),
        ("!state.none == true", True),
        ("not state.none == true", True),
        ("false and state.nowhere", False),
        ("true or state.nowhere", True),
        ("'yes' if lanes.build.ok else state.nowhere", "yes"),
        ("1 if lanes.test.ok else 2 if lanes.build.ok else 3", 2),
        # functions
        ("abs(-3)", 3),
        ("all([1, 'x'])", True),
        ("any([0, ''])", False),
        ("all([])", True),
        ("any([])", False),
        ("bool(' x ')", True),
        ("coalesce(state.nowhere, state.none, 4)", 4),
        ("coalesce(state.nowhere, state.users[9].name)", None),
        ("contains(state.items, 3)", True),
        ("default(state.nowhere, 5)", 5),
        ("default(state.none, 5)", None),
        ("default(state.count, state.nowhere)", 2),
        ("default(state.users[5].name, 'nobody')", "nobody"),
        ("default(state.users[state.count].name, 'nobody')", "nobody"),
        ("default(lanes['nope' + ''].ok, false)", False),
        ("defined(lanes.build)", True),
        ("defined(lanes.deploy.ok)", False),
        ("defined(state.none.deeper)", False),
        ("defined(state.name.first)", False),
        ("endswith('a.txt', '.txt')", True),
        ("float('2.50')", 2.5),
        ("float(1)", 1.0),
        ("float(true)", 1.0),
        ("int(' -12 ')", -12),
        ("int(2.9)", 2),
        ("int(true)", 1),
        ("keys({'b': 1, 'a': 2})", ["a", "b"]),
        ("len('äb')", 2),
        ("len(state.users)", 2),
        ("len(lanes)", 2),
        ("lower('ABC')", "abc"),
        ("max(1, 2.5, 2)", 2.5),
        ("min(state.items)", 1),
        ("max(['a', 'b'])", "b"),
        ("round(2.5)", 2),
        ("round(2.675, 1)", 2.7),
        ("startswith(state.name, 'A')", True),
        ("str(1) + str(2.0) + str(0.5) + str(null) + str(true) + str('x')", "120.5nulltruex"),
        ("str(1e300)", "1e+300"),
        ("sum(state.items)", 6),
        ("sum([0.1, 0.2, 0.3])", 0.1 + 0.2 + 0.3),
        ("sum([])", 0),
        ("trim('  x ')", "x"),
        ("upper('abc')", "ABC"),
        ("values({'b': 1, 'a': 2})", [2, 1]),
    ],
)
def test_what_expressions_mean(text: str, expected: object) -> None:
    assert same(value_of(text), expected)
    assert same(value_of(str(parse(text))), expected)


@pytest.mark.parametrize(
    ("text", "code", "column", "message"),
    [
        ("state.nowhere", "missing", 1, "state.nowhere has no value here; write default(state.nowhere, ...)"),
        ("1 + nowhere", "missing", 5, "nowhere has no value"),
        ("state.users[state.count].name", "missing", 1, "has no value"),
        ("state.count.deeper", "missing", 1, "state.count.deeper has no value"),
        ("state.items['a' + 'b']", "type", 1, "the key of a list is an integer, not a text"),
        ("lanes[1 + 1]", "type", 1, "the key of a dict is a text, not an integer"),
        ("state.items[true]", "type", 1, "the key of a list is an integer, not a boolean"),
        ("'abc'[0]", "type", 1, "a text has no items"),
        ("state.set", "type", 1, "state.set is a Python set; expressions read JSON values"),
        ("default(state.set, 1)", "type", 9, "is a Python set"),
        ("[state][0].set", "type", 1, "is a Python set"),
        ("state.sets == [1]", "type", 1, "a Python set is no JSON value"),
        ("1 + 'a'", "type", 1, "cannot add an integer and a text; make it a text by str()"),
        ("1 + null", "type", 1, "cannot add an integer and null"),
        ("true + 1", "type", 1, "cannot add a boolean and an integer"),
        ("'a' * 3", "type", 1, "cannot multiply a text and an integer"),
        ("-'a'", "type", 1, "cannot negate a text"),
        ("not [1]", "type", 5, "a list is neither true nor false"),
        ("1 if {} else 2", "type", 6, "a dict is neither true nor false"),
        ("1 < 'a'", "type", 1, "an integer and a text have no order"),
        ("null < 1", "type", 1, "null and an integer have no order"),
        ("[1] < [2]", "type", 1, "a list and a list have no order"),
        ("1 in 2", "type", 1, "nothing can be in an integer"),
        ("1 in 'a1'", "type", 1, "only a text can be in a text, not an integer"),
        ("len(1)", "type", 1, "len takes a text or a list or a dict, not an integer"),
        ("min(1, 'a')", "type", 1, "min compares numbers, or texts; not an integer with a text"),
        ("max([true])", "type", 1, "max compares numbers, or texts; not a boolean"),
        ("keys(state.numbered)", "type", 1, "keys takes a dict whose keys are texts, not an integer"),
        ("values(state.numbered)", "type", 1, "values takes a dict whose keys are texts"),
        ("sum(['a'])", "type", 1, "sum takes an integer or a float, not a text"),
        ("any([[]])", "type", 1, "a list is neither true nor false"),
        ("str([1])", "type", 1, "a list has no text"),
        ("upper(1)", "type", 1, "upper takes a text, not an integer"),
        ("int(null)", "type", 1, "int takes"),
        ("1 / 0", "value", 1, "division by zero"),
        ("2 + 1.5 % 0.0", "value", 5, "division by zero"),
        ("min([])", "value", 1, "min of an empty list"),
        ("int('1_000')", "value", 1, "'1_000' is no integer"),
        ("float('nan')", "value", 1, "'nan' is no number"),
        ("round(1.5, 99)", "value", 1, "round keeps 0 to 15 digits, not 99"),
        ("9223372036854775807 + 1", "overflow", 1, "an integer is beyond 9223372036854775807"),
        ("state.huge * state.huge", "overflow", 1, "an integer is beyond"),
        ("str(state.huge)", "overflow", 1, "an integer is beyond"),
        ("float(state.huge)", "overflow", 1, "an integer is beyond"),
        ("round(state.huge)", "overflow", 1, "an integer is beyond"),
        ("int('9999999999999999999')", "overflow", 1, "an integer is beyond"),
        ("int(1e300)", "overflow", 1, "an integer is beyond"),
        ("float('1e999')", "overflow", 1, "too large for a float"),
        ("int(state.nan)", "overflow", 1, "too large for a float"),
        ("1e308 * 10", "overflow", 1, "too large for a float"),
    ],
)
def test_what_has_no_value_says_why_and_where(text: str, code: str, column: int, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        value_of(text)

    assert caught.value.code == f"expression_{code}"
    assert (caught.value.line, caught.value.column) == (1, column)
    assert message in str(caught.value)
    assert str(caught.value).endswith("\n    " + " " * (column - 1) + "^")


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("", [(1, "expected a value, the expression ends")]),
        ("state.count <", [(14, "expected a value, the expression ends")]),
        ("state.count = 3", [(13, "'=' means nothing here; compare by ==")]),
        ("a < b < c", [(7, "comparisons do not chain; join two of them by `and`")]),
        ("a not in b not in c", [(12, "comparisons do not chain; join two of them by `and`")]),
        ("a b c", [(3, "expected an operator, found 'b'")]),
        ("a)", [(2, "expected an operator, found ')'")]),
        ("a) and (b", [(2, "expected an operator, found ')'"), (10, "expected ), the expression ends")]),
        ("(a and", [(7, "expected a value, the expression ends")]),
        ("a if b", [(7, "expected `else` and the other value, the expression ends")]),
        ("a.", [(3, "expected a key behind the dot, the expression ends")]),
        ("a.5", [(3, "expected a key behind the dot, found '5'")]),
        ("a[]", [(3, "expected a value, found ']'")]),
        ("a[1", [(4, "expected ], the expression ends")]),
        ("x and and y or * 2", [(7, "expected a value, found 'and'"), (16, "expected a value, found '*'")]),
        ("[1, , 2, }", [(5, "expected a value, found ','"), (10, "expected a value, found '}'")]),
        ("max(1 2, 3 4)", [(7, "expected , or ), found '2'"), (12, "expected , or ), found '4'")]),
        ("len() + abs(1, 2)", [(1, "len takes 1 argument, not 0"), (9, "abs takes 1 argument, not 2")]),
        ("round(1, 2, 3) + max()", [(1, "round takes 1 or 2 arguments, not 3"), (18, "max takes 1 or more arguments")]),
        ("foo(bar(1))", [(1, "unknown function 'foo'; there are: abs, all"), (5, "unknown function 'bar'")]),
        ("default(1, 2)", [(9, "the first argument of default is a path such as state.count")]),
        ("a + not b", [(5, "put `not` and its operand in parentheses here, or write !")]),
        ("{'a' 1, b: 2, 'c': 1, 'c': 3}", [(6, "expected :"), (9, "a key of a dict"), (23, "written twice")]),
        ("'abc", [(1, "this text does not end on its line")]),
        ("'abc\n' + 1", [(1, "this text does not end on its line"), (6, "this text does not end on its line")]),
        (r"'\q' + '\ud800'", [(2, "unknown escape \\q"), (8, "half of a surrogate pair")]),
        ("$x + füße & y | 2 ^ 3 # ~", [
            (1, "'$' means nothing here; names are written plainly"),
            (7, "'üße' means nothing here; write such a key in brackets and quotes"),
            (11, "'&' means nothing here; write and"),
            (15, "'|' means nothing here; write or"),
            (19, "'^' means nothing here; there is no power operator"),
            (23, "'#' means nothing here"),
            (25, "'~' means nothing here"),
        ]),
        ("007 + 1e999 + 99999999999999999999", [(1, "leading zeros"), (7, "too large"), (15, "too large")]),
    ],
)  # fmt: skip
def test_all_mistakes_of_a_text_are_found_with_their_places(text: str, mistakes: list[tuple[int, str]]) -> None:
    with pytest.raises(ExpressionSyntaxError) as caught:
        parse(text)

    found = caught.value.mistakes
    assert [offset + 1 for offset, _ in found] == [column for column, _ in mistakes], found
    for (_, message), (_, expected) in zip(found, mistakes, strict=True):
        assert expected in message
    assert caught.value.column == mistakes[0][0]
    assert caught.value.source == text
    assert isinstance(caught.value, DefinitionError)


def test_a_mistake_is_pointed_at_in_its_own_line() -> None:
    with pytest.raises(ExpressionSyntaxError) as caught:
        parse("state.count > 1\n  and state.name = 'x'")

    assert (caught.value.line, caught.value.column) == (2, 18)
    assert str(caught.value).splitlines()[1:] == [
        "line 2, column 18: '=' means nothing here; compare by ==",
        "      and state.name = 'x'",
        "                     ^",
    ]


def test_a_long_line_is_cut_around_its_mistake() -> None:
    with pytest.raises(ExpressionSyntaxError) as caught:
        parse("a or " * 500 + "=" + " or a" * 500)

    assert max(len(line) for line in str(caught.value).splitlines()) < 120


def test_names_outside_the_roots_are_mistakes() -> None:
    assert parse("state.count < len(rows)", roots={"state", "rows"}).names() == (("state", "count"), ("rows",))

    with pytest.raises(ExpressionSyntaxError) as caught:
        parse("stat.count < rows and default(lane.x, 1)", roots={"state", "rows"})

    assert [message for _, message in caught.value.mistakes] == [
        "unknown name 'stat'; known here: rows, state",
        "unknown name 'lane'; known here: rows, state",
    ]


def test_the_paths_that_are_read_are_known_before() -> None:
    expression = parse(
        "state.items[state.at].name == lanes['a b'].rows[-1] or default(state.x, state.items) and defined(row.failed)"
    )

    assert expression.names() == (
        ("state", "items"),
        ("state", "at"),
        ("lanes", "a b", "rows", -1),
        ("state", "x"),
        ("row", "failed"),
    )


def test_an_evaluation_looks_up_only_its_names() -> None:
    asked: list[object] = []

    def lookup(path: tuple[str | int, ...]) -> object:
        asked.append(path)
        return MISSING

    expression = parse("default(a.b[0], 1) + coalesce(c['d'], 2)")

    assert evaluate(expression, lookup) == 3
    assert tuple(asked) == expression.names()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("((a))", "a"),
        ("a&&b||!c", "a and b or not c"),
        ("!a == b", "(not a) == b"),
        ("not (a == b)", "not a == b"),
        ("(a or b) or c", "(a or b) or c"),
        ("a and (b or c)", "a and (b or c)"),
        ("a - (b - c) - d", "a - (b - c) - d"),
        ("-(a + b) * -c", "-(a + b) * -c"),
        ("(a < b) == (c < d)", "(a < b) == (c < d)"),
        ("(a if b else c) if d else (e if f else g)", "(a if b else c) if d else e if f else g"),
        ("a['b']['c d'][0][-1]", 'a.b["c d"][0][-1]'),
        ("(a + b)['c'][d]", "(a + b).c[d]"),
        ("(not a) + 1", "(not a) + 1"),
        ("len ( a , )", "len(a)"),
        ("'a\\'b'", '"a\'b"'),
    ],
)
def test_the_canonical_text(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert str(parse(canonical)) == canonical


def test_an_expression_is_its_text() -> None:
    expression = parse("state.count  < 3")

    copy = pickle.loads(pickle.dumps(expression))  # noqa: S301 - made in the same line

    assert copy == expression
    assert hash(copy) == hash(expression)
    assert copy.text == "state.count  < 3"
    assert repr(copy) == "parse('state.count  < 3')"
    assert expression != parse("state.count < 3")
    assert expression != "state.count  < 3"


def test_conditions_are_true_or_false() -> None:
    assert holds(parse("state.name"), LOOKUP) is True
    assert holds(parse("state.none"), LOOKUP) is False
    assert holds(parse("state.ratio"), LOOKUP) is True
    with pytest.raises(ExpressionError, match="a list is neither true nor false"):
        holds(parse("state.items"), LOOKUP)


@pytest.mark.parametrize("text", ["(" * 200 + "a" + ")" * 200, "[" * 5_000, "-" * 5_000 + "1", "not " * 2_000 + "a",
                                  "a" + "[0" * 200, "a if b else " * 500 + "c", "a + " * 500 + "a",
                                  "x[y]" + "[y]" * 200, "1" + " == (1" * 300])  # fmt: skip
def test_what_nests_too_deep_is_a_mistake(text: str) -> None:
    with pytest.raises(ExpressionSyntaxError, match=f"at most {MAX_DEPTH} levels deep"):
        parse(text)


def test_what_is_joined_by_and_or_or_may_be_long() -> None:
    assert value_of(" or ".join(["false"] * 1_000 + ["state.count == 2"])) is True
    assert value_of("len([" + ", ".join(["1"] * 3_000) + "])") == 3_000


def test_a_text_that_is_too_long_is_a_mistake() -> None:
    with pytest.raises(ExpressionSyntaxError, match=f"at most {MAX_TEXT} characters"):
        parse("a " * MAX_TEXT)


@pytest.mark.parametrize(
    "text",
    ["a == b", "c in a", "min(a)", "max(a)", "sum(a)", "any(a)", "all(a)", "a + a", "keys(d)", "values(d)", "d == e",
     "t + t", "'x' in t", "lower(t)", "1 + 2 + 3 + 4 + 5 + 6 + 7"],
)  # fmt: skip
def test_work_is_paid_for(text: str) -> None:
    entries = {str(number): number for number in range(1_000)}
    values = {"a": [0] * 1_000, "b": [0] * 1_000, "c": 1, "d": entries, "e": dict(entries), "t": "x" * 64_000}
    expression = parse(text)

    evaluate(expression, lookup_in(values))
    with pytest.raises(ExpressionError) as caught:
        evaluate(expression, lookup_in(values), fuel=10)

    assert caught.value.code == "expression_fuel"


def test_a_value_that_holds_itself_ends_by_its_fuel() -> None:
    loop: list[Any] = []
    loop.append(loop)
    other: list[Any] = []
    other.append(other)

    with pytest.raises(ExpressionError) as caught:
        evaluate(parse("a == b"), lookup_in({"a": loop, "b": other}))

    assert caught.value.code == "expression_fuel"


def test_every_function_is_documented() -> None:
    documented = re.findall(r"^\| `(\w+)\(", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert sorted(documented) == sorted(FUNCTIONS)


# Properties

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**500),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["a", "b", "c"])
LEAVES = st.one_of(
    NAMES,
    st.sampled_from(["null", "true", "false"]),
    st.integers(0, 2**63 - 1).map(str),
    st.floats(0, 1e308).map(repr),
    st.text(max_size=5).filter(lambda text: "\\" not in text and "'" not in text and text.isprintable()).map(repr),
)


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    binary = st.sampled_from(
        ["and", "or", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "+", "-", "*", "/", "//", "%", "&&", "||"]
    )
    two = sorted(name for name, function in FUNCTIONS.items() if function.least <= 2 <= function.most)
    one = sorted(name for name, function in FUNCTIONS.items() if function.least == 1 and not function.reads_first)
    return st.one_of(
        st.tuples(inner, binary, inner).map(lambda parts: f"({parts[0]}) {parts[1]} ({parts[2]})"),
        st.tuples(st.sampled_from(["-", "not ", "!"]), inner).map(lambda parts: f"{parts[0]}({parts[1]})"),
        st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]}) if ({parts[1]}) else ({parts[2]})"),
        st.tuples(st.sampled_from(one), inner).map(lambda parts: f"{parts[0]}({parts[1]})"),
        st.tuples(st.sampled_from(two), NAMES, inner).map(lambda parts: f"{parts[0]}({parts[1]}.x, {parts[2]})"),
        st.tuples(inner, inner).map(lambda parts: f"({parts[0]})[{parts[1]}]"),
        st.tuples(inner, st.sampled_from(["x", "in", "_1"])).map(lambda parts: f"({parts[0]}).{parts[1]}"),
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        st.dictionaries(st.sampled_from(["'k'", "'l m'"]), inner).map(
            lambda parts: "{" + ", ".join(f"{key}: {value}" for key, value in parts.items()) + "}"
        ),
    )


EXPRESSIONS = st.recursive(LEAVES, _larger, max_leaves=12)
WORDS = "a b.c [ ] ( ) { } , : . + - * / // % ! == < and or not in if else 'x' \" 1 0.5 len default"
SCRAPS = st.lists(st.sampled_from(WORDS.split()) | st.text(max_size=3), max_size=25).map(" ".join)


@given(st.text() | SCRAPS)
@example("\ud800")
@example("'\ud800'")
def test_no_text_raises_anything_but_its_error(text: str) -> None:
    mistakes: list[tuple[int, str]] = []
    canonical = ""

    try:
        canonical = str(parse(text))
    except ExpressionSyntaxError as error:
        mistakes = error.mistakes

    assert bool(canonical) is not bool(mistakes)
    assert all(0 <= offset <= len(text) for offset, _ in mistakes)
    assert not canonical or str(parse(canonical)) == canonical


@given(EXPRESSIONS)
def test_printing_and_reading_are_inverse(text: str) -> None:
    expression = parse(text)

    again = parse(str(expression))

    assert str(again) == str(expression)
    assert again.names() == expression.names()


def _outcome(text: str, values: dict[str, Any], fuel: int = 1_000) -> str:
    try:
        return repr(evaluate(parse(text), lookup_in(values), fuel=fuel))
    except ExpressionError as error:
        return error.code


@given(EXPRESSIONS, st.fixed_dictionaries({}, optional={"a": JSON_VALUES, "b": JSON_VALUES, "c": JSON_VALUES}))
def test_every_evaluation_ends_with_a_value_or_its_error(text: str, values: dict[str, Any]) -> None:
    outcome = _outcome(text, values)

    assert outcome == _outcome(text, values)
    assert outcome == _outcome(str(parse(text)), values)


@given(EXPRESSIONS, st.fixed_dictionaries({"a": JSON_VALUES, "b": JSON_VALUES, "c": JSON_VALUES}))
def test_more_fuel_changes_no_other_outcome(text: str, values: dict[str, Any]) -> None:
    little = _outcome(text, values, fuel=15)

    assert little in ("expression_fuel", _outcome(text, values))


@given(JSON_VALUES, JSON_VALUES)
def test_equality_is_symmetric_and_membership_follows_from_it(left: object, right: object) -> None:
    lookup = lookup_in({"a": left, "b": right})

    found = evaluate(parse("a == b"), lookup)

    assert found == evaluate(parse("b == a"), lookup)
    assert found == evaluate(parse("a in [b]"), lookup)
    assert found != evaluate(parse("a != b"), lookup)


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.integers(-(2**63) + 1, 2**63 - 1))
def test_integers_are_pythons_within_64_bits(left: int, right: int) -> None:
    lookup = lookup_in({"a": left, "b": right})

    for operator, expected in (("+", left + right), ("-", left - right), ("*", left * right)):
        outcome = _outcome(f"a {operator} b", {"a": left, "b": right})
        assert outcome == (repr(expected) if abs(expected) < 2**63 else "expression_overflow")
    if right:
        assert evaluate(parse("a // b * b + a % b"), lookup) == left if abs(left) < 2**62 else True
