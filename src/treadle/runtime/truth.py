"""The built-in predicate behind `when=` with a Ref whose value is not at hand to the core."""

from __future__ import annotations

from typing import Any, Final

from treadle.authoring.registry import Definition, Registry

TRUTH: Final = "treadle:truth"


async def truth(value: Any) -> bool:
    """The value itself; it must be a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"the condition's value is a {type(value).__name__}, not a bool")
    return value


def with_truth(registry: Registry) -> Registry:
    """The registry, with the built-in predicate in it."""
    if registry.find(TRUTH) is None:
        registry.add(Definition(truth, kind="predicate", name=TRUTH))
    return registry
