"""The hooks, middleware and event sinks that pyproject.toml names, for the processes that the command line starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from treadle.cli.settings import find_project
from treadle.cli.targets import load_module, split_target
from treadle.errors import UsageError


def watchers() -> dict[str, Any]:
    """The `hooks`, `middleware` and `events` of [tool.treadle], as `connect` takes them.

    Raises:
        UsageError: a name leads to nothing.
    """
    project = find_project(Path.cwd())
    found = {"hooks": project.hooks, "middleware": project.middleware, "events": project.events}
    return {option: [_named(name, option) for name in names] for option, names in found.items() if names}


def _named(text: str, option: str) -> Any:
    """What `module:name` names; a class is made an object of."""
    where, name = split_target(text)
    found: Any = load_module(where)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not name or found is None:
        raise UsageError(f"{option} of [tool.treadle]: {text!r} names nothing; write module:name")
    return found() if isinstance(found, type) else found
