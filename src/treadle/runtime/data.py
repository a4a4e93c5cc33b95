"""What an application does with the data that runs have left: blobs that nobody needs are removed."""

from __future__ import annotations

from treadle.authoring.durations import Duration
from treadle.runtime.collecting import DEFAULT_AGE, Collected, collect
from treadle.runtime.key_usage import keys_in_use
from treadle.runtime.node import Node
from treadle.runtime.projections import AppProjection


class DataOperations:
    """The part of an application that is about data beside the runs."""

    _node: Node

    def projection(self, name: str) -> AppProjection:
        """A projection that `connect` was given, by name, to query and to rebuild.

        Raises:
            UsageError: there is none of this name.
        """
        return self._node.projections.for_app(name)

    async def collect(self, older_than: Duration = DEFAULT_AGE, *, dry_run: bool = False) -> Collected:
        """Remove artifacts and large values that no run names, such as those of deleted runs, once they are so old.

        Safe beside everything else, and safe done twice. With `dry_run` nothing is removed.

        Raises:
            UsageError: `older_than` is so short that a step that runs may still need what it has written.
        """
        return await collect(self._node, older_than, dry_run=dry_run)

    async def events_delivered(self) -> None:
        """Wait until what is committed now was delivered to all event sinks, unless another session is to do that."""
        if self._node.feeds is not None:
            await self._node.feeds.delivered()

    @property
    def key_ids(self) -> list[str]:
        """The keys of this application's payload codec, as far as it names them."""
        codec = self._node.settings.codec
        return [] if codec is None else list(getattr(codec, "key_ids", (codec.key_id,)))

    async def keys(self) -> dict[str, int]:
        """How many runs need each key of a payload codec, by its id: one that is not there is needed by none.

        Reads all journals, so it may take long. It takes no key to ask.
        """
        return await keys_in_use(self._node)
