"""The canonical form of JSON, beside the RFC's own examples and another implementation."""

from __future__ import annotations

import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.canonical import canonical, digest
from treadle.core.json_text import read_json
from treadle.errors import EncodeError

safe_integers = st.integers(-(2**53), 2**53)
numbers = safe_integers | st.floats(allow_nan=False, allow_infinity=False)
trees = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(trees)
def test_it_is_what_another_implementation_writes(tree: Any) -> None:
    # That one takes 2**53 - 1 for the last safe integer; 2**53 is exact as well, and the codec stores it untagged.
    if "9007199254740992" not in json.dumps(tree):
        assert canonical(tree) == rfc8785.dumps(tree)


@given(trees)
def test_what_was_read_back_has_the_same_form(tree: Any) -> None:
    assert canonical(read_json(canonical(tree).decode()).tree) == canonical(tree)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # The table of RFC 8785, appendix B.
        (5e-324, "5e-324"),
        (-5e-324, "-5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (9007199254740992, "9007199254740992"),
        (295147905179352830000.0, "295147905179352830000"),
        (9.999999999999997e22, "9.999999999999997e+22"),
        (1e23, "1e+23"),
        (1.0000000000000001e23, "1.0000000000000001e+23"),
        (999999999999999700000.0, "999999999999999700000"),
        (1e21, "1e+21"),
        (9.999999999999997e-7, "9.999999999999997e-7"),
        (0.000001, "0.000001"),
        (333333333.3333332, "333333333.3333332"),
        (-0.0000033333333333333333, "-0.0000033333333333333333"),
        (-0.0, "0"),
        (1.0, "1"),
        (-1.5, "-1.5"),
    ],
)
def test_numbers_are_written_as_ecmascript_does(value: float, text: str) -> None:
    assert canonical(value).decode() == text


def test_members_are_ordered_by_utf_16_and_nothing_is_blank() -> None:
    tree = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": [True, None, {}]}

    assert canonical(tree).decode() == '{"\\r":2,"1":4,"\x80":6,"ö":[true,null,{}],"€":1,"😀":5,"\ufb33":3}'


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"a": [0, float("nan")]}, "$.a[1]"),
        ([float("inf")], "$[0]"),
        ({"a": {"b": 2**53 + 1}}, "$.a.b"),
        ([b"x"], "$[0]"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_readers_disagree_about_is_refused_with_its_place(tree: Any, place: str) -> None:
    with pytest.raises(EncodeError, match=r".") as caught:
        canonical(tree)

    assert place in str(caught.value)


def test_the_hash_names_its_algorithm() -> None:
    assert digest({}) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
