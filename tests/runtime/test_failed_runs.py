"""What a failed run says of the steps that failed it."""

from __future__ import annotations

import pytest

from treadle import Registry, RunFailedError, connect, step, workflow

registry = Registry()


@step(registry=registry)
async def fails() -> int:
    raise ValueError("no luck")


@step(registry=registry)
async def needs(value: int) -> int:
    return value


@workflow(registry=registry)
def tolerant_above() -> int:
    return needs.bind(fails.options(optional=True).bind())


async def test_a_step_that_fails_the_run_by_being_skipped_is_said_to_be_skipped_because_of_what() -> None:
    async with connect("memory://", registry=registry) as app:
        run = await app.start(tolerant_above)

        with pytest.raises(RunFailedError, match=r"step 'needs': skipped because of fails$") as caught:
            await run.result()

        assert caught.value.failures == {"needs": "skipped because of fails"}
