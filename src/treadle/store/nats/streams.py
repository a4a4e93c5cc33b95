"""The streams of a store on its server: made, checked and changed; and which durability they give."""

from __future__ import annotations

import asyncio
from typing import Any

from treadle.errors import (
    SchemaVersionError,
    StoreCorruptError,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from treadle.store.nats.link import FULL, Link, RefusedError
from treadle.store.nats.location import Location
from treadle.store.nats.monitor import sync_interval
from treadle.store.nats.wire import SCHEMA

# Batches of direct answers came with this version.
OLDEST = (2, 11)
_SCHEMA = "treadle.schema"
# An operation that is sent again within this time is known by its id.
_KNOWN_SECONDS = 120
# A cluster that has just started, or has lost its leader, makes no streams for a while.
_PATIENCE = 60
_NO_SUCH_STREAM = 10059
_NO_JETSTREAM = frozenset({10039, 10076})
_NO_CLUSTER = frozenset({10074, 10005})


async def prepare(link: Link, *, create: bool) -> str:
    """See that the server is one that a store can live on, and that its streams are there; returns the durability.

    Raises:
        StoreError: of the kind that says what to do; nothing was changed.
    """
    location = link.location
    check_server(link)
    found = await _config(link, location.log)
    if found is None:
        if not create:
            raise StoreNotFoundError(f"there is no store {location.shown}; check the URL, or make it by opening it")
        # The log comes last: where it is, all is.
        await _create(link, _values_config(location))
        await _create(link, _log_config(location))
        found = await _config(link, location.log)
    assert found is not None
    _check_schema(location, found)
    if location.replicas is not None and found["num_replicas"] != location.replicas:
        for stream in (location.values, location.log):
            await _change(link, stream, location.replicas)
        found["num_replicas"] = location.replicas
    link.replicas = int(found["num_replicas"])
    return durability_of(found, await sync_interval(location))


def check_server(link: Link) -> None:
    """Raise for a server that is too old, or has no JetStream."""
    version = link.client.connected_server_version
    if (version.major, version.minor) < OLDEST:
        raise StoreError(
            f"{link.location.shown} is nats-server {version.major}.{version.minor}; treadle needs"
            f" {OLDEST[0]}.{OLDEST[1]} or newer: upgrade it"
        )
    if not link.client._server_info.get("jetstream"):  # noqa: SLF001 - the client shows it nowhere else
        raise _without_jetstream(link, "the server says so")


def durability_of(config: dict[str, Any], sync: float | None) -> str:
    """What an answer means for a crash and for a power cut."""
    replicas = int(config["num_replicas"])
    if config["storage"] == "memory":
        return f"in memory of {replicas} server{'s' if replicas > 1 else ''}: gone when they stop"
    if replicas > 1:
        spared = (replicas - 1) // 2
        return f"stored by {replicas // 2 + 1} of {replicas} servers: survives the loss of {spared} at any instant"
    if sync == 0:
        return "on the disk of one server before it is answered (sync_interval: always)"
    time = "what its sync_interval allows (2 min, unless it is set)" if sync is None else f"the last {sync:g} s"
    return (
        f"stored by one server: survives crashes of processes; a power cut may lose {time};"
        " ?replicas=3, or sync_interval: always in the server's configuration, prevents that"
    )


def _log_config(location: Location) -> dict[str, Any]:
    return _common(location) | {
        "name": location.log,
        "description": "The operations of a treadle store, in the order in which they happened",
        "subjects": [f"{location.prefix}.log.>"],
    }


def _values_config(location: Location) -> dict[str, Any]:
    return _common(location) | {
        "name": location.values,
        "description": "Payloads, plans and snapshots of a treadle store",
        "subjects": [f"{location.prefix}.values.>"],
        "max_msgs_per_subject": 1,
    }


def _common(location: Location) -> dict[str, Any]:
    return {
        "retention": "limits",
        "storage": location.storage,
        "num_replicas": location.replicas or 1,
        "max_bytes": location.max_bytes,
        # A message that does not fit is refused; none is ever removed to make room.
        "discard": "new",
        "allow_direct": True,
        "duplicate_window": _KNOWN_SECONDS * 1_000_000_000,
        "metadata": {_SCHEMA: str(SCHEMA)},
    }


async def _config(link: Link, stream: str) -> dict[str, Any] | None:
    try:
        answer = await link.api(f"STREAM.INFO.{stream}")
    except RefusedError as error:
        if error.code == _NO_SUCH_STREAM:
            return None
        raise _explained(link, error) from error
    config: dict[str, Any] = answer["config"]
    return config


async def _create(link: Link, config: dict[str, Any]) -> None:
    refused: RefusedError | None = None
    for _ in range(_PATIENCE):
        try:
            await link.api(f"STREAM.CREATE.{config['name']}", config)
            return
        except RefusedError as error:
            refused = error
            if await _config(link, config["name"]) is not None:
                # Another process was quicker, with other options perhaps.
                return
            if error.code not in _NO_CLUSTER or "non-clustered" in error.description:
                break
        await asyncio.sleep(0.25)
    assert refused is not None
    raise _explained(link, refused) from refused


async def _change(link: Link, stream: str, replicas: int) -> None:
    config = await _config(link, stream)
    if config is None:
        raise StoreCorruptError(f"{link.location.shown}: the stream {stream} is missing")
    try:
        await link.api(f"STREAM.UPDATE.{stream}", config | {"num_replicas": replicas})
    except RefusedError as error:
        raise _explained(link, error) from error


def _explained(link: Link, error: RefusedError) -> StoreError:
    where = link.location.shown
    if error.code in _NO_JETSTREAM:
        return _without_jetstream(link, error.description)
    if error.code in _NO_CLUSTER:
        return StoreError(
            f"{where} cannot keep {link.location.replicas} replicas ({error.description}); that needs as many servers"
            " in one cluster: treadle nats up --nodes 3 starts some for development"
        )
    if error.code in FULL:
        return StoreError(f"{where} has no room for a store ({error.description}); raise the limits of the account")
    return StoreError(f"{where} refuses: {error.description}")


def _without_jetstream(link: Link, reason: str) -> StoreError:
    return StoreUnavailableError(
        f"JetStream is not enabled at {link.location.shown} ({reason}); add a jetstream {{}} block to the server's"
        " configuration, and enable it for the account"
    )


def _check_schema(location: Location, config: dict[str, Any]) -> None:
    text = config.get("metadata", {}).get(_SCHEMA, "")
    if not text.isdigit():
        raise StoreCorruptError(
            f"the stream {location.log} at {location.shown} is no store of treadle; use another name"
        )
    if int(text) > SCHEMA:
        raise SchemaVersionError(
            f"the store {location.shown} has schema {text}, this version knows {SCHEMA}: upgrade treadle"
        )
