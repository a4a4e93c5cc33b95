"""Journals and settled steps, read from the log by the run's own subject."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import msgspec

from treadle.errors import StoreCorruptError, StoreUnavailableError
from treadle.store.base import StepRow
from treadle.store.nats.log import Log
from treadle.store.nats.values import is_end
from treadle.store.nats.wire import JournalRow, decode_row

TextRow = tuple[int, int, float, str]

_BATCH = 500
_BATCH_BYTES = 8 * 1024 * 1024
# Runs of which it is remembered up to where they were read, or of which the settled steps are kept.
_PLACES = 10_000
_FOLDED = 32


class _Place:
    """A place in a journal: the message of the row of a version."""

    __slots__ = ("seq", "version")

    def __init__(self) -> None:
        self.version = 0
        self.seq = 0


class _Steps(_Place):
    """The settled steps of a run up to a place."""

    __slots__ = ("by_address", "by_number")

    def __init__(self) -> None:
        super().__init__()
        self.by_number: dict[int, StepRow] = {}
        self.by_address: dict[str, StepRow] = {}

    def fold(self, row: JournalRow) -> None:
        """Take over what an append says of steps, as a store does."""
        for number in row.unsettled:
            if (old := self.by_number.pop(number, None)) is not None:
                del self.by_address[old.address]
        for step in row.steps:
            self.by_number[step.number] = self.by_address[step.address] = step
        for address, undo in row.undos:
            if (old := self.by_address.get(address)) is not None:
                new = msgspec.structs.replace(old, undo=undo)
                self.by_number[old.number] = self.by_address[address] = new


class Journal:
    """Reads journals. All methods are for the link's thread, and for runs that the log's state knows."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._folded: OrderedDict[str, _Steps] = OrderedDict()
        self._folding = asyncio.Lock()

    async def rows(self, key: str, after: int, upto: int, limit: int) -> list[TextRow]:
        """Rows with a version above `after` and not above `upto`, which the run has reached."""
        upto = min(upto, max(after, 0) + limit)
        found: list[TextRow] = []
        if after >= upto:
            return found
        known = self._places.get(key)
        place = _Place()
        if known is not None and known.version <= after:
            place.version, place.seq = known.version, known.seq
        while place.version < upto:
            for row in await self._read(key, place, upto):
                version = row.expect + 1
                if version > after:
                    found.append((version, row.commit_id, row.time, row.events))
        self._places[key] = place
        self._places.move_to_end(key)
        if len(self._places) > _PLACES:
            self._places.popitem(last=False)
        return found

    async def step(self, key: str, address: str, upto: int) -> StepRow | None:
        """The row of a step as it is at version `upto`, if it is settled."""
        async with self._folding:
            steps = self._folded.setdefault(key, _Steps())
            self._folded.move_to_end(key)
            if len(self._folded) > _FOLDED:
                self._folded.popitem(last=False)
            while steps.version < upto:
                for row in await self._read(key, steps, upto):
                    steps.fold(row)
            return steps.by_address.get(address)

    def forget(self, key: str) -> None:
        """The run is deleted."""
        self._places.pop(key, None)
        self._folded.pop(key, None)

    async def _read(self, key: str, place: _Place, upto: int) -> list[JournalRow]:
        """The next rows from a place on, which moves with them."""
        location = self.log.location
        voids = self.log.machine.voids.get(key, ())
        subject = f"$JS.API.DIRECT.GET.{location.log}"
        waited = 0
        while True:
            rows: list[JournalRow] = []
            request = {
                "seq": place.seq + 1,
                "batch": min(_BATCH, upto - place.version + len(voids)),
                "max_bytes": _BATCH_BYTES,
                "next_by_subj": location.journal(key),
            }
            for message in await self.log.link.gather(subject, msgspec.json.encode(request), is_end):
                seq = int(message.headers.get("Nats-Sequence", "0"))
                if seq <= place.seq or place.version >= upto:
                    continue
                if seq not in voids:
                    row = decode_row(await self.log.body(message.data))
                    if row.expect != place.version:
                        raise StoreCorruptError(
                            f"{location.shown}: the journal of run {key} goes from {place.version} to {row.expect + 1}"
                        )
                    rows.append(row)
                    place.version += 1
                place.seq = seq
            if rows:
                return rows
            waited += 1
            if waited > 200 or key not in self.log.machine.data.runs:
                raise StoreUnavailableError(f"{location.shown}: the journal of run {key} cannot be read; try again")
            # A replica that lags behind its leader has answered.
            await asyncio.sleep(min(0.002 * waited, 0.1))
