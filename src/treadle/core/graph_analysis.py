"""Analysis: what the graph of a plan or a run says about order, width and length.

All answers are in addresses of steps; groups and other scopes are looked through: a step behind a group depends on
every step in it. Where nothing else is said, answers are sorted by address, so that equal graphs give equal answers.
Every question is answered in time proportional to the graph, or to the part of it that is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush

import msgspec

from treadle.core.analysis import network_of
from treadle.core.network import Network, circles, turned
from treadle.core.plan import Plan
from treadle.errors import CycleError, UnknownStepError, UsageError


class Span(msgspec.Struct, frozen=True):
    """When a step starts and finishes, in seconds after the start of the first.

    `slack` is how much longer it could take without anything finishing later; on the critical path it is 0.
    """

    step: str
    start: float
    finish: float
    slack: float


class Schedule(msgspec.Struct, frozen=True):
    """The earliest times of all steps, given how long each takes and room for all at once.

    `seconds` is the length of the whole, `critical_path` the chain of steps that makes it so long, and `spans` has
    every step, by its start, then by its address.
    """

    seconds: float
    critical_path: list[str]
    spans: list[Span]

    def span(self, step: str) -> Span | None:
        """The times of one step, None if there is none."""
        return next((span for span in self.spans if span.step == step), None)


class Analysis:
    """Questions to a graph of steps. It is made by `Analysis.of(plan)`, `Planned.analysis()` or `Run.analysis()`.

    A name that is no step of the graph raises `UnknownStepError`. A graph with circles can be asked for them and for
    all that is direct or transitive; order, levels, paths through all of it and schedules raise `CycleError`.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._names = network.names
        self._before: Sequence[Sequence[int]] = network.before
        self._after: Sequence[Sequence[int]] = turned(network.before)
        self._vertices = {network.names[vertex]: vertex for vertex in network.steps}
        self._is_step = bytearray(len(network.names))
        for vertex in network.steps:
            self._is_step[vertex] = 1

    @classmethod
    def of(cls, plan: Plan) -> Analysis:
        """The analysis of any plan, also of one that holds circles or no steps.

        Raises:
            DefinitionError: the plan names steps that it does not hold, or has other mistakes than circles.
        """
        return Analysis(network_of(plan))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} steps>"

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._vertices)

    def __contains__(self, step: object) -> bool:
        """Whether there is a step of this address."""
        return step in self._vertices

    @property
    def steps(self) -> list[str]:
        """The addresses of all steps, in the order of the plan."""
        return list(self._vertices)

    def edges(self) -> list[tuple[str, str]]:
        """Every direct dependency as (source, target): the target waits for the source.

        Between two groups there are as many as the product of their sizes.
        """
        pairs = ((source, target) for target in self._vertices for source in self.dependencies(target))
        return sorted(pairs)

    # Neighbours

    def roots(self) -> list[str]:
        """The steps that depend on none."""
        return self._without(self._before, self._after)

    def leaves(self) -> list[str]:
        """The steps that none depends on."""
        return self._without(self._after, self._before)

    def dependencies(self, step: str) -> list[str]:
        """The steps that a step waits for itself, or by a group around it."""
        return self._direct(step, self._before)

    def dependents(self, step: str) -> list[str]:
        """The steps that wait for a step itself, or for a group around it."""
        return self._direct(step, self._after)

    def all_dependencies(self, step: str) -> list[str]:
        """All steps that have to be settled before a step can start; without itself, in a circle too."""
        return self._transitive(step, self._before)

    def all_dependents(self, step: str) -> list[str]:
        """All steps that cannot start before a step is settled; without itself, in a circle too."""
        return self._transitive(step, self._after)

    # Order

    @property
    def has_cycle(self) -> bool:
        """Whether steps wait for each other; never so in a graph without steps."""
        return bool(self.cycles())

    def cycles(self) -> list[list[str]]:
        """One circle of each knot of steps that wait for each other.

        A circle is addresses in the order of waiting, the first again at the end; a group is named where it leads
        through one.
        """
        return circles(self._names, self._after)

    def topological_order(self) -> list[str]:
        """The steps, each behind all that it depends on; among those that may come next, the smallest address."""
        return [self._names[vertex] for vertex in self._ordered() if self._is_step[vertex]]

    def levels(self) -> list[list[str]]:
        """The steps by depth: those of a level depend on one of the level before, and on none of their own."""
        depths = [0] * len(self._names)
        found: list[list[str]] = []
        for vertex in self._ordered():
            below = max((depths[other] for other in self._before[vertex]), default=0)
            if self._is_step[vertex]:
                if below == len(found):
                    found.append([])
                found[below].append(self._names[vertex])
                below += 1
            depths[vertex] = below
        return [sorted(level) for level in found]

    def critical_path(self) -> list[str]:
        """The longest chain of steps, from a root to a leaf; for its length in time see `schedule`.

        Of several that are equally long: the one that ends in the largest address, and leads there by the
        first dependencies in the order of the plan.
        """
        return self._longest([float(flag) for flag in self._is_step])[1]

    def schedule(self, seconds: Mapping[str, float], *, default: float = 0.0) -> Schedule:
        """When every step starts and finishes at the earliest, and how much slack it has.

        Args:
            seconds: How long each step takes, by address; addresses that are no steps here are passed over.
            default: How long those take that are not named.

        Raises:
            UsageError: a duration is negative or not finite.
        """
        _check_seconds([*seconds.items(), ("default", default)])
        weights = [0.0] * len(self._names)
        for name, vertex in self._vertices.items():
            weights[vertex] = seconds.get(name, default)
        finish, path = self._longest(weights)
        rest = [0.0] * len(self._names)
        for vertex in reversed(self._ordered()):
            rest[vertex] = max((rest[other] + weights[other] for other in self._after[vertex]), default=0.0)
        total = max((finish[vertex] for vertex in self._network.steps), default=0.0)
        critical = set(path)
        spans = [
            Span(
                step=name,
                start=finish[vertex] - weights[vertex],
                finish=finish[vertex],
                # Sums in another order differ in their last digits.
                slack=0.0 if name in critical else max(total - finish[vertex] - rest[vertex], 0.0),
            )
            for name, vertex in self._vertices.items()
        ]
        spans.sort(key=lambda span: (span.start, span.step))
        return Schedule(seconds=total, critical_path=path, spans=spans)

    # Parts

    def independent_sets(self) -> list[list[str]]:
        """The parts that have no dependency between them, by their first step."""
        above, below = self._linked(self._after), self._linked(self._before)
        # A scope joins what is in front of it with what is behind it, and does nothing where one of them is empty.
        joins = [bool(above[vertex] and below[vertex]) for vertex in range(len(self._names))]
        seen = bytearray(len(self._names))
        found: list[list[str]] = []
        for name in sorted(self._vertices):
            start = self._vertices[name]
            if seen[start]:
                continue
            seen[start] = 1
            part, stack = list[str](), [start]
            while stack:
                vertex = stack.pop()
                if self._is_step[vertex]:
                    part.append(self._names[vertex])
                for other in (*self._before[vertex], *self._after[vertex]):
                    if not seen[other] and joins[other]:
                        seen[other] = 1
                        stack.append(other)
            found.append(sorted(part))
        return found

    def shortest_path(self, start: str, end: str) -> list[str] | None:
        """The fewest steps that lead from one to another along dependents, both included; None if none do."""
        source, target = self._vertex(start), self._vertex(end)
        came: dict[int, int] = {source: source}
        seen = set[int]()
        queue = [source]
        while queue and target not in came:
            following: list[int] = []
            for vertex in queue:
                for other in sorted(self._steps_next(vertex, self._after, seen), key=self._names.__getitem__):
                    if other not in came:
                        came[other] = vertex
                        following.append(other)
            queue = following
        return self._names_back(target, came) if target in came else None

    def subgraph(self, steps: Iterable[str]) -> Analysis:
        """The same questions to some of the steps and the direct dependencies among them."""
        kept = {self._vertex(step) for step in steps}
        dropped = [bool(flag) and vertex not in kept for vertex, flag in enumerate(self._is_step)]
        before = [
            [] if dropped[vertex] else [other for other in others if not dropped[other]]
            for vertex, others in enumerate(self._before)
        ]
        return Analysis(Network(self._names, before, [vertex for vertex in self._network.steps if vertex in kept]))

    # Vertices

    def _vertex(self, step: str) -> int:
        vertex = self._vertices.get(step)
        if vertex is None:
            raise UnknownStepError(f"the graph has no step {step!r}; `steps` lists all")
        return vertex

    def _steps_next(self, vertex: int, adjacent: Sequence[Sequence[int]], seen: set[int]) -> Iterator[int]:
        """The next steps from a vertex through scopes; scopes that were seen are not entered again."""
        stack = list(adjacent[vertex])
        while stack:
            other = stack.pop()
            if self._is_step[other]:
                yield other
            elif other not in seen:
                seen.add(other)
                stack.extend(adjacent[other])

    def _direct(self, step: str, adjacent: Sequence[Sequence[int]]) -> list[str]:
        found = self._steps_next(self._vertex(step), adjacent, set())
        return sorted({self._names[vertex] for vertex in found})

    def _transitive(self, step: str, adjacent: Sequence[Sequence[int]]) -> list[str]:
        start = self._vertex(step)
        seen = {start}
        found: list[str] = []
        stack = [start]
        while stack:
            for other in adjacent[stack.pop()]:
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
                    if self._is_step[other]:
                        found.append(self._names[other])
        return sorted(found)

    def _linked(self, adjacent: Sequence[Sequence[int]]) -> bytearray:
        """Mark all steps, and the scopes that are reached from one along `adjacent`."""
        marked = bytearray(self._is_step)
        stack = list(self._network.steps)
        while stack:
            for other in adjacent[stack.pop()]:
                if not marked[other]:
                    marked[other] = 1
                    stack.append(other)
        return marked

    def _without(self, adjacent: Sequence[Sequence[int]], opposite: Sequence[Sequence[int]]) -> list[str]:
        """The steps that lead to no other step along `adjacent`."""
        linked = self._linked(opposite)
        return sorted(
            name for name, vertex in self._vertices.items() if not any(linked[other] for other in adjacent[vertex])
        )

    def _ordered(self) -> list[int]:
        """All vertices, each behind those it waits for, steps by their addresses among those that may come next."""
        waiting = [len(others) for others in self._before]
        ready = [(self._names[vertex], vertex) for vertex in self._network.steps if not waiting[vertex]]
        heapify(ready)
        # Scopes cost nothing, so what they let through is ready at once.
        free = [vertex for vertex, count in enumerate(waiting) if not count and not self._is_step[vertex]]
        found: list[int] = []
        while free or ready:
            vertex = free.pop() if free else heappop(ready)[1]
            found.append(vertex)
            for other in self._after[vertex]:
                waiting[other] -= 1
                if not waiting[other]:
                    if self._is_step[other]:
                        heappush(ready, (self._names[other], other))
                    else:
                        free.append(other)
        if len(found) < len(waiting):
            raise CycleError(self.cycles()[0])
        return found

    def _longest(self, weights: Sequence[float]) -> tuple[list[float], list[str]]:
        """The weight of the heaviest chain up to each vertex, and the heaviest of all."""
        total = [0.0] * len(self._names)
        came = list(range(len(self._names)))
        # A chain begins at a root, even where all its steps weigh nothing.
        linked = self._linked(self._after)
        for vertex in self._ordered():
            # `max` gives the first of equals.
            heaviest = max(self._before[vertex], key=lambda other: (total[other], linked[other]), default=vertex)
            total[vertex] = weights[vertex] + total[heaviest]
            came[vertex] = heaviest
        leaves = self.leaves()
        if not leaves:
            return total, []
        end = max(leaves, key=lambda name: (total[self._vertices[name]], name))
        return total, self._names_back(self._vertices[end], dict(enumerate(came)))

    def _names_back(self, end: int, came: Mapping[int, int]) -> list[str]:
        """The steps on the way that led to a vertex, from its start."""
        path = [end]
        while came[path[-1]] != path[-1]:
            path.append(came[path[-1]])
        return [self._names[vertex] for vertex in reversed(path) if self._is_step[vertex]]


def _check_seconds(seconds: Iterable[tuple[str, float]]) -> None:
    wrong = [f"{name}: {value!r}" for name, value in seconds if not (math.isfinite(value) and value >= 0)]
    if wrong:
        raise UsageError(f"durations are seconds from 0 on; mend {', '.join(wrong)}")
