"""What installed distributions bring, by entry points: nothing is loaded that nobody asked for.

The groups: `treadle.packages` (a `Package`), `treadle.actions` (a step, a `Registry`, or a module with steps),
`treadle.stores` (by the scheme of a URL), `treadle.signers` (by what stands in front of the colon of a key),
`treadle.artifacts`, `treadle.secrets` and `treadle.codecs` (by scheme). The name of an entry point is how it is asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Literal

from treadle.authoring.packages import Package
from treadle.authoring.registry import Definition, Registry
from treadle.errors import DefinitionError, PluginError

Group = Literal["packages", "actions", "stores", "signers", "artifacts", "projections", "secrets", "codecs"]
# All that are installed.
INSTALLED = "installed"


def installed(group: Group) -> dict[str, EntryPoint]:
    """The entry points of a group by name; of two of one name the first that is found on the path."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"treadle.{group}"):
        found.setdefault(point.name, point)
    return dict(sorted(found.items()))


def plugin(group: Group, name: str) -> Any:
    """What an entry point stands for.

    Raises:
        PluginError: none of this name is installed, or it cannot be imported.
    """
    known = installed(group)
    if name not in known:
        there = ", ".join(known) or "none"
        raise PluginError(f"no installed distribution has {name!r} in treadle.{group}; there are: {there}")
    point = known[name]
    try:
        return point.load()
    except Exception as error:
        whose = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
        raise PluginError(f"{name!r} in treadle.{group}{whose} ({point.value}) cannot be loaded: {error}") from error


def packages_of(given: str | Sequence[Package | str]) -> list[Any]:
    """The packages of a list in which some are only named; `installed` is all of them.

    Raises:
        PluginError: one is not installed, or cannot be imported.
    """
    if isinstance(given, str):
        given = list(installed("packages")) if given == INSTALLED else [given]
    return [plugin("packages", one) if isinstance(one, str) else one for one in given]


def add_actions(registry: Registry, names: str | Iterable[str]) -> None:
    """Put installed actions into a registry.

    Raises:
        PluginError: one is not installed, or cannot be imported.
        DefinitionError: one brings no action, or a name that something else has.
    """
    if isinstance(names, str):
        names = list(installed("actions")) if names == INSTALLED else [names]
    for name in names:
        definitions = _definitions_of(plugin("actions", name))
        if not definitions:
            raise DefinitionError(f"{name!r} in treadle.actions is no step, nor a Registry or a module with steps")
        for definition in definitions:
            registry.add(definition)


def _definitions_of(found: object) -> list[Definition]:
    if isinstance(found, Registry):
        return list(dict.fromkeys(found.definitions().values()))
    values = list(vars(found).values()) if isinstance(found, ModuleType) else [found]
    definitions = [getattr(value, "definition", None) for value in values]
    return [definition for definition in definitions if isinstance(definition, Definition)]
