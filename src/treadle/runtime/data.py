"""What an application does with the data that runs have left: blobs that nobody needs are removed."""

from __future__ import annotations

from treadle.authoring.durations import Duration
from treadle.runtime.collecting import DEFAULT_AGE, Collected, collect
from treadle.runtime.node import Node


class DataOperations:
    """The part of an application that is about data beside the runs."""

    _node: Node

    async def collect(self, older_than: Duration = DEFAULT_AGE, *, dry_run: bool = False) -> Collected:
        """Remove artifacts and large values that no run names, such as those of deleted runs, once they are so old.

        Safe beside everything else, and safe done twice. With `dry_run` nothing is removed.

        Raises:
            UsageError: `older_than` is so short that a step that runs may still need what it has written.
        """
        return await collect(self._node, older_than, dry_run=dry_run)
