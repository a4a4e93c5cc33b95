"""Arguments of planned steps become slots: constants, references, and containers with both."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from tests.authoring.plans_kit import anything, blocks, every, fetch, inc, links, plan, read, total

from treadle.authoring.bound import or_default, signal_value
from treadle.authoring.codec import decode
from treadle.authoring.decorators import step, workflow
from treadle.authoring.registry import Registry
from treadle.core.plan import (
    Const,
    ListOf,
    MapOf,
    Ref,
    SignalValue,
    encode_plan,
)


class Renamed(msgspec.Struct, rename="camel"):
    page_count: int


class Pair(NamedTuple):
    left: int
    right: str


@step
def renamed() -> Renamed:
    return Renamed(1)


@step
def pair() -> Pair:
    return Pair(1, "x")


def test_literals_are_constants_and_bounds_are_refs() -> None:
    planned = plan(lambda: links.bind(fetch.bind("http://x")))

    assert blocks(planned)["fetch"].slots == {"url": Const(0)}
    assert blocks(planned)["links"].slots == {"page": Ref("fetch")}
    assert planned.constants == ['"http://x"']
    assert planned.plan.output == Ref("links")
    assert planned.result.declared == list[str]


def test_plans_that_differ_in_constants_only_are_one_plan() -> None:
    def flow(a: int, b: int) -> int:
        return total.bind([inc.bind(a), b, a])

    made = workflow(name="w", registry=Registry())(flow)

    assert encode_plan(made.plan(1, 2).plan) == encode_plan(made.plan(1, 1).plan)


def test_refs_inside_containers_become_lists_and_maps() -> None:
    def flow() -> object:
        x = inc.bind(1)
        return anything.bind([x, 2, (x, [3])], {"a": x, "b": {"c": [4]}})

    planned = plan(flow)

    slots = blocks(planned)["anything"].slots
    assert slots["x"] == ListOf([Ref("inc"), Const(1), ListOf([Ref("inc"), Const(2)])])
    assert slots["y"] == MapOf({"a": Ref("inc"), "b": Const(3)})
    assert planned.constants == ["1", "2", "[3]", '{"c":[4]}']


def test_a_dict_with_keys_that_are_no_text_keeps_them_beside_refs() -> None:
    planned = plan(lambda: anything.bind({1: inc.bind(1), datetime(2024, 1, 1, tzinfo=UTC): 2}))

    slot = blocks(planned)["anything"].slots["x"]
    assert isinstance(slot, MapOf)
    tagged = slot.items["$treadle"]
    assert isinstance(tagged, ListOf)
    assert decode(planned.constants[0]) == 1
    pairs = tagged.items[1]
    assert isinstance(pairs, ListOf)
    assert [isinstance(item, ListOf) and item.items[1] for item in pairs.items] == [Ref("inc"), Const(4)]


def test_text_that_looks_like_our_markers_passes_unchanged() -> None:
    odd: list[Any] = [
        {"slot": "ref", "step": "x"},
        {"$treadle": ["bytes", "aGk="]},
        "=1",
        "@sha",
        "<result of step 'x'>",
    ]

    def flow() -> object:
        return [anything.bind(value) for value in odd] + [anything.bind([value, inc.bind(1)]) for value in odd]

    planned = plan(flow)

    made = list(blocks(planned).values())
    assert [read(block.slots["x"], planned.constants) for block in made[: len(odd)]] == odd
    lists = [block.slots["x"] for block in made if isinstance(block.slots.get("x"), ListOf)]
    assert [read(slot.items[0], planned.constants) for slot in lists if isinstance(slot, ListOf)] == odd


def test_a_literal_dict_with_the_tags_key_keeps_it_beside_a_ref() -> None:
    planned = plan(lambda: anything.bind({"$treadle": inc.bind(1)}))

    slot = blocks(planned)["anything"].slots["x"]
    assert isinstance(slot, MapOf)
    assert slot.items["$treadle"] == ListOf([Const(1), ListOf([ListOf([Const(2), Ref("inc")])])])
    assert planned.constants[1:] == ['"dict"', '"$treadle"']


def test_every_kind_of_parameter_has_its_slot() -> None:
    def flow() -> object:
        x = inc.bind(1)
        every.bind(1, 2)
        every.bind(1, b=x)
        return every.bind(1, x, 3, x, c=5, more=6, a=x)

    planned = plan(flow)

    last = blocks(planned)["every-3"].slots
    assert list(blocks(planned)["every"].slots) == ["a", "b"]
    assert blocks(planned)["every-2"].slots["b"] == Ref("inc")
    assert last["rest"] == ListOf([Const(5), Ref("inc")])
    assert last["more"] == MapOf({"more": Const(7), "a": Ref("inc")})
    assert last["c"] == Const(6)


def test_a_change_after_binding_changes_nothing() -> None:
    def flow() -> object:
        numbers = [1, 2]
        made = total.bind(numbers)
        numbers.clear()
        return made

    assert plan(flow).constants == ["[1,2]"]


def test_a_default_is_a_constant_of_the_ref() -> None:
    def flow() -> object:
        page = fetch.bind("u")
        return [anything.bind(or_default(page, None)), anything.bind(or_default(page.url, "nowhere"))]

    planned = plan(flow)

    assert blocks(planned)["anything"].slots["x"] == Ref("fetch", default=1)
    assert blocks(planned)["anything-2"].slots["x"] == Ref("fetch", ("url",), 2)
    assert planned.constants[1:] == ["null", '"nowhere"']


def test_parts_of_a_result_are_paths() -> None:
    planned = plan(lambda: anything.bind(fetch.bind("u").links[-1], anything.bind()["a b"][0].c))

    assert blocks(planned)["anything-2"].slots == {
        "x": Ref("fetch", ("links", -1)),
        "y": Ref("anything", ("a b", 0, "c")),
    }


def test_a_path_uses_the_stored_names_of_fields() -> None:
    def flow() -> object:
        return [inc.bind(renamed.bind().page_count), inc.bind(pair.bind().left), anything.bind(pair.bind()[1])]

    planned = blocks(plan(flow))

    assert planned["inc"].slots["x"] == Ref("renamed", ("pageCount",))
    assert planned["inc-2"].slots["x"] == Ref("pair", (0,))
    assert planned["anything"].slots["x"] == Ref("pair-2", (1,))


def test_the_value_of_a_signal_is_an_argument() -> None:
    planned = plan(lambda: inc.options(signals="go").bind(signal_value("amount", type=int)))

    assert blocks(planned)["inc"].slots == {"x": SignalValue("amount")}
    assert blocks(planned)["inc"].signals == ("go",)


def test_the_output_may_hold_planned_values_anywhere() -> None:
    planned = plan(lambda: {"n": inc.bind(1), "all": [inc.bind(2), 7]})

    assert planned.plan.output == MapOf({"n": Ref("inc"), "all": ListOf([Ref("inc-2"), Const(2)])})
    assert planned.result.decode("[1]") == [1]


def test_a_plain_output_is_a_constant_and_none_is_no_output() -> None:
    def flow(value: object) -> Callable[[], object]:
        return lambda: (inc.bind(1), value)[1]

    assert plan(flow("done")).constants == ["1", '"done"']
    assert plan(flow(None)).plan.output is None
