"""What follows in a Phases block: the next row, the same one again, a question to a rule, or the end.

A row is a barrier. When it has succeeded, the first rule of its phase's policy that holds decides: an expression over
values that the kernel sees is evaluated here, any other condition by a worker, as a step of the block. When it has
failed and none of its attempts is live any more, it is tried again as its phase's retry policy says.
"""

from __future__ import annotations

from treadle.core import events as ev
from treadle.core.blocks import has_policies
from treadle.core.conditions import answer_of, truth
from treadle.core.decision import Decision
from treadle.core.events import Failure
from treadle.core.opened import conflicts
from treadle.core.plan import Phase, Phases, Rule
from treadle.core.progress import PhasesProgress
from treadle.core.resolve import UnresolvedError
from treadle.core.state import RunState, ScopeState, StepState, settled
from treadle.core.tables import FAILED, SUCCEEDED

# Moves that end the block.
STOP = "stop"
_ADVANCE = Rule(id="", move="advance")


def proceed_phases(run: RunState, decision: Decision, scope: ScopeState) -> bool:
    """Let the block go on; True when nothing is left but its outcome."""
    spec, progress = scope.node.spec, scope.block
    assert isinstance(spec, Phases)
    assert isinstance(progress, PhasesProgress)
    row = progress.row
    if row is None:
        return _enter(run, decision, scope, spec.start or spec.phases[0].id)
    if not settled(row) or (progress.asking is not None and not settled(progress.asking)):
        return False
    if progress.asking is not None and progress.asking.status == FAILED:
        # A rule that raised.
        return True
    if row.status == FAILED:
        return _try_again(run, decision, scope, spec, progress, row)
    if row.status != SUCCEEDED:
        return True
    made = progress.decision
    if made is None:
        return _decide(run, decision, scope, spec, progress, row)
    if not made.target:
        return _finish(run, decision, spec, progress)
    if progress.step + 1 >= spec.step_limit:
        text = f"{progress.step + 1} rows were executed without an end, and no more are allowed (step_limit)"
        return _fail(run, decision, scope, Failure(code="step_limit", message=text))
    return _enter(run, decision, scope, made.target)


def _enter(run: RunState, decision: Decision, scope: ScopeState, phase: str, *, again: bool = False) -> bool:
    progress = scope.block
    assert isinstance(progress, PhasesProgress)
    event = ev.RowOpened(
        at=scope.node.address,
        phase=phase,
        step=progress.step + 1,
        entry=progress.entries.get(phase, 0) + 1,
        again=again,
    )
    try:
        decision.record(run, event)
    except UnresolvedError as error:
        return _fail(run, decision, scope, Failure(code="unresolved", message=str(error)))
    return False


def _fail(run: RunState, decision: Decision, scope: ScopeState, failure: Failure) -> bool:
    """End the block by a failure of its own."""
    decision.record(run, ev.ScopeSettled(at=scope.node.address, outcome=FAILED, failure=failure))
    return False


def _phase_of(row: ScopeState) -> Phase:
    phase = row.node.spec
    assert isinstance(phase, Phase)
    return phase


# -- after a row that failed -----------------------------------------------------------------------------------------


def _try_again(
    run: RunState, decision: Decision, scope: ScopeState, spec: Phases, progress: PhasesProgress, row: ScopeState
) -> bool:
    phase = _phase_of(row)
    policy = phase.retry
    if policy is None or (policy.attempts and progress.attempts + 1 >= policy.attempts):
        return True
    if is_live(run, row):
        return False
    if progress.asking is None:
        delay = policy.delay(progress.attempts + 1)
        if delay > 0:
            decision.record(
                run, ev.ScopeAsked(at=scope.node.address, what="wait", number=progress.asked + 1, delay=delay)
            )
            return False
    return _enter(run, decision, scope, phase.id, again=True)


def is_live(run: RunState, scope: ScopeState) -> bool:
    """Whether attempts of what lies in a scope are still executed."""
    for state in run.content(scope):
        if isinstance(state, StepState):
            if state.tasked:
                return True
            own = run.own.get(state.node.number)
            if own is not None and is_live(run, own):
                return True
        elif is_live(run, state):
            return True
    return False


# -- after a row that succeeded --------------------------------------------------------------------------------------


def _decide(
    run: RunState, decision: Decision, scope: ScopeState, spec: Phases, progress: PhasesProgress, row: ScopeState
) -> bool:
    """Find the rule that holds; ask a worker where the kernel cannot see."""
    phase = _phase_of(row)
    if not has_policies(spec):
        return _choose(run, decision, scope, spec, progress, phase, _ADVANCE)
    rules = spec.policies.get(phase.policy, ())
    position = progress.rule
    if progress.asking is not None:
        position -= 1
    for index in range(position + 1, len(rules)):
        rule = rules[index]
        if progress.asking is not None and index == progress.rule:
            found: bool | Failure | None = answer_of(progress.asking)
        else:
            found = True if rule.when is None else truth(run, scope.node, rule.when)
        if found is None:
            asked = ev.ScopeAsked(at=scope.node.address, what="rule", number=progress.asked + 1, index=index)
            decision.record(run, asked)
            return False
        if isinstance(found, Failure):
            text = f"rule {rule.id!r} of policy {phase.policy!r}: {found.message}"
            return _fail(run, decision, scope, Failure(code=found.code, message=text))
        if found:
            return _choose(run, decision, scope, spec, progress, phase, rule)
    if spec.otherwise is not None:
        return _choose(run, decision, scope, spec, progress, phase, spec.otherwise)
    text = f"policy {phase.policy!r} had no matching rule for phase {phase.id!r}"
    return _fail(run, decision, scope, Failure(code="no_rule", message=text))


def _choose(
    run: RunState,
    decision: Decision,
    scope: ScopeState,
    spec: Phases,
    progress: PhasesProgress,
    phase: Phase,
    rule: Rule,
) -> bool:
    made = ev.DecisionMade(
        at=scope.node.address,
        step=progress.step,
        move=rule.move,
        policy=phase.policy,
        rule=rule.id,
        target=target_of(spec, phase.id, rule),
        overwritten=progress.overwritten,
    )
    decision.record(run, made)
    return False


def target_of(spec: Phases, phase: str, rule: Rule) -> str:
    """The phase that a move goes to; "" if the block ends."""
    if rule.move == STOP:
        return ""
    if rule.move == "repeat":
        return phase
    if rule.move == "advance":
        ids = [known.id for known in spec.phases]
        position = ids.index(phase) + 1
        return ids[position] if position < len(ids) else ""
    return rule.target


def _finish(run: RunState, decision: Decision, spec: Phases, progress: PhasesProgress) -> bool:
    """What becomes of detached cells at the end; True when the block can settle."""
    outside = progress.detached
    if outside is None or not outside.unsettled or spec.on_finish == "leave":
        return True
    if spec.on_finish == "cancel" and not outside.stopping:
        decision.record(run, ev.ScopeStopped(at=outside.node.address, reason="met"))
    return False


def row_failure(row: ScopeState) -> Failure | None:
    """Why a row fails whose cells have succeeded: two of them set one variable, and that is not allowed."""
    spec, progress = row.around.node.spec, row.around.block
    if not isinstance(spec, Phases) or not isinstance(progress, PhasesProgress) or spec.on_conflict != "error":
        return None
    names = conflicts(progress)
    if not names:
        return None
    text = f"several cells of phase {_phase_of(row).id!r} set {', '.join(map(repr, names))}; on_conflict is error"
    return Failure(code="patch_conflict", message=text)
