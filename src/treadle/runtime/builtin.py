"""What every process executes: the predicate behind plain conditions, and `sleep`."""

from __future__ import annotations

from treadle.authoring.registry import Registry
from treadle.authoring.sleep import SLEEP, sleep
from treadle.runtime.truth import with_truth


def with_builtins(registry: Registry) -> Registry:
    """The registry, with the built-in functions in it."""
    if registry.find(SLEEP) is None:
        registry.add(sleep.definition)
    return with_truth(registry)
