"""A run's journal folded by the core's own `apply`, with what the state forgets, such as when a signal came."""

from __future__ import annotations

from treadle.core import events as ev
from treadle.core.apply import apply
from treadle.core.events import AnyEvent, decode_events
from treadle.core.graph import Graph
from treadle.core.plan import decode_plan
from treadle.core.state import RunState
from treadle.runtime.folding import state_of
from treadle.runtime.scopes import ScopeHistory
from treadle.store.base import Loaded


class Replay:
    """A folded journal: the core's state, and facts of its events that the state does not keep."""

    __slots__ = (
        "children",
        "dispatches",
        "events",
        "finished_at",
        "paused_at",
        "reached",
        "released",
        "roots",
        "run",
        "scopes",
        "signal_times",
        "skips",
    )

    def __init__(self, run: RunState) -> None:
        self.run = run
        # Every event with its time, in journal order.
        self.events: list[tuple[float, AnyEvent]] = []
        self.finished_at: float | None = None
        self.paused_at: float | None = None
        # Root causes as the run's last settlement named them.
        self.roots: list[str] = []
        self.signal_times: dict[str, float] = {}
        self.skips: dict[str, str] = {}
        # (address, position) -> time.
        self.reached: dict[tuple[str, str], float] = {}
        self.released: dict[tuple[str, str], float] = {}
        # Address -> how often it was dispatched since it became ready.
        self.dispatches: dict[str, int] = {}
        self.scopes = ScopeHistory()
        # Address -> the id of the run that the step has called last.
        self.children: dict[str, str] = {}

    def note(self, time: float, event: AnyEvent) -> None:
        """Keep what `apply` forgets."""
        self.events.append((time, event))
        match event:
            case ev.StepDispatched(at=at) | ev.PrepareDispatched(at=at):
                self.dispatches[at] = self.dispatches.get(at, 0) + 1
            case ev.ChildStarted(at=at, child=key, id=id_):
                self.children[at] = id_ or self.children.get(at) or key
            case ev.StepSkipped(at=at, reason=reason):
                self.skips[at] = reason
            case ev.SignalReceived(name=name):
                self.signal_times[name] = time
            case ev.BreakpointReached(at=at, position=position):
                self.reached[at, position] = time
            case ev.BreakpointReleased(before=before, after=after):
                self.released.update(((at, "before"), time) for at in before)
                self.released.update(((at, "after"), time) for at in after)
            case ev.StepsReopened(at=addresses):
                self.finished_at = None
                self.roots = []
                for at in addresses:
                    self.dispatches.pop(at, None)
                    self.skips.pop(at, None)
                self.scopes.note(self.run, time, event)
            case _:
                self._note_run(time, event)

    def _note_run(self, time: float, event: AnyEvent) -> None:
        match event:
            case ev.Paused():
                self.paused_at = time
            case ev.Resumed() | ev.CancelRequested():
                self.paused_at = None
            case ev.RunSettled(failures=failures):
                self.finished_at = time
                self.roots = failures
            case _:
                self.scopes.note(self.run, time, event)


def replay(loaded: Loaded) -> Replay:
    """Fold a loaded run's journal."""
    head = loaded.head
    graph = Graph(decode_plan(loaded.plan))
    run = state_of(head, graph)
    told = Replay(run)
    for version, _, time, text in loaded.rows:
        run.now = time
        for event in decode_events(text):
            apply(run, event)
            told.note(time, event)
        run.version = version
    return told
