"""Networks: who waits for whom, as numbers, and the circles among them.

A step is one vertex. A scope is two, which do no work: one for its opening, which its content waits for, and one for
its settling, which waits for its content. So a group of a thousand steps behind another is two thousand waits and not
a million.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

Waits = Sequence[Sequence[int]]


class Network(msgspec.Struct, frozen=True):
    """The vertices of a plan or a run, and their waits."""

    # The address of each vertex; both of a scope have the scope's.
    names: list[str]
    # Whom each vertex waits for, in the order of the plan.
    before: list[list[int]]
    # The vertices that are steps, in the order of the plan.
    steps: list[int]


def turned(waits: Waits) -> list[list[int]]:
    """The same waits seen from the other end: for each vertex those it was named by."""
    found: list[list[int]] = [[] for _ in waits]
    for vertex, others in enumerate(waits):
        for other in others:
            found[other].append(vertex)
    return found


def circles(names: Sequence[str], following: Waits) -> list[list[str]]:
    """One circle of each knot, as addresses in the order of waiting, the first again at the end.

    `following` are the vertices that wait for each.
    """
    left = _knotted(following)
    before = turned(following)
    found: list[list[str]] = []
    for vertex in sorted(left):
        if vertex not in left:
            continue
        path = _shortest_circle(following, vertex, left)
        if path is None:
            # It lies between two circles.
            continue
        # The whole knot is reported by this one circle: what reaches it and is reached from it is dropped.
        left -= _reached(following, path[0], left) & _reached(before, path[0], left)
        called = [names[index] for index in path]
        short = [name for at, name in enumerate(called) if at == 0 or name != called[at - 1]]
        # A group that waits for itself is one name; so is its content's way round.
        found.append(short if len(short) > 1 else [short[0], short[0]])
    return found


def _knotted(following: Waits) -> set[int]:
    """The vertices in circles, and those between two circles: what is left when both ends are taken off."""
    left = _taken_off(set(range(len(following))), following)
    return _taken_off(left, turned(following))


def _taken_off(left: set[int], following: Waits) -> set[int]:
    """Take off, again and again, the vertices that nothing left is in front of."""
    counts = dict.fromkeys(left, 0)
    for vertex in left:
        for other in following[vertex]:
            if other in left:
                counts[other] += 1
    free = [vertex for vertex, count in counts.items() if count == 0]
    while free:
        vertex = free.pop()
        left.discard(vertex)
        for other in following[vertex]:
            if other in left:
                counts[other] -= 1
                if counts[other] == 0:
                    free.append(other)
    return left


def _shortest_circle(following: Waits, start: int, inside: set[int]) -> list[int] | None:
    """The shortest way from a vertex back to itself, waiter first, or None."""
    came: dict[int, int] = {}
    queue = deque([start])
    while queue:
        vertex = queue.popleft()
        for waiter in following[vertex]:
            if waiter == start:
                path = [start, vertex]
                while path[-1] != start:
                    path.append(came[path[-1]])
                return path
            if waiter in inside and waiter not in came:
                came[waiter] = vertex
                queue.append(waiter)
    return None


def _reached(following: Waits, start: int, inside: set[int]) -> set[int]:
    seen = {start}
    queue = deque([start])
    while queue:
        for vertex in following[queue.popleft()]:
            if vertex in inside and vertex not in seen:
                seen.add(vertex)
                queue.append(vertex)
    return seen
