"""Testing a workflow: steps as plain functions, the plan without running it, and a run in memory.

The tests are plain functions with asserts, as pytest takes them; here the program calls them itself.
"""

import asyncio

from treadle import Retry, SlotError, connect, step, workflow


@step
def clean(text: str) -> str:
    return " ".join(text.split()).lower()


@step(retry=Retry(attempts=3, initial="1ms"))
async def store(text: str) -> int:
    if not text:
        raise ValueError("nothing to store")
    return len(text)


@workflow
def tidy(text: str) -> int:
    return store.bind(clean.bind(text))


def test_a_step_is_still_a_function() -> None:
    assert clean("  Warp   and WEFT ") == "warp and weft"
    assert asyncio.run(store("abc")) == 3


def test_the_plan_shows_what_would_run() -> None:
    assert [block.id for block in tidy.plan("any").plan.blocks] == ["clean", "store"]


def test_a_wrong_argument_is_refused_before_anything_runs() -> None:
    refused = ""
    try:
        tidy.plan(12)  # type: ignore[arg-type]  # checkers see it too; this is for those who have none
    except SlotError as error:
        refused = str(error)

    assert "'text'" in refused


def test_a_run_in_memory() -> None:
    # The same engine as on a file, and no trace left behind.
    with connect("memory://") as app:
        run = app.start(tidy, "  Warp   and WEFT ")

        assert run.result(timeout=10) == 13
        assert run.step("clean", type=str) == "warp and weft"


def test_what_fails_is_tried_three_times() -> None:
    with connect("memory://") as app:
        run = app.start(tidy, "   ")

        assert run.wait(timeout=10).status == "failed"
        assert [failure.attempt for failure in run.inspect().failures] == [3]


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print(f"passed: {name[5:].replace('_', ' ')}")
