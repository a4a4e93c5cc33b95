"""What steps take from their run's data: the slots that the run must be able to fill before it exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from treadle.core.blocks import Part, outline, slots_of
from treadle.core.graph import Graph
from treadle.core.plan import Block, Branch, Const, Data, Holds, ListOf, MapOf, Phase, Predicate, Ref, Step

# How a slot that takes data looks in an encoded plan. A text in it that says the same has its quotes escaped.
_TAKES_DATA: Final = b'"slot":"data"'


class Need(msgspec.Struct, frozen=True):
    """A parameter of a step (or, with another `action`, of its condition) that takes the datum of a name."""

    address: str
    action: str
    parameter: str
    name: str
    # It is the parameter's whole value, not a part of it.
    whole: bool = True

    def complaint(self) -> str:
        """What is wrong where the run's data does not hold the name."""
        return (
            f"step {self.address!r}: parameter {self.parameter!r} of {self.action!r} takes {self.name!r} from the "
            f"run's data, which does not hold it; start the run with data={{{self.name!r}: ...}}"
        )


def needs_of(graph: Graph, encoded: bytes) -> tuple[Need, ...]:
    """What the blocks of a plan, whose stored bytes are `encoded`, take from the run's data, in plan order."""
    if graph.data_needs is None:
        # Most plans take nothing, and to walk one costs as much as to compile it.
        takes = _TAKES_DATA in encoded
        graph.data_needs = tuple(_needs(outline(graph.plan.blocks))) if takes else ()
    return graph.data_needs


def _needs(parts: Sequence[Part]) -> Iterator[Need]:
    for part in parts:
        if not isinstance(part.spec, Phase | Branch):
            yield from needs_of_block(part.address, part.spec)
        yield from _needs(part.inner)


def needs_of_block(address: str, block: Block) -> Iterator[Need]:
    """What one block itself takes from the run's data: a step, its condition, or what else a block reads."""
    if not isinstance(block, Step):
        for slot in slots_of(block):
            yield from (Need(address, address, "", name, whole=False) for name in _names(slot))
        return
    for parameter, slot in block.slots.items():
        if type(slot) is not Const and type(slot) is not Ref:
            yield from (Need(address, block.action, parameter, name, type(slot) is Data) for name in _names(slot))
    if isinstance(block.when, Predicate):
        for parameter, slot in block.when.slots.items():
            yield from (Need(address, block.when.name, parameter, name, type(slot) is Data) for name in _names(slot))


def _names(slot: object) -> Iterator[str]:
    if isinstance(slot, Data):
        yield slot.name
    elif isinstance(slot, ListOf):
        for item in slot.items:
            yield from _names(item)
    elif isinstance(slot, MapOf | Predicate | Holds):
        for value in (slot.items if isinstance(slot, MapOf) else slot.slots).values():
            yield from _names(value)
