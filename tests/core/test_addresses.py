"""Ids and addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.addresses import MAX_ID_BYTES, check_id, child, decode_id, encode_id
from treadle.errors import DefinitionError

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=100)


@given(TEXT)
def test_an_encoded_id_is_one_segment_and_is_read_back(text: str) -> None:
    segment = encode_id(check_id(text))

    assert not set(segment) & set("/#[]~")
    assert decode_id(segment) == text


@given(TEXT, TEXT)
def test_different_ids_have_different_segments(one: str, other: str) -> None:
    assert (encode_id(one) == encode_id(other)) == (one == other)


@pytest.mark.parametrize("good", ["a", " ", "../x", "x" * MAX_ID_BYTES, "é" * 256, "🦜", "​", "a/b#c[1]~%"])
def test_any_text_may_be_an_id(good: str) -> None:
    assert check_id(good) == good


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("", "has 0 bytes"),
        ("x" * 513, "has 513 bytes"),
        ("é" * 257, "has 514 bytes"),
        ("a" * 10_000, r"aaa\.\.\.' has 10000 bytes"),
        ("a\n", "control character"),
        ("\x7f", "control character"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_what_is_no_id_is_named(bad: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        check_id(bad, "step id")


def test_the_root_scope_is_the_empty_address() -> None:
    assert child("", "a") == "a"
    assert child("a", "b") == "a/b"
