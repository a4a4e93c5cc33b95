"""How far the blocks have come that open their content while the run goes on. Part of a run's state.

Changed by `apply` only; `phases`, `gathers` and `choices` read it to decide what follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from treadle.core.addresses import encode_id
from treadle.core.blocks import has_policies
from treadle.core.events import NULL, Arg, ArgList, DecisionMade, Handle, Items
from treadle.core.plan import Choose, Condition, Gather, Given, Opening, Phase, Phases

if TYPE_CHECKING:
    from treadle.core.moulds import Mould
    from treadle.core.state import NodeState, ScopeState


class Sight(NamedTuple):
    """What the cells of a row see of their block, as it was when the row began."""

    entry: int
    state: dict[str, Arg]
    # Lane values of the row that was executed before.
    previous: dict[str, Arg]
    # Detached cells of earlier rows that had not ended, by lane.
    pending: dict[str, int]


class Row(NamedTuple):
    """A phase as the rows of a block need it: its place in the order (-1: none), and what follows when it advances."""

    phase: Phase
    segment: str
    position: int
    # The id of the next phase, "" after the last.
    following: str
    # The awaited cells: their ids, each with its segment.
    awaited: tuple[tuple[str, str], ...]


def rows_of(spec: Phases) -> dict[str, Row]:
    """The phases of a block by id."""
    ids = [phase.id for phase in spec.phases]
    following = dict(zip(ids, [*ids[1:], ""], strict=True))
    places = {id_: index for index, id_ in enumerate(ids)}
    return {
        phase.id: Row(
            phase,
            encode_id(phase.id),
            places.get(phase.id, -1),
            following.get(phase.id, ""),
            tuple((cell.id, encode_id(cell.id)) for cell in phase.blocks if cell.id not in phase.detached),
        )
        for phase in (*spec.phases, *spec.compensations)
    }


class PhasesProgress:
    """The rows of a Phases block."""

    __slots__ = (
        "asked",
        "attempts",
        "background",
        "closed",
        "decision",
        "detached",
        "entries",
        "entry",
        "moulds",
        "overwritten",
        "patches",
        "phases",
        "previous",
        "question",
        "row",
        "rule",
        "ruled",
        "state",
        "step",
    )

    def __init__(self, spec: Phases, entry: int) -> None:
        self.phases = rows_of(spec)
        # Whether rules decide what follows a row.
        self.ruled = has_policies(spec)
        # Phase -> what its rows are cast from.
        self.moulds: dict[str, Mould] = {}
        # The number of the present row, from 0; -1 before the first.
        self.step = -1
        self.row: ScopeState | None = None
        # Phase -> how often it was entered.
        self.entries: dict[str, int] = {}
        # Failed entries of the present phase since it was last moved to.
        self.attempts = 0
        # Replaced, never changed: who took it keeps what it saw.
        self.state: dict[str, Arg] = {}
        # Lane values of the row that was executed before.
        self.previous: dict[str, Arg] = {}
        # What steps of the present row want to set, by their numbers; variables that two of the last row had set.
        self.patches: dict[int, dict[str, Handle]] = {}
        self.overwritten: list[str] = []
        # What follows the present row, once that is decided; the rule that was asked for last.
        self.decision: DecisionMade | None = None
        self.rule = -1
        # The number of the step that the block asked last, an evaluation or a pause (-1: none); how many it has asked.
        self.question = -1
        self.asked = 0
        self.entry = entry
        # Detached cells that may not have ended, and where they lie.
        self.background: list[NodeState] = []
        self.detached: ScopeState | None = None
        # Where rows and questions lie that the block has left behind (see `counts.retire`).
        self.closed: ScopeState | None = None

    @property
    def begun(self) -> bool:
        """Whether there is content of this entry."""
        return self.row is not None


class GatherProgress:
    """The iterations of a gather."""

    __slots__ = (
        "asked",
        "closed",
        "count",
        "entry",
        "first",
        "items",
        "mould",
        "opened",
        "question",
        "results",
        "running",
        "scopes",
        "winner",
    )

    def __init__(self, entry: int, *, first: bool) -> None:
        # Whether the first success is the value of all.
        self.first = first
        # The items as a list of arguments, or as chunks of stored values; None while they are not known.
        self.items: list[Arg] | Items | None = None
        self.count = 0
        self.opened = 0
        # How many of those have no outcome; all that are not forgotten: the place of the item -> the scope's number.
        self.running = 0
        self.scopes: dict[int, int] = {}
        # What iterations are cast from.
        self.mould: Mould | None = None
        self.results: list[Arg] = []
        # The iteration that succeeded first, where that is asked for.
        self.winner = -1
        self.question = -1
        self.asked = 0
        self.entry = entry
        self.closed: ScopeState | None = None

    @property
    def begun(self) -> bool:
        """Whether there is content of this entry."""
        return self.items is not None or self.question >= 0

    def set_items(self, items: list[Arg] | Items) -> None:
        """Enter the items."""
        self.items = items
        self.count = items.count if isinstance(items, Items) else len(items)

    def value(self) -> Arg:
        """The value of a gather that succeeded."""
        if self.first:
            # Where all were skipped by conditions, none of them won.
            return self.results[self.winner] if self.winner >= 0 else NULL
        return ArgList(self.results.copy())


class ChooseProgress:
    """The branch of a choose."""

    __slots__ = ("asked", "branch", "closed", "conditions", "entry", "question", "scope", "tried")

    def __init__(self, entry: int) -> None:
        # The branch that was chosen ("": none of them); None while that is open.
        self.branch: str | None = None
        self.scope: ScopeState | None = None
        # Of each branch, over the values that were there at the first question: all are about the same.
        self.conditions: list[Condition | Given | None] | None = None
        # How many branches were found not to hold.
        self.tried = 0
        self.question = -1
        self.asked = 0
        self.entry = entry
        self.closed: ScopeState | None = None

    @property
    def begun(self) -> bool:
        """Whether there is content of this entry."""
        return self.branch is not None or self.question >= 0


Progress = PhasesProgress | GatherProgress | ChooseProgress


def new_progress(spec: Opening, entry: int = 1) -> Progress:
    """The progress of a block's n-th entry, which has opened nothing yet."""
    if isinstance(spec, Gather):
        return GatherProgress(entry, first=spec.mode == "first")
    return ChooseProgress(entry) if isinstance(spec, Choose) else PhasesProgress(spec, entry)
