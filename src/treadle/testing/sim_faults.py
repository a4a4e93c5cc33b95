"""Faults: what goes wrong, where and how often, all of it from one seed.

A fault has a name that says where it strikes (`n1.commit#14` is the 14th commit of node n1), and whether it
strikes is a function of the seed and that name. So a fault can be dropped from a failing history while the others
stay where they were; `Faults.drop` holds the names that are left out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar
from zlib import crc32

import msgspec

from treadle.errors import StoreUnavailableError
from treadle.testing.sim_loop import Life, NodeCrashed

T = TypeVar("T")

# Kinds of faults at a store call, in the order in which the chances below are laid out.
KINDS = ("crash_before", "crash_after", "error_before", "error_after", "conflict", "slow")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How often what goes wrong: chances of each kind at a store call, and of the network's and delays' faults."""

    crash_before: float = 0.0
    crash_after: float = 0.0
    error_before: float = 0.0
    error_after: float = 0.0
    conflict: float = 0.0
    slow: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    # Store calls and answers usually take up to so many seconds.
    pace: float = 0.005
    # How long a slow call takes at most.
    hold: float = 20.0
    # Random instants: crashes, false death sentences, stolen runs, clock jumps, restarts; so many each.
    instants: int = 0
    # How long faults last.
    seconds: float = 40.0


QUIET = Profile()


def profile_of(rng: random.Random) -> Profile:
    """A seed's profile: quiet, one kind of trouble only, or a mix."""

    def chance(most: float) -> float:
        return most * rng.random() ** 2

    style = rng.random()
    pace = rng.choice((0.0005, 0.005, 0.05, 0.2))
    if style < 0.08:
        return Profile(pace=pace)
    chances = {
        "crash_before": chance(0.02),
        "crash_after": chance(0.02),
        "error_before": chance(0.15),
        "error_after": chance(0.15),
        "conflict": chance(0.15),
        "slow": chance(0.03),
        "lost": chance(1.0),
        "doubled": chance(0.5),
        "late": chance(0.5),
    }
    if style < 0.4:
        # One or two kinds alone: a mix may hide what one of them would show.
        kept = rng.sample(sorted(chances), 2)
        chances = {name: value for name, value in chances.items() if name in kept}
    return Profile(
        **chances,
        pace=pace,
        hold=rng.choice((1.0, 8.0, 30.0)),
        instants=rng.choice((0, 3, 8, 16)),
        seconds=rng.choice((10.0, 30.0, 60.0)),
    )


class Faults:
    """Decides, counts and reports the faults of one simulation."""

    def __init__(
        self,
        seed: int,
        profile: Profile,
        drop: Iterable[str],
        kill: Callable[[Life, str], None],
        say: Callable[[str], None],
        chosen: Mapping[str, str] | None = None,
    ) -> None:
        self.seed = seed
        self.profile = profile
        self.drop = frozenset(drop)
        # The end has come: nothing fails any more.
        self.calm = False
        # How often each kind struck, and the names of all that struck.
        self.counts: Counter[str] = Counter()
        self.struck: list[str] = []
        # Faults that are chosen and not drawn, by names like `commit#14`: the 14th commit of any node.
        self.chosen = chosen
        # How often each operation of the store was called while faults could strike.
        self.calls: Counter[str] = Counter()
        self._kill = kill
        self._say = say
        self._calls: Counter[str] = Counter()
        self._rng = random.Random(seed ^ 0x5EED)
        self._chances = [(kind, getattr(profile, kind)) for kind in KINDS]

    def _chance(self, name: str) -> float:
        """A number from 0 to 1 that depends on seed and name only."""
        mixed = crc32(name.encode(), self.seed & 0xFFFFFFFF)
        # crc32 is linear, so near names give near numbers; a multiplication spreads them.
        return ((mixed * 0x9E3779B97F4A7C15 + self.seed) >> 16 & 0xFFFFFFFF) / 0x1_0000_0000

    def _pick(self, name: str, chances: Iterable[tuple[str, float]]) -> str:
        """The fault that strikes here, "" for none."""
        if self.calm:
            return ""
        left = self._chance(name)
        for kind, chance in chances:
            if left < chance:
                if name in self.drop:
                    return ""
                self.strike(kind, name)
                return kind
            left -= chance
        return ""

    def strike(self, kind: str, name: str) -> None:
        """Note that a fault strikes."""
        self.counts[kind] += 1
        self.struck.append(name)
        self._say(f"fault {kind} {name}")

    def _name(self, what: str) -> str:
        self._calls[what] += 1
        return f"{what}#{self._calls[what]}"

    def at_call(self, life: Life, operation: str) -> str:
        """The fault that strikes at this store call."""
        if self.chosen is not None:
            return self._as_chosen(self.chosen, operation)
        return self._pick(self._name(f"{life.name}.{operation}"), self._chances)

    def _as_chosen(self, chosen: Mapping[str, str], operation: str) -> str:
        if self.calm:
            return ""
        self.calls[operation] += 1
        name = f"{operation}#{self.calls[operation]}"
        kind = chosen.get(name, "")
        if kind:
            self.strike(kind, name)
        return kind

    def call(self, life: Life, operation: str, function: Callable[[], T], *, fault: str | None = None) -> T:
        """Make a store call of a node, or let it fail."""
        if life.dead:
            raise NodeCrashed
        kind = self.at_call(life, operation) if fault is None else fault
        if kind == "crash_before":
            self._kill(life, f"before {operation}")
            raise NodeCrashed
        if kind == "error_before":
            raise StoreUnavailableError(f"{operation} failed before it took effect")
        value = function()
        if kind == "crash_after":
            self._kill(life, f"after {operation}")
            raise NodeCrashed
        if kind == "error_after":
            raise StoreUnavailableError(f"{operation} failed after it took effect")
        return value

    def kill(self, life: Life, why: str) -> None:
        """Kill a node."""
        self._kill(life, why)

    def at_turn(self, life: Life, what: str, chance: float) -> str:
        """The fault that strikes at something with a chance of its own; of any kind but slowness."""
        if self.chosen is not None:
            return self._as_chosen(self.chosen, what)
        kinds = [kind for kind, _ in self._chances if kind != "slow"]
        return self._pick(self._name(f"{life.name}.{what}"), [(kind, chance / len(kinds)) for kind in kinds])

    def delay(self, what: str) -> float:
        """How long something takes; now and then very long."""
        profile = self.profile
        usual = profile.pace * self._rng.random()
        if profile.slow and not self.calm and self._pick(self._name(what), (("slow", profile.slow / 3),)):
            return profile.hold * self._rng.random()
        return usual

    def datagram(self, what: str) -> list[float]:
        """After which delays a datagram arrives; nothing if it is lost."""
        profile = self.profile
        name = self._name(what)
        usual = profile.pace * self._rng.random()
        chances = (("lost", profile.lost), ("doubled", profile.doubled), ("late", profile.late))
        kind = self._pick(name, chances) if profile.lost or profile.doubled or profile.late else ""
        if kind == "lost":
            return []
        if kind == "late":
            return [usual + 5.0 * self._rng.random()]
        if kind == "doubled":
            return [usual, usual + self._rng.random()]
        return [usual]
