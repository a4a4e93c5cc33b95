"""What follows in a Phases block: the next row, the same one again, a question to a rule, or the end.

A row is a barrier. When it has succeeded, the first rule of its phase's policy that holds decides: an expression over
values that the kernel sees is evaluated here, any other condition by a worker, as a step of the block. When it has
failed and none of its attempts is live any more, what it did is undone, and it is tried again as its phase's retry
policy says.
"""

from __future__ import annotations

from zlib import crc32

from treadle.core import events as ev
from treadle.core.conditions import answer_of, truth
from treadle.core.decision import Decision
from treadle.core.events import Failure
from treadle.core.opened import conflicts
from treadle.core.plan import Phase, Phases, Rule
from treadle.core.progress import PhasesProgress
from treadle.core.resolve import UnresolvedError, resolve
from treadle.core.state import RunState, ScopeState, question_of, settled
from treadle.core.tables import FAILED, RUNNING, SUCCEEDED
from treadle.core.unwinding import begin_unwinding, unwind_block

# What follows where no rule says it.
_ADVANCE = Rule(id="", move="advance")
_STOP = Rule(id="", move="stop")


def proceed_phases(run: RunState, decision: Decision, scope: ScopeState) -> bool:
    """Let the block go on; True when nothing is left but its outcome."""
    spec, progress = scope.node.spec, scope.block
    assert isinstance(spec, Phases)
    assert isinstance(progress, PhasesProgress)
    row = progress.row
    if row is None:
        return _begin(run, decision, scope, spec)
    asking = question_of(run, scope)
    if not settled(row) or (asking is not None and not settled(asking)):
        return False
    if asking is not None and asking.status != SUCCEEDED:
        # A rule that raised.
        return _ended(run, decision, spec, progress)
    if row.status != SUCCEEDED:
        return _try_again(run, decision, scope, spec, progress, row)
    made = progress.decision
    if made is None:
        if not (run.labels and _is_held(run, row)):
            _decide(run, decision, scope, spec, progress, row)
        return False
    if made.target and made.failure is None:
        _enter(run, decision, scope, progress, made.target)
        return False
    if not _ended(run, decision, spec, progress):
        return False
    return made.failure is None or _fail(run, decision, scope, made.failure)


def _begin(run: RunState, decision: Decision, scope: ScopeState, spec: Phases) -> bool:
    progress = scope.block
    assert isinstance(progress, PhasesProgress)
    try:
        for slot in spec.state.values():
            resolve(run, scope.node, slot)
    except UnresolvedError as error:
        return _fail(run, decision, scope, Failure(code="unresolved", message=str(error)))
    _enter(run, decision, scope, progress, spec.start or spec.phases[0].id)
    return False


def _enter(run: RunState, decision: Decision, scope: ScopeState, progress: PhasesProgress, phase: str) -> None:
    event = ev.RowOpened(
        at=scope.node.address, phase=phase, step=progress.step + 1, entry=progress.entries.get(phase, 0) + 1
    )
    decision.record(run, event)


def _fail(run: RunState, decision: Decision, scope: ScopeState, failure: Failure) -> bool:
    """End the block by a failure of its own, once what it did is undone."""
    if unwind_block(run, decision, scope):
        return False
    decision.record(run, ev.ScopeSettled(at=scope.node.address, outcome=FAILED, failure=failure))
    return False


def _phase_of(row: ScopeState) -> Phase:
    phase = row.node.spec
    assert isinstance(phase, Phase)
    return phase


def asked_rule(block: ScopeState) -> str:
    """The rule that a block has asked last, in words: its id, its policy and the phase that it was asked after."""
    progress, spec = block.block, block.node.spec
    assert isinstance(progress, PhasesProgress)
    assert isinstance(spec, Phases)
    assert progress.row is not None
    phase = _phase_of(progress.row)
    rule = spec.policies[phase.policy][progress.rule]
    return f"rule {rule.id!r} of policy {phase.policy!r}, asked after phase {phase.id!r},"


# -- after a row that failed -----------------------------------------------------------------------------------------


def _try_again(
    run: RunState, decision: Decision, scope: ScopeState, spec: Phases, progress: PhasesProgress, row: ScopeState
) -> bool:
    phase = _phase_of(row)
    policy = phase.retry
    if (
        policy is None
        or row.status != FAILED
        or (policy.attempts and progress.attempts + 1 >= policy.attempts)
        or (policy.never and _first_code(run, row) in policy.never)
        # In a detached cell that outlives its run nothing is undone first.
        or (run.undoes and run.status != RUNNING)
    ):
        return _ended(run, decision, spec, progress)
    if run.is_busy(row):
        return False
    if not row.unwound and begin_unwinding(run, decision, row, reason="retry"):
        return False
    if progress.question < 0:
        fraction = crc32(f"{run.key}/{row.node.address}".encode()) / 0xFFFFFFFF if policy.jitter else 0.0
        delay = policy.delay(progress.attempts + 1, fraction)
        if delay > 0:
            number = progress.asked + 1
            decision.record(run, ev.ScopeAsked(at=scope.node.address, what="wait", number=number, delay=delay))
            return False
    event = ev.RowOpened(
        at=scope.node.address, phase=phase.id, step=progress.step, entry=progress.entries[phase.id] + 1, again=True
    )
    decision.record(run, event)
    return False


def _first_code(run: RunState, scope: ScopeState) -> str:
    """The code of what failed a scope first."""
    while scope.failure is None:
        first = next((run.states[number] for number in scope.bad), None)
        if not isinstance(first, ScopeState):
            return first.failure.code if first is not None and first.failure is not None else ""
        scope = first
    return scope.failure.code


# -- after a row that succeeded --------------------------------------------------------------------------------------


def _is_held(run: RunState, scope: ScopeState) -> bool:
    """Whether a breakpoint after a step in the scope holds what follows."""
    return any(_is_held(run, state) if isinstance(state, ScopeState) else state.holding for state in run.content(scope))


def _decide(
    run: RunState, decision: Decision, scope: ScopeState, spec: Phases, progress: PhasesProgress, row: ScopeState
) -> None:
    """Find the rule that holds; ask a worker where the kernel cannot see."""
    phase = _phase_of(row)
    if not progress.ruled:
        _choose(run, decision, scope, spec, progress, phase, _ADVANCE)
        return
    rules = spec.policies.get(phase.policy, ())
    asking = question_of(run, scope)
    for index in range(progress.rule if asking is not None else 0, len(rules)):
        rule = rules[index]
        if asking is not None and index == progress.rule:
            found: bool | Failure | None = answer_of(asking)
        else:
            found = True if rule.when is None else truth(run, scope.node, rule.when)
        if found is None:
            asked = ev.ScopeAsked(at=scope.node.address, what="rule", number=progress.asked + 1, index=index)
            decision.record(run, asked)
            return
        if isinstance(found, Failure):
            text = f"rule {rule.id!r} of policy {phase.policy!r}: {found.message}"
            failure = Failure(code=found.code, message=text, type=found.type)
            _choose(run, decision, scope, spec, progress, phase, rule, failure)
            return
        if found:
            _choose(run, decision, scope, spec, progress, phase, rule)
            return
    if spec.otherwise is not None:
        _choose(run, decision, scope, spec, progress, phase, spec.otherwise)
        return
    text = f"policy {phase.policy!r} had no matching rule for phase {phase.id!r}"
    _choose(run, decision, scope, spec, progress, phase, _STOP, Failure(code="no_rule", message=text))


def _choose(
    run: RunState,
    decision: Decision,
    scope: ScopeState,
    spec: Phases,
    progress: PhasesProgress,
    phase: Phase,
    rule: Rule,
    failure: Failure | None = None,
) -> None:
    target = target_of(progress, phase.id, rule)
    if failure is None and target and progress.step + 1 >= spec.step_limit:
        text = f"{progress.step + 1} rows were executed without an end, and no more are allowed (step_limit)"
        failure = Failure(code="step_limit", message=text)
    made = ev.DecisionMade(
        at=scope.node.address,
        step=progress.step,
        move=rule.move,
        policy=phase.policy,
        rule=rule.id,
        target=target,
        overwritten=progress.overwritten,
        failure=failure,
    )
    decision.record(run, made)


def target_of(progress: PhasesProgress, phase: str, rule: Rule) -> str:
    """The phase that a move goes to; "" if the block ends."""
    if rule.move == "stop":
        return ""
    if rule.move == "repeat":
        return phase
    if rule.move == "advance":
        return progress.phases[phase].following
    return rule.target


def _ended(run: RunState, decision: Decision, spec: Phases, progress: PhasesProgress) -> bool:
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
    if progress.row is not row:
        # A compensating phase sets no variables.
        return None
    names = conflicts(progress)
    if not names:
        return None
    text = f"several cells of phase {_phase_of(row).id!r} set {', '.join(map(repr, names))}; on_conflict is error"
    return Failure(code="patch_conflict", message=text)
