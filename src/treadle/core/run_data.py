"""What steps take from their run's data: the slots that the run must be able to fill before it exists."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from treadle.core.graph import Graph
from treadle.core.plan import Const, Data, ListOf, MapOf, Predicate, Ref, Step


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


def needs_of(graph: Graph) -> tuple[Need, ...]:
    """What the steps of a plan take from the run's data, in plan order."""
    if graph.data_needs is None:
        graph.data_needs = tuple(
            need for node in graph.nodes if node.is_step for need in needs_of_step(node.address, node.step)
        )
    return graph.data_needs


def needs_of_step(address: str, step: Step) -> Iterator[Need]:
    """What one step, and its condition, take from the run's data."""
    for parameter, slot in step.slots.items():
        if type(slot) is not Const and type(slot) is not Ref:
            yield from (Need(address, step.action, parameter, name, type(slot) is Data) for name in _names(slot))
    if isinstance(step.when, Predicate):
        for parameter, slot in step.when.slots.items():
            yield from (Need(address, step.when.name, parameter, name, type(slot) is Data) for name in _names(slot))


def _names(slot: object) -> Iterator[str]:
    if isinstance(slot, Data):
        yield slot.name
    elif isinstance(slot, ListOf):
        for item in slot.items:
            yield from _names(item)
    elif isinstance(slot, MapOf):
        for value in slot.items.values():
            yield from _names(value)
