"""`sleep`: a step that is over after a while. It waits as a time in the store, without a worker, a thread or a slot."""

from __future__ import annotations

from typing import Any, Final, Self, Unpack

from treadle.authoring.bound import Bound, this_frame
from treadle.authoring.builder import plan_call
from treadle.authoring.durations import Duration, seconds_of
from treadle.authoring.options import Chosen, StepOptions, choose
from treadle.authoring.registry import Definition
from treadle.core.plan import UNLIMITED

SLEEP: Final = "treadle:sleep"


def _define() -> Definition:
    async def sleep(duration: Duration = 0.0) -> None:
        import asyncio

        await asyncio.sleep(seconds_of(duration))

    return Definition(sleep, name=SLEEP)


_DEFINITION: Final = _define()
_CHOSEN: Final = Chosen({"queue": UNLIMITED}, {})


class SleepFunction:
    """What `sleep` is: used like a step function. Its result is None."""

    def __init__(self, chosen: Chosen = _CHOSEN) -> None:
        self.definition: Final = _DEFINITION
        self.chosen = chosen

    async def __call__(self, duration: Duration) -> None:
        """Wait here and now, as `asyncio.sleep`; nothing is planned or stored."""
        import asyncio

        await asyncio.sleep(seconds_of(duration))

    # The value is None; as Any, since checkers refuse to pass on what they know to be None.
    def bind(self, duration: Duration) -> Any:
        """Plan a step that is over `duration` after it became ready: `after=sleep.bind("3d")`.

        The time is fixed when the step is ready, and stands whatever happens to processes. A planned value may give
        the duration.
        """
        if isinstance(duration, Bound):
            return plan_call(self.definition, self.chosen, (duration,), {}, this_frame(1))
        return plan_call(self.definition, choose(self.chosen, {"delay": duration}), (), {}, this_frame(1))

    def options(self, **given: Unpack[StepOptions]) -> Self:
        """The same with other options for the steps planned through it, such as `id=` and `after=`."""
        return type(self)(choose(self.chosen, given))

    def __repr__(self) -> str:
        return "<step function sleep>"


sleep: Final = SleepFunction()
