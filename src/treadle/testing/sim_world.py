"""The simulated world: machines that crash and start again, clients and operators on them, and the end of all trouble.

All nodes are production `Node`s on one loop, each with ports of its own, on one shared store. When the trouble is
over (`Faults.calm`), the world's keeper starts what is down, lifts what holds runs back, and waits until every
run is closed; that it takes longer than `PATIENCE` is a finding.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from treadle.authoring.registry import Registry
from treadle.core.events import AnyEvent
from treadle.core.tables import LIVE
from treadle.errors import StoreError
from treadle.ports import Environment
from treadle.runtime.builtins import with_builtins
from treadle.runtime.client import App
from treadle.runtime.collecting import sweep
from treadle.runtime.node import Node, Settings
from treadle.store.committer import Driver, InlineDriver
from treadle.store.memory import MemoryData, MemoryStore
from treadle.testing.invariants import (
    CALLERS,
    CLOSED,
    EFFECTS,
    LEFTOVERS,
    OWNERS,
    SLOTS,
    STORE,
    Watch,
    leftovers,
)
from treadle.testing.sim_backups import Backups, Copy
from treadle.testing.sim_codec import codec_of
from treadle.testing.sim_conduct import Shelf, collected
from treadle.testing.sim_cycles import Drives
from treadle.testing.sim_events import Mail
from treadle.testing.sim_faults import Faults, Profile
from treadle.testing.sim_hooks import Ledger, SimHooks, passing
from treadle.testing.sim_joins import Join, Joins
from treadle.testing.sim_limits import Restrictions
from treadle.testing.sim_loop import LIFE, Life, NodeCrashed, SimLoop, place_of
from treadle.testing.sim_neglect import Neglect
from treadle.testing.sim_oracle import judge
from treadle.testing.sim_ports import (
    SimBlobs,
    SimClock,
    SimDriver,
    SimIds,
    SimNetwork,
    SimReaderThread,
    SimWakeups,
)
from treadle.testing.sim_processes import Apart
from treadle.testing.sim_records import Tables
from treadle.testing.sim_requests import Requests
from treadle.testing.sim_shape import Critical, Host, Shape
from treadle.testing.sim_steps import OBSERVER
from treadle.testing.sim_store import SimStore
from treadle.testing.sim_windows import Send, Windows
from treadle.testing.sim_workload import Act, RunSpec, Workload

# What a user's own simulation does: starts runs, waits for them, asserts what must hold.
Program = Callable[[App], Awaitable[None]]
# In calm, all runs close within so many virtual seconds: a loop of steps of two minutes each, and all of it back.
PATIENCE = 7200.0
# How often a node removes blobs, and how old they must be: no writer of the simulation takes so long.
COLLECT_SECONDS = 40.0
BLOB_AGE = 120.0


class World:
    """One simulation."""

    def __init__(
        self,
        seed: int,
        profile: Profile,
        shape: Shape,
        workload: Workload,
        registry: Registry,
        drop: Iterable[str],
        program: Program | None = None,
        chosen: Mapping[str, str] | None = None,
        restrictions: Restrictions | None = None,
        sends: Sequence[Send] | None = None,
        records: str | None = None,
        joins: Sequence[Join] | None = None,
        driven: Sequence[int] | None = None,
        apart: bool | None = None,
        backups: Sequence[float] | None = None,
        restored: Copy | None = None,
    ) -> None:
        self.seed = seed
        self.shape = shape
        self.workload = workload
        self.drop = frozenset(drop)
        self.registry = with_builtins(registry)
        self.rng = random.Random(seed ^ 0xC0FFEE)
        self.trace: list[str] = []
        # A user's program, run again from its start whenever it died with its node.
        self.program = program
        self.programmed = program is None
        self.failures: list[tuple[str, str]] = []
        self.loop = SimLoop(self._deadlocked)
        self.data, self.blobs = (MemoryData(), Shelf()) if restored is None else (restored.data, restored.shelf)
        self.blobs.now = self.loop.time
        self.faults = Faults(seed, profile, drop, self.crash, self.say, chosen)
        self.network = SimNetwork(self.loop, self.faults)
        self.watch = Watch(self.data, self.fail, self.say)
        self.mail = Mail(seed, self.fail)
        self.ledger = Ledger(self.watch.journals, self.fail)
        self.watch.on_written = self._written
        # The newest node of each host; one that opens has no session yet.
        self.nodes: dict[int, Node] = {}
        self.collects_at = COLLECT_SECONDS
        self.over = False
        self.dissolved = False
        self.root = contextvars.copy_context()
        self.root.run(OBSERVER.set, self.watch)
        self.root.run(LIFE.set, None)
        self.hosts = [
            Host(index, SimClock(self.loop, shape.skews[index], 1.0 + 0.02 * (self.rng.random() - 0.5)))
            for index in range(shape.nodes)
        ]
        self.drives = Drives(seed, shape.nodes, self.watch, self.say, self.fail, driven)
        self.neglect = Neglect(self.hosts, self.data, self.watch, self.loop.time)
        self.restrictions = restrictions or Restrictions(seed, shape.seconds, shape.nodes)
        self.tables = Tables(seed, shape.seconds, self.fail, "" if records is None and program is not None else records)
        self.watch.on_unfit, self.watch.on_given = self.tables.unfit, self.tables.take
        joins = () if joins is None and program is not None else joins
        self.joins = Joins(seed, shape.seconds, shape.nodes, self.watch, self.fail, joins)
        sends = () if sends is None and program is not None else sends
        punctual = chosen is not None
        self.windows = Windows(
            seed, shape.seconds, shape.nodes, self.watch, self.blobs, self.fail, sends, punctual=punctual
        )
        self.backups = Backups(seed, shape.seconds, self.watch, self.blobs, self.loop.time, self.fail, backups)
        self.apart = Apart(seed, self.registry, apart)
        self.requests = Requests(self.loop, self.watch, workload, self.restrictions, self.apart, self.drop, self.fail)
        self.watch.limits.offers = self._offers
        self.watch.limits.clocks = self._clocks

    # -- findings ------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.loop.time():.6f} {text}")

    def fail(self, name: str, text: str) -> None:
        """Note a broken invariant, and stop."""
        if self.dissolved:
            return
        self.failures.append((name, text))
        self.say(f"BROKEN {name}: {text}")
        self.over = True
        self.loop.stop()

    def _written(self, life: Life | None, key: str, event: AnyEvent) -> None:
        self.ledger.wrote(life, key, event)
        self.windows.wrote(life, key, event)
        self.drives.wrote(key, event)

    def _deadlocked(self) -> None:
        waits = "\n".join(f"  {place_of(task)}" for task in self.loop.pending())
        self.fail(CLOSED, f"deadlock: nothing is ready and no timer is set; pending:\n{waits}")

    def _handle(self, _loop: asyncio.AbstractEventLoop, facts: dict[str, Any]) -> None:
        error = facts.get("exception")
        if isinstance(error, NodeCrashed) or self.over:
            return
        self.fail(CALLERS, f"{facts.get('message')}: {error!r} {facts.get('handle') or facts.get('task')}")

    # -- hosts ---------------------------------------------------------------------------------------------------

    def boot(self, host: Host) -> None:
        """Start a host's process."""
        if host.life is not None and not host.life.dead:
            return
        host.lives += 1
        host.life = Life(f"n{host.index}.{host.lives}")
        context = self.root.copy()
        context.run(LIFE.set, host.life)
        host.context = context
        self.say(f"boot {host.life.name}")
        self.loop.create_task(self._boot(host, host.life), context=context)

    async def _boot(self, host: Host, life: Life) -> None:
        shape, index, loop, faults = self.shape, host.index, self.loop, self.faults
        rng = random.Random(f"{self.seed} {life.name}")
        store = SimStore(MemoryStore(self.data), faults, life, self.watch)
        environment = Environment(
            clock=host.clock,
            ids=SimIds(host.clock, rng),
            threads=self.apart.threads(loop, rng, shape.threads[index]),
            spawn=self.apart.spawner(loop, faults, life, host.clock),
            wakeups=SimWakeups(self.network, life.name),
            store=store,
        )

        def driver() -> Driver:
            # The memory store's own driver now and then: it answers at once, inside the call that asks.
            if shape.inline[index]:
                return InlineDriver(renew_seconds=shape.lease / 3)
            return SimDriver(loop, faults, life.name, shape.lease / 3)

        node = Node(
            environment,
            driver=driver,
            blobs=SimBlobs(self.blobs, faults, life),
            registry=self.registry,
            settings=Settings(
                slots=shape.slots[index],
                threads=shape.threads[index],
                worker=shape.workers[index],
                cycles=index in self.drives.hosts,
                worker_id=f"n{index}",
                lease_seconds=shape.lease,
                limits=shape.limits,
                hooks=self._hooks,
                middleware=(passing, passing) if self._hooks else (),
                queues=tuple(self.restrictions.queues),
                targets=self._targets(index) if self.restrictions.on else (),
                codec=codec_of(self.seed, life.name, faults),
            ),
            in_reader=SimReaderThread(loop, faults, life).run,
            sinks=self.mail.sinks(faults),
            projections=self.tables.live(faults, life),
        )
        self.nodes[index] = node
        try:
            await node.open()
        except StoreError as error:
            # The program ends with an error; whoever runs it starts it again.
            self.say(f"{life.name} cannot start: {error}")
            self.crash(life, "at its start")
            return
        host.node = node
        host.app = App(node, _nothing)
        if node.cycles is not None:
            self.drives.begin(host)

    def _targets(self, index: int) -> Callable[[], list[str]]:
        return lambda: self.restrictions.targets(index, -1.0 if self.faults.calm else self.loop.time())

    def _clocks(self) -> tuple[float, float]:
        """The clocks that are most behind and most ahead."""
        times = [host.clock.now() for host in self.hosts]
        return min(times), max(times)

    def _offers(self, session: str) -> Sequence[str]:
        """What a session's node takes."""
        return next((node.slots.targets() for node in self.nodes.values() if node.session == session), ())

    @property
    def _hooks(self) -> tuple[SimHooks, ...]:
        """In every second world all nodes have hooks, and middleware."""
        return (SimHooks(self.ledger),) if self.seed % 2 else ()

    def crash(self, life: Life, why: str) -> None:
        """A host's process dies."""
        if life.dead:
            return
        self.say(f"crash {life.name} {why}")
        self.loop.kill(life)
        self.network.leave(f"sim:{life.name}")
        self._gone(life)

    def _gone(self, life: Life) -> None:
        """Its sessions are dead, which some stores can tell, and it starts again after a while."""
        for session, own in self.watch.sessions.items():
            if own is life and self.rng.random() < 0.5:
                self.watch.known_dead.append(session)
        for host in self.hosts:
            if host.life is life:
                host.node = host.app = None
                seconds = 0.5 if self.faults.calm else self.rng.choice((0.1, 2.0, 20.0)) * self.rng.random()
                self.loop.call_later(seconds, self.boot, host, context=self.root)

    async def _restart(self, host: Host, grace: float) -> None:
        """A process ends in order."""
        node, life = host.node, host.life
        assert node is not None
        assert life is not None
        host.app = host.node = None
        self.drives.end(life)
        await node.drain(grace)
        await node.close()
        life.dead = True
        self._gone(life)

    # -- what happens at instants ----------------------------------------------------------------------------------

    def _act(self, act: Act) -> None:
        if self.faults.calm and act.name.startswith("at"):
            return
        host = self.hosts[act.node]
        if act.name.startswith(("op", "gc")):
            self.requests.operate(host, act)
        elif not act.name.startswith("window"):
            self._blow(host, act)
        elif runs := self.windows.runs():
            self.requests.operate_on(host, act, runs[int(act.number * len(runs))].head.id)

    def _blow(self, host: Host, act: Act) -> None:
        """The world does something to a node."""
        self.faults.strike(act.what, act.name)
        life, node = host.life, host.node
        if life is None or life.dead or node is None:
            return
        if act.what == "crash":
            self.crash(life, "at a random instant")
        elif act.what == "jump":
            host.clock.jump((act.number - 0.5) * 120)
        elif act.what == "restart":
            assert host.context is not None
            self.loop.create_task(self._restart(host, 3 * act.number), context=host.context.copy())
        elif act.what == "condemn":
            self._on_other(host, lambda other: other.committer.submit(lambda store: store.bury(node.session), _ignore))
        elif act.what == "steal":
            keys = [
                key for key, run in self.data.runs.items() if run.owner is not None and run.owner.id == node.session
            ]
            if keys:
                key = keys[int(act.number * len(keys))]
                self._on_other(host, lambda other: self._steal(other, key))

    def _steal(self, node: Node, key: str) -> None:
        # Another session thinks that the owner is silent.
        node.engine.acquire(key, steal=True).add_done_callback(lambda found: found.cancelled() or found.exception())

    def _on_other(self, host: Host, work: Callable[[Node], None]) -> None:
        for other in self.hosts:
            if other is not host and other.node is not None and other.context is not None:
                other.context.copy().run(work, other.node)
                return

    # -- the course of the world -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Let it all happen; `failures` says what was found."""
        logging.getLogger("treadle").addHandler(handler := Critical(self.fail))
        level = logging.getLogger("treadle").level
        logging.getLogger("treadle").setLevel(logging.CRITICAL)
        loop = self.loop
        loop.set_exception_handler(self._handle)
        try:
            loop.call_soon(self._begin, context=self.root)
            loop.run_forever()
        finally:
            logging.getLogger("treadle").removeHandler(handler)
            logging.getLogger("treadle").setLevel(level)
        self.over = True
        if not self.failures:
            self._judge()

    def dissolve(self) -> None:
        """Let go of the loop and of all that was kept."""
        self.dissolved = True
        self.apart.dissolve()
        self.loop.dissolve()

    def _begin(self) -> None:
        for host in self.hosts:
            self.loop.call_later(self.rng.random() * 0.2, self.boot, host)
        for spec in self.workload.runs:
            self._plan(spec.name, spec.at, self._start_at, spec.node, spec, spec.awaits)
            for at, node in spec.again:
                self._plan(spec.name, at, self._start_at, node, spec, False)
        for act in (*self.workload.acts, *self.windows.acts, *self._deletions()):
            self._plan(act.name, act.at, self._act, act)
        for change in self.restrictions.changes:
            host = self.hosts[change.node]
            self._plan(change.name, change.at, self.requests.limit, host, change.name, change.change)
        self._plan_asides()
        self.loop.create_task(self._keep(), context=self.root)
        if self.program is not None:
            self.loop.create_task(self._run_program(self.program), context=self.root)

    def _deletions(self) -> list[Act]:
        """When operators have old runs deleted, in some worlds."""
        rng = random.Random(f"deletions of {self.seed}")
        if self.program is not None or self.faults.chosen is not None or rng.random() > 0.15:
            return []
        times = [self.shape.seconds * rng.random() for _ in range(3)]
        return [Act(f"gc{n}", at, "gc", rng.randrange(self.shape.nodes), 0, 0.0) for n, at in enumerate(times)]

    def _plan_asides(self) -> None:
        """What some worlds have besides: triggers, transactions, tables that are made anew."""
        for send in self.windows.sends:
            for at, node in ((send.at, send.node), *send.again):
                self._plan(send.name, at, self._send, self.hosts[node], send)
        for join in self.joins.joins:
            self._plan(join.name, join.at, self._join, self.hosts[join.node], join)
        for number, at in enumerate(self.backups.asks):
            self._plan(f"backup{number}", at, self._back_up, self.hosts[number % len(self.hosts)], f"backup{number}")
        for number, at in enumerate(self.tables.rebuilt_at):
            host = self.hosts[number % len(self.hosts)]
            self._plan(f"rebuild{number}", at, self.requests.client, host, "rebuild", self.tables.rebuild)

    def _plan(self, name: str, at: float, what: Callable[..., object], *args: object) -> None:
        """Have something happen at a time, unless it is left out."""
        if name not in self.drop:
            self.loop.call_later(at, what, *args)

    async def _run_program(self, program: Program) -> None:
        while not self.programmed:
            host = self.hosts[self.rng.randrange(len(self.hosts))]
            found = self.requests.client(host, "program", lambda app: self._programmed(program, app))
            if found is not None:
                # A look now and then: a program whose node died never ends.
                life, task = found
                while not life.dead and not task.done():
                    await asyncio.wait([task], timeout=0.5)
            await asyncio.sleep(0.5)

    async def _programmed(self, program: Program, app: App) -> None:
        await program(app)
        self.programmed = True

    def _start_at(self, node: int, spec: RunSpec, awaits: bool) -> None:
        self.requests.start(self.hosts[node], spec, awaits=awaits)

    def _send(self, host: Host, send: Send) -> None:
        self.requests.client(host, f"send {send.name}", self.windows.sending(send))

    def _join(self, host: Host, join: Join) -> None:
        work = self.joins.joining(join, self.faults, LIFE.get, lambda address: self.network.send("join", address))
        self.requests.client(host, f"join {join.name}", work)

    def _back_up(self, host: Host, name: str) -> None:
        if (node := host.node) is not None:
            self.requests.client(host, name, lambda _app: self.backups.make(node, name, BLOB_AGE))

    async def _keep(self) -> None:
        """Watch over the trouble, then over the calm."""
        step = 2.0
        while self.loop.time() < self.shape.seconds:
            await asyncio.sleep(step)
            self._tend()
        self.faults.calm = True
        self.say("calm")
        deadline = self.loop.time() + PATIENCE
        await asyncio.sleep(step)
        while not await self._settle():
            self._tend()
            if self.loop.time() > deadline:
                self._say_open()
                return
            await asyncio.sleep(step)
        await self._end()

    def _tend(self) -> None:
        """Look for runs that nobody minds; now and then have a node remove blobs that are old and that nobody names."""
        self.neglect.look()
        if self.loop.time() < self.collects_at:
            return
        self.collects_at += COLLECT_SECONDS
        for host in self.hosts:
            if host.node is not None:
                work = collected(host.node, self.loop.time() - BLOB_AGE)
                self.loop.create_task(work, context=host.context)
                return

    async def _settle(self) -> bool:
        """Lift what holds runs back; True when all is closed."""
        up = [host for host in self.hosts if host.app is not None]
        for host in self.hosts:
            if host.app is None:
                return False
        host = up[int(self.loop.time()) % len(up)]
        for spec in self.workload.runs:
            if (
                spec.name not in self.drop
                and spec.id not in self.data.ids
                and spec.id not in self.requests.desk.deleted
            ):
                self.requests.start(host, spec)
        asked = self._ask_again(host)
        for change in self.restrictions.lifted(self.data):
            self.requests.limit(host, "lift", change)
        for key, run in self.data.runs.items():
            if self.program is None and run.status in LIVE and int(self.loop.time()) % 5 == 0:
                self.requests.lift(host, run.head.id, self.watch.journals[key])
        return asked and self.programmed and not leftovers(self.data) and not self.requests.waiting()

    def _ask_again(self, host: Host) -> bool:
        """Send triggers again, and begin transactions, of which nobody has heard; True if there are none."""
        sends = [send for send in self.windows.missing() if send.name not in self.drop]
        joins = [join for join in self.joins.missing() if join.name not in self.drop]
        if int(self.loop.time()) % 5 == 0:
            for send in sends:
                self._send(host, send)
            for join in joins:
                self._join(host, join)
        return not sends and not joins

    def _say_open(self) -> None:
        lines = leftovers(self.data)
        lines += self.requests.waiting()
        if not self.programmed:
            lines.append("the program has not come to its end")
        lines += [f"host n{host.index} is not up" for host in self.hosts if host.app is None]
        only_clients = all(line.startswith("client") for line in lines)
        self.fail(CALLERS if only_clients else CLOSED, f"after {PATIENCE:g} s of calm:\n  " + "\n  ".join(lines))

    async def _end(self) -> None:
        """All is closed: slots are free, and every node ends in order."""
        await self.drives.finish()
        for _ in range(100):
            if not any(self._busy(host) for host in self.hosts) and not self._unburied():
                break
            await asyncio.sleep(5.0)
        await self._collect_all()
        await self.mail.judge(self.data, self.loop.time)
        await self.tables.settle(self.data, self.loop.time)
        # The last answers are still on their way, and hooks are told after them.
        await asyncio.sleep(5.0)
        for host in self.hosts:
            if text := self._busy(host):
                self.fail(SLOTS, text)
            self._check_hooks(host)
        if dead := self._unburied():
            self.fail(OWNERS, f"sessions {dead} are dead and nobody buries them")
        for host in self.hosts:
            if host.node is not None:
                closing = self.loop.create_task(host.node.close(), context=host.context)
                await asyncio.wait([closing], timeout=60.0)
                if not closing.done():
                    self.fail(CALLERS, f"n{host.index} does not close: {place_of(closing)}")
        await asyncio.sleep(2 * self.shape.lease)
        if not self.over:
            self.loop.stop()

    async def _collect_all(self) -> None:
        """Nothing goes on: all blobs but those that runs name can go."""
        for host in self.hosts:
            if host.node is not None:
                work = self.loop.create_task(sweep(host.node, self.loop.time() + 1.0), context=host.context)
                await asyncio.wait([work])
                if (error := work.exception()) is not None:
                    self.fail(EFFECTS, f"blobs are not collected: {error!r}")
                break
        for text in self.blobs.dangling(self.data.runs.values()):
            self.fail(EFFECTS, text)

    def _check_hooks(self, host: Host) -> None:
        """The hooks of a node know all, unless it has lost a session, and with it what was on its way."""
        if host.node is not None and host.life is not None and self._hooks and self.watch.entered[host.life] == 1:
            self.ledger.check(host.life)

    def _unburied(self) -> list[str]:
        """Sessions whose process is gone."""
        alive = {host.node.session for host in self.hosts if host.node is not None}
        return [session for session in self.data.sessions if session not in alive]

    def _busy(self, host: Host) -> str:
        node = host.node
        if node is None:
            return ""
        if node.worker.active:
            return f"n{host.index} still executes {list(node.worker.active)}"
        free, size = self.drives.room(node), node.slots.size
        if free != size and node.settings.worker:
            return f"n{host.index} executes nothing and has {free} of {size} slots free"
        return ""

    # -- the end -------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        for text in leftovers(self.data):
            self.fail(LEFTOVERS, text)
        self.watch.check_store()
        if self.data.sessions:
            self.fail(STORE, f"all nodes are closed, and sessions {list(self.data.sessions)} live")
        self.windows.judge()
        self.joins.judge()
        self.drives.judge()
        oracles = judge(self.watch.journals, self.blobs, self.requests.told, self.data.tombstones, self.fail)
        self.tables.judge(oracles, self.data)

    def digest(self) -> str:
        """The hash of the trace: of every call, fault, event and execution, with its time."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]


def _nothing() -> None:
    """The store outlives its nodes."""


def _ignore(_value: object, _error: BaseException | None) -> None:
    """What becomes of it shows in the world."""
