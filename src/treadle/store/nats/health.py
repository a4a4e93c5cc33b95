"""The examination of a NATS store that `treadle doctor` shows."""

from __future__ import annotations

from typing import Any

from treadle.core.tables import LIVE
from treadle.errors import StoreError
from treadle.store.base import Health
from treadle.store.memory_data import MemoryData, problems_of
from treadle.store.nats.journal import Journal
from treadle.store.nats.link import Link, RefusedError
from treadle.store.nats.log import Log
from treadle.store.nats.monitor import complaint, sync_interval
from treadle.store.nats.streams import durability_of
from treadle.store.nats.wire import LEVEL

# Journals that are read through, the newest ones: reading all of a large store would take too long.
_JOURNALS = 100


async def examine(link: Link, log: Log, journal: Journal) -> Health:
    """Check the streams, the state against itself, and journals; what is wrong is a finding, not an error."""
    problems: list[str] = []
    location = link.location
    facts = {"store": "nats", "server": location.shown, "nats-server": str(link.client.connected_server_version)}
    try:
        await log.follow()
        infos = {stream: await link.api(f"STREAM.INFO.{stream}") for stream in (location.log, location.values)}
        for stream, info in infos.items():
            _examine_stream(stream, info, problems, facts)
        facts["durability"] = durability_of(infos[location.log]["config"], await sync_interval(location))
        if told := await complaint(location):
            problems.append(f"the server says of itself: {told}")
        problems += _problems_of(log.machine.data)
        await _examine_journals(log, journal, problems)
    except (StoreError, RefusedError) as error:
        problems.append(str(error))
    machine = log.machine
    facts |= {
        "applied": str(log.applied),
        "snapshot": str(machine.cleared),
        "runs": str(len(machine.data.runs)),
        "open runs": str(sum(run.status in LIVE for run in machine.data.runs.values())),
        "sessions": str(len(machine.data.sessions)),
        "level": str(machine.level),
        "level of this Treadle": str(LEVEL),
        "deleted journals to clear": str(len(machine.deleted)),
        "appends without effect": str(sum(map(len, machine.voids.values()))),
    }
    if older := [own.row.worker for own in machine.data.sessions.values() if machine.levels[own.id] < LEVEL]:
        facts["level held by"] = ", ".join(older)
    return Health(problems, facts)


def _examine_stream(stream: str, info: dict[str, Any], problems: list[str], facts: dict[str, str]) -> None:
    state, config = info["state"], info["config"]
    facts[f"{stream} messages"] = str(state["messages"])
    facts[f"{stream} bytes"] = str(state["bytes"])
    facts[f"{stream} replicas"] = str(config["num_replicas"])
    if config["storage"] != "file":
        facts[f"{stream} storage"] = config["storage"]
    problems += [
        f"the stream {stream} has {limit} set: it removes what the store needs; set it to no limit"
        for limit in ("max_age", "max_msgs")
        if config[limit] > 0
    ]
    if config["discard"] != "new":
        problems.append(f"the stream {stream} discards old messages when it is full; set discard to new")
    if 0 < config["max_bytes"] < state["bytes"] * 1.1:
        problems.append(f"the stream {stream} is nearly full: {state['bytes']} of {config['max_bytes']} bytes")
    problems += [
        f"the stream {stream}: the replica on {replica['name']} is offline or lags behind"
        for replica in info.get("cluster", {}).get("replicas") or ()
        if replica.get("offline") or not replica.get("current")
    ]


def _problems_of(data: MemoryData) -> list[str]:
    # The state keeps no rows, so that their number says nothing.
    return [text for text in problems_of(data) if " rows" not in text]


async def _examine_journals(log: Log, journal: Journal, problems: list[str]) -> None:
    runs = log.machine.data.runs
    for key in sorted(runs, reverse=True)[:_JOURNALS]:
        version = runs[key].version
        try:
            rows = await journal.rows(key, 0, version, version)
        except StoreError as error:
            problems.append(str(error))
            continue
        if [row[0] for row in rows] != list(range(1, version + 1)):
            problems.append(f"the journal of run {key} has gaps")
