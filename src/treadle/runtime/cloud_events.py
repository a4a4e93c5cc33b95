"""Events of runs as CloudEvents 1.0, in the JSON form that other programs read (`application/cloudevents+json`).

An id is the same however often an event is sent: the run's key, the version of the journal's row, and the place of the
event in that row. Sorted by `sequence`, the events of a run are in the order of its journal.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from treadle.core.events import decode_events, kind_of
from treadle.runtime.receipts import readable
from treadle.store.base import RunHead

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
SOURCE: Final = "treadle"


def cloud_events(
    head: RunHead, version: int, time: float, text: str, source: str = SOURCE
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of one row of a journal, each with its kind."""
    run: dict[str, Any] = {"id": head.id, "key": head.key, "workflow": head.workflow}
    run |= {name: value for name, value in (("name", head.name), ("labels", head.labels)) if value}
    for index, event in enumerate(decode_events(text)):
        kind = kind_of(event)
        about = readable(msgspec.to_builtins(event))
        made: dict[str, Any] = {
            "specversion": "1.0",
            "id": f"{head.key}:{version}:{index}",
            "source": source,
            "type": f"io.treadle.{kind}.v1",
            "subject": head.id,
            "time": datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "sequence": f"{version:010d}.{index:06d}",
            "partitionkey": head.key,
            "data": {"run": run, "version": version, **about},
        }
        if head.trace:
            made["traceparent"] = head.trace
        yield kind, made
