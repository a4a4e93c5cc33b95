"""Steps in processes of their own, as it is written: `@step(process=True)` or `@step(process=Process(...))`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from treadle.errors import DefinitionError

_SIZE: Final = re.compile(r"(\d+)\s*([KMGT]?)i?B?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class Process:
    """How the process of a step is made.

    Args:
        memory: how much address space it may have, as bytes or a text such as "512MB", where the system limits it.
        env: environment variables beside those of the worker.
    """

    memory: int | str | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Isolation:
    """The checked form. Equal ones share processes."""

    memory: int
    env: tuple[tuple[str, str], ...]


def isolation_of(value: Process | bool | None, function: Callable[..., Any]) -> Isolation | None:
    """The checked form of what a step asks for; None if it asks for nothing.

    Raises:
        DefinitionError: it makes no sense, or another process could not find the function.
    """
    if value is None or value is False:
        return None
    if value is True:
        value = Process()
    if not isinstance(value, Process):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
        raise DefinitionError(f"process={value!r}: give True, or Process(memory=..., env=...)")
    name: str = getattr(function, "__qualname__", "")
    if "<locals>" in name or "<lambda>" in name:
        raise DefinitionError(
            f"{name!r} is defined inside a function, so a process of its own cannot find it; move it to the top of its"
            " module"
        )
    return Isolation(_bytes_of(value.memory), tuple(sorted(_texts(value.env))))


def _bytes_of(memory: int | str | None) -> int:
    if memory is None:
        return 0
    if isinstance(memory, str) and (match := _SIZE.fullmatch(memory.strip())):
        memory = int(match[1]) * _UNITS[match[2].upper()]
    if not isinstance(memory, int) or isinstance(memory, bool) or memory < 2**20:
        raise DefinitionError(f'memory={memory!r}: a number of bytes from 1 MB, or a text such as "512MB"')
    return memory


def _texts(env: Mapping[Any, Any]) -> list[tuple[str, str]]:
    for pair in env.items():
        if not all(isinstance(text, str) and "\0" not in text for text in pair) or not pair[0] or "=" in pair[0]:
            raise DefinitionError(f"env={pair!r}: names and values are text")
    return list(env.items())
