"""Random plans: steps and groups, and blocks that open their content while the run goes on."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from treadle.core.plan import (
    Block,
    Body,
    Branch,
    Child,
    Choose,
    Const,
    Gather,
    Group,
    Holds,
    Index,
    Item,
    LaneValue,
    ListOf,
    MapOf,
    Move,
    Phase,
    PhaseInfo,
    Phases,
    Poll,
    Predicate,
    Ref,
    RetryPolicy,
    Rule,
    SignalValue,
    StateValue,
    Step,
    Undo,
)

SIGNALS = ["go", "ok"]
LABELS = ["red", "blue"]
# Handles of the run head's constants.
CONSTANTS = [0, True, False, 5, [1, 2, 3], [], 3]
LIST, EMPTY, COUNT = 4, 5, 6
UNDOS = [
    None,
    None,
    Undo(action="undo"),
    Undo(action="undo", prepare="prepare"),
    Undo(action="undo", prepare="prepare", reconcile="check", resource="disk"),
    Undo(action="undo", resource="disk"),
]


# -- random plans ----------------------------------------------------------------------------------------------------


def names_from(names: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), max_size=2, unique=True).map(tuple) if names else st.just(())


@st.composite
def refs(draw: st.DrawFn, names: list[str]) -> Ref:
    return Ref(step=draw(st.sampled_from(names)), default=draw(st.sampled_from([-1, -1, 0])))


@st.composite
def steps(draw: st.DrawFn, id_: str, names: list[str], orders: list[str], plain: bool = False) -> Step:
    slots: dict[str, Any] = {}
    for n in range(draw(st.integers(0, 2)) if names else 0):
        ref = draw(refs(names))
        slots[f"p{n}"] = draw(st.sampled_from([ref, ref, ListOf([ref]), MapOf({"k": ref})]))
    when: Any = None
    if not plain and draw(st.integers(0, 4)) == 0:
        kinds: list[Any] = [Predicate(name="p"), SignalValue(name="go")]
        kinds += [Ref(step=draw(st.sampled_from(names)), default=draw(st.sampled_from([-1, 1, 2, 3])))] if names else []
        when = draw(st.sampled_from(kinds))
    if not plain and draw(st.integers(0, 7)) == 0:
        slots["s"] = SignalValue(name=draw(st.sampled_from(SIGNALS)))
    some = names_from(orders)
    rare: st.SearchStrategy[tuple[str, ...]] = st.sampled_from([(), (), (), (), ("red",), ("red", "blue")])
    return Step(
        id=id_,
        action="act",
        slots=slots,
        after=draw(some),
        after_any=draw(some),
        optional=draw(st.sampled_from([False, False, True])),
        when=when,
        signals=() if plain else draw(st.sampled_from([(), (), (), (), ("go",), ("go", "ok")])),
        break_before=() if plain else draw(rare),
        break_after=() if plain else draw(rare),
        retry=draw(st.sampled_from([None, None, RetryPolicy(attempts=2, initial=0.0)])),
        priority=draw(st.integers(0, 2)),
        delay=draw(st.sampled_from([0.0, 0.0, 5.0])),
        lost_limit=2,
        undo=draw(st.sampled_from(UNDOS)),
        poll=draw(st.sampled_from([None, None, None, Poll(1.0), Poll(1.0, 9.0)])),
        child=draw(st.sampled_from([None, None, None, None, Child(), Child(detached=True)])),
    )


@st.composite
def blocks(draw: st.DrawFn, plain: bool = False, most: int = 7) -> list[Block]:
    found: list[Block] = []
    values: list[str] = []
    orders: list[str] = []
    for n in range(draw(st.integers(1, most))):
        if draw(st.integers(0, 3)) == 0:
            inner: list[Block] = []
            inside: list[str] = []
            for m in range(draw(st.integers(0, 3))):
                inner.append(draw(steps(f"i{m}", values + inside, orders + inside, plain)))
                inside.append(f"i{m}")
            some = names_from(orders)
            found.append(
                Group(id=f"g{n}", blocks=inner, after=draw(some), after_any=draw(some), optional=draw(st.booleans()))
            )
            orders.append(f"g{n}")
            values += [f"g{n}/{name}" for name in inside]
            orders += [f"g{n}/{name}" for name in inside]
        else:
            found.append(draw(steps(f"s{n}", values, orders, plain)))
            values.append(f"s{n}")
            orders += [f"s{n}", f"s{n}/"]
    return found


# -- random blocks that open their content while the run goes on ------------------------------------------------------


@st.composite
def conditions(draw: st.DrawFn, names: list[str], state: bool, calm: bool = False) -> Any:
    kinds: list[Any] = [Predicate(name="p"), Predicate(name="p", slots={"x": Const(0)})]
    if calm:
        kinds += [Holds(text="r == true", slots={"r": Ref(step=name, default=1)}) for name in names]
        return draw(st.sampled_from(kinds))
    kinds += [Holds(text="1 < 2"), Holds(text="1 > 2"), SignalValue(name="ok")]
    if names:
        name = draw(st.sampled_from(names))
        kinds += [Ref(step=name, default=1), Ref(step=name), Holds(text="r == true", slots={"r": Ref(step=name)})]
        kinds += [Holds(text="r", slots={"r": Ref(step=name, default=1)})]
    if state:
        kinds += [Holds(text="v == 1", slots={"v": StateValue(name="v")})]
        kinds += [Holds(text="n.step < 2", slots={"n": PhaseInfo()}), Predicate(name="p", slots={"i": PhaseInfo()})]
        kinds += [Holds(text="l == true", slots={"l": LaneValue(lane="c0", default=2)})]
    return draw(st.sampled_from(kinds))


class Place:
    """Where a block stands: what it may read besides its siblings' results."""

    def __init__(self, gathers: int = 0, rows: bool = False, calm: bool = False, depth: int = 2) -> None:
        self.gathers, self.rows, self.calm, self.depth = gathers, rows, calm, depth

    def into(self, *, gathers: int = 0, rows: bool = False) -> Place:
        return Place(self.gathers + gathers, self.rows or rows, self.calm, self.depth - 1)


@st.composite
def inner_steps(draw: st.DrawFn, id_: str, names: list[str], place: Place) -> Step:
    plain = draw(st.booleans())
    found = draw(steps(id_, names, names, plain or place.calm))
    slots: list[Any] = []
    if place.gathers:
        slots += [Item(level=place.gathers - 1), Index()]
    if place.rows:
        slots += [PhaseInfo(), StateValue(name="v", default=0), LaneValue(lane="c0", default=0)]
        slots += [StateValue(name="missing")] if not place.calm and draw(st.integers(0, 9)) == 0 else []
    takes = draw(st.booleans())
    if slots and takes:
        found.slots["own"] = draw(st.sampled_from(slots))
    return found


@st.composite
def bodies(draw: st.DrawFn, names: list[str], place: Place, least: int = 1) -> tuple[list[Block], Any]:
    """The blocks of a body, and an output."""
    found: list[Block] = []
    known: list[str] = []
    for n in range(draw(st.integers(least, 2))):
        id_ = f"d{place.depth}{n}"
        if place.depth > 0 and draw(st.integers(0, 3)) == 0:
            found.append(draw(openings(id_, names + known, place)))
        elif draw(st.integers(0, 5)) == 0:
            inside = draw(inner_steps("in", names + known, place))
            output = Ref(step="in", default=0) if draw(st.booleans()) else None
            found.append(Group(id=id_, blocks=[inside], output=output))
            if output is None:
                continue
        else:
            found.append(draw(inner_steps(id_, names + known, place)))
        known.append(id_)
    outputs: list[Any] = [None, *(Ref(step=name, default=d) for name in known for d in (-1, 0))]
    outputs += [Item()] if place.gathers else []
    return found, draw(st.sampled_from(outputs))


@st.composite
def gathers(draw: st.DrawFn, id_: str, names: list[str], place: Place) -> Gather:
    inside, output = draw(bodies(names, place.into(gathers=1)))
    items: list[Any] = [Const(LIST), Const(LIST), Const(EMPTY), ListOf([Const(0), Const(1)])]
    items += [Ref(step=draw(st.sampled_from(names)), default=LIST), Const(COUNT)] if names and not place.calm else []
    return Gather(
        id=id_,
        items=draw(st.sampled_from(items)),
        body=Body(blocks=inside, output=output),
        limit=draw(st.sampled_from([0, 0, 1, 2])),
        mode="all" if place.calm else draw(st.sampled_from(["any_error", "all", "first"])),
        optional=draw(st.sampled_from([False, False, True])),
    )


@st.composite
def chooses(draw: st.DrawFn, id_: str, names: list[str], place: Place) -> Choose:
    branches: list[Branch] = []
    count = draw(st.integers(1, 3))
    for n in range(count):
        inside, output = draw(bodies(names, place.into(), least=0))
        last = n == count - 1 and draw(st.booleans())
        when = None if last else draw(conditions(names, place.rows, place.calm))
        branches.append(Branch(id=f"w{n}", when=when, blocks=inside, output=output))
    return Choose(id=id_, branches=branches, optional=draw(st.sampled_from([False, False, True])))


MOVES: list[Move] = ["repeat", "stop", "advance"]


@st.composite
def rules(draw: st.DrawFn, place: Place, names: list[str]) -> tuple[Rule, ...]:
    if place.calm:
        often = Holds(text="n.step < 2", slots={"n": PhaseInfo()})
        return Rule(id="r", move=draw(st.sampled_from(MOVES)), target="", when=often), Rule(id="last", move="advance")
    found: list[Rule] = []
    for n in range(draw(st.integers(0, 2))):
        moves: list[Move] = ["advance", "jump", "repeat", "stop"]
        move = draw(st.sampled_from(moves))
        when = draw(conditions(names, True))
        found.append(Rule(id=f"r{n}", move=move, target="p0" if move == "jump" else "", when=when))
    return (*found, Rule(id="last", move="advance", when=draw(st.sampled_from([None, None, Predicate(name="p")]))))


@st.composite
def compensating(draw: st.DrawFn, id_: str) -> Phase:
    """A phase that takes others back; its cells wait for nothing but what they are told."""
    told = {"told": PhaseInfo()}
    lanes = [f"k{n}" for n in range(draw(st.integers(0, 2)))]
    return Phase(id=id_, blocks=[Step(id=lane, action="act", slots={**told}) for lane in lanes])


@st.composite
def phases(draw: st.DrawFn, id_: str, names: list[str], place: Place) -> Phases:
    inner = place.into(rows=True)
    ruled = draw(st.booleans())
    rows: list[Phase] = []
    for n in range(draw(st.integers(1, 2))):
        cells: list[Block] = []
        before = [f"p{n - 1}/c0"] if n and rows[-1].blocks and isinstance(rows[-1].blocks[0], Step) else []
        for m in range(draw(st.integers(0, 3))):
            if inner.depth > 0 and draw(st.integers(0, 4)) == 0:
                cells.append(draw(openings(f"c{m}", names, inner)))
            else:
                cells.append(draw(inner_steps(f"c{m}", names + before, inner)))
        lanes = [cell.id for cell in cells]
        rows.append(
            Phase(
                id=f"p{n}",
                blocks=cells,
                detached=draw(names_from(lanes)) if draw(st.integers(0, 3)) == 0 else (),
                policy="pol" if ruled else "",
                retry=draw(st.sampled_from([None, RetryPolicy(attempts=2, initial=draw(st.sampled_from([0.0, 2.0])))])),
                compensate=draw(st.sampled_from(["", "back", f"un{n}"])),
            )
        )
    return Phases(
        id=id_,
        phases=rows,
        compensations=[draw(compensating(name)) for name in sorted({row.compensate for row in rows} - {""})],
        policies={"pol": draw(rules(inner, names))} if ruled else {},
        otherwise=draw(st.sampled_from([None, Rule(id="else", move="stop")])) if ruled else None,
        start="" if place.calm else draw(st.sampled_from(["", rows[-1].id])),
        step_limit=draw(st.sampled_from([9] if place.calm else [1, 2, 4])),
        state={"v": Const(1)},
        on_conflict=draw(st.sampled_from(["last", "last", "error"])),
        on_finish=draw(st.sampled_from(["leave", "wait"] if place.calm else ["leave", "wait", "cancel"])),
        optional=draw(st.sampled_from([False, False, True])),
    )


def openings(id_: str, names: list[str], place: Place) -> st.SearchStrategy[Block]:
    return st.one_of(gathers(id_, names, place), chooses(id_, names, place), phases(id_, names, place))


@st.composite
def open_plans(draw: st.DrawFn, calm: bool = False) -> list[Block]:
    """A few steps and groups, blocks that open their content among and behind them, and steps that use those."""
    found: list[Block] = draw(blocks(plain=calm, most=2))
    names = [block.id for block in found if isinstance(block, Step)]
    for n in range(draw(st.integers(1, 2))):
        found.append(draw(openings(f"o{n}", names, Place(calm=calm))))
        names.append(f"o{n}")
    found.append(draw(steps("end", names, names, plain=calm)))
    return found
