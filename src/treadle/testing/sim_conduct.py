"""What simulated steps give: values and artifacts that follow from their conduct alone, so the oracle knows them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from typing import Any, Final
from zlib import crc32

import msgspec

from treadle.authoring.context import StepContext
from treadle.authoring.openings import case, choose, gather, holds
from treadle.authoring.options import Retry
from treadle.core.effects import Artifact, Effects
from treadle.core.events import encode_events
from treadle.errors import MissingKeyError, Retryable, StoreError, StoreUnavailableError, UsageError
from treadle.runtime.collecting import sweep
from treadle.runtime.node import Node
from treadle.store.blobs import MemoryBlobs, digest_of
from treadle.store.memory_data import StoredRun
from treadle.testing.sim_codec import decoded, encoded_digest, with_values

Conduct = dict[str, Any]
# The name of the projection, and of the collection that it takes.
PROJECTION: Final = "things"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
# A handle of a value that lies in a row of the run, or in a blob.
_STORED: Final = re.compile(r'"(?:![a-z]+)?(@[0-9a-f]{32}|#sha256:[0-9a-f]{64})"')


def fraction(*parts: object) -> float:
    """A number from 0 to 1 that depends on the parts only."""
    return (crc32(repr(parts).encode()) * 0x9E3779B1 & 0xFFFFFFFF) / 0x1_0000_0000


def value_of(conduct: Conduct, values: list[Any]) -> dict[str, Any]:
    """What a step returns for its arguments, in whichever attempt."""
    digest = crc32(msgspec.json.encode([conduct["name"], values], order="deterministic"))
    value: dict[str, Any] = {"of": conduct["name"], "sum": digest, "odd": bool(digest & 1)}
    if conduct.get("size"):
        value["pad"] = "x" * conduct["size"]
    if "list" in conduct:
        value["items"] = [digest % (7 * n) for n in range(1, conduct["list"] + 1)]
    return value


def truth_of(value: Any, salt: int) -> bool:
    """What the predicate answers."""
    return crc32(msgspec.json.encode([value, salt], order="deterministic")) % 3 != 0


def spreads(conduct: Conduct) -> bool:
    """Whether a step adds blocks. Not drawn, so that all else in a plan stays as it is."""
    return "leaf" not in conduct and fraction("spreads", conduct["name"]) < 0.08


def spread(conduct: Conduct, function: Any) -> None:
    """Plan blocks that open their content while the run goes on: a gather, and a choice by what came of it."""

    def leaf(item: int) -> Any:
        own = {"name": f"{conduct['name']}-leaf", "sleep": 0.6, "leaf": True}
        return function.options(id="leaf", retry=Retry(attempts=4, initial=0.2)).bind(own, [item])

    found = gather([3, 1, 2][: 1 + int(3 * fraction(conduct["name"]))], leaf, id="spread")
    choose(
        case(holds("len(found) > 1", found=found), lambda: leaf(7), id="many"), otherwise=lambda: leaf(8), id="picked"
    )


def artifacts_of(conduct: Conduct) -> list[tuple[str, bytes]]:
    """Name and bytes of the artifacts that a step makes, in whichever attempt."""
    count = int(5 * fraction("artifacts", conduct["name"])) - 2
    return [(f"a{number % 2}", f"{conduct['name']} {number}".encode()) for number in range(count)]


def records_of(conduct: Conduct) -> list[list[Any]]:
    """The records that a step gives, in whichever attempt."""
    count = int(60 * fraction("records", conduct["name"])) - 40
    size = 4000 if fraction("long", conduct["name"]) < 0.2 else 5
    return [[PROJECTION, f"{conduct['name']} {number}", {"pad": "x" * size}] for number in range(count)]


def written_by(name: str, attempt: int) -> list[str] | None:
    """What a step writes with its success, if its projection is in the store; None is nothing."""
    return [name, str(attempt)] if fraction("writes", name) < 0.2 else None


def give_records(conduct: Conduct, step: StepContext) -> None:
    """Give them, and write what is written with the success."""
    for collection, key, data in records_of(conduct):
        step.record(collection, key, data)
    if (values := written_by(conduct["name"], step.attempt)) is not None:
        # In most worlds there is no projection, or it is not in the store.
        with contextlib.suppress(UsageError):
            step.projection(PROJECTION).write("write", *values)


async def make_artifacts(conduct: Conduct, step: StepContext) -> None:
    """Make them. A failure of the store is said in the step's own words: as the result of a step it is a finding."""
    give_records(conduct, step)
    try:
        for name, data in artifacts_of(conduct):
            await step.artifact(name, data)
    except StoreUnavailableError:
        raise Retryable("an artifact could not be stored") from None


def make_artifacts_in_thread(conduct: Conduct, step: StepContext) -> None:
    """Make them in a thread."""
    give_records(conduct, step)
    try:
        for name, data in artifacts_of(conduct):
            step.artifact(name, data)
    except StoreUnavailableError:
        raise Retryable("an artifact could not be stored") from None


def effects_fault(conduct: Conduct, effects: Effects | None, at: str, value: Callable[[str], Any]) -> str:
    """What is wrong with the effects that a step's success names, if anything."""
    given = [record for handle in (effects.records if effects is not None else ()) for record in value(handle)]
    if given != records_of(conduct):
        return f"its records are {given}, not {records_of(conduct)}"
    found = [] if effects is None else [_facts(artifact) for artifact in effects.artifacts]
    hidden = bool(effects is not None and effects.artifacts and effects.artifacts[0].key_id)
    name_of = encoded_digest if hidden else digest_of
    expected = [
        (f"{at}:artifact:{number:03d}", name, len(data), name_of(data), at)
        for number, (name, data) in enumerate(artifacts_of(conduct), 1)
    ]
    return "" if found == expected else f"its artifacts are {found}, not {expected}"


def _facts(artifact: Artifact) -> tuple[str, str, int, str, str]:
    return artifact.id, artifact.name, artifact.size, artifact.digest, artifact.step


async def collected(node: Node, before: float) -> None:
    """Have a node remove the blobs that are old and that nobody names; it may fail, or lack a key."""
    with contextlib.suppress(StoreError, MissingKeyError):
        await sweep(node, before)


class Shelf(MemoryBlobs):
    """The blobs of a simulated world. Those that were removed are kept for the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.removed: dict[str, bytes] = {}
        # Told that a backup copies all of them.
        self.on_copy: Callable[[str], None] = lambda _name: None

    def copy_to(self, path: str) -> None:
        """A backup copies all blobs."""
        self.on_copy(path.removesuffix("-blobs"))

    def take(self, other: Shelf) -> None:
        """Copy the blobs of another one that are not here yet."""
        for digest in other._blobs:
            if digest not in self._blobs:
                self._blobs[digest] = other._blobs[digest]
                self._written[digest] = other._written[digest]

    def remember(self, other: Shelf) -> None:
        """Know what is or was in another one, as removed."""
        self.removed = {**other.removed, **other._blobs}

    def remove(self, digest: str, before: float) -> bool:
        """Remove an old blob."""
        data = self._blobs.get(digest, b"")
        if not super().remove(digest, before):
            return False
        self.removed[digest] = data
        return True

    def ever(self, digest: str) -> bytes:
        """The bytes of a blob that is or was there."""
        return self._blobs[digest] if digest in self._blobs else self.removed[digest]

    def dangling(self, runs: Iterable[StoredRun]) -> list[str]:
        """What runs name and what is not there."""
        return [
            f"{run.head.id} names {digest}, which is not there"
            for run in runs
            for digest in self._named(run)
            if digest not in self._blobs
        ]

    def _named(self, run: StoredRun) -> list[str]:
        """The digests in all that can be reached from what a run says.

        A row of values that no handle leads to can never be read: an outcome that comes too late leaves it behind.
        """
        named: dict[str, None] = {}
        seen: set[str] = set()
        texts = [_text_of(run)]
        while texts:
            text = texts.pop()
            named.update(dict.fromkeys(_DIGEST.findall(text)))
            for handle in _STORED.findall(text):
                if handle in seen:
                    continue
                seen.add(handle)
                data = (self._blobs if handle[0] == "#" else run.payloads).get(handle[1:])
                if data is not None:
                    texts.append(with_values(decoded(data).decode()))
                elif handle[0] == "@":
                    named[handle] = None
        return list(named)


def _text_of(run: StoredRun) -> str:
    """What a stored run says, without the values that lie elsewhere. The hash of its plan is that of no blob."""
    rows = [row.events if isinstance(row.events, str) else encode_events(row.events) for row in run.rows]
    waiting = [decoded(item.body).decode() for item in run.inbox.values()]
    held = [f'"{handle}"' for handle in (*run.head.constants, run.head.data)]
    return "\n".join(map(with_values, [*held, *rows, *waiting]))
