"""A program with a loop of its own drives the work step by step, with a clock that it moves; then it tidies up."""

from treadle import Permanent, Retry, Retryable, connect, context, step, workflow
from treadle.testing import ManualClock


@step(retry=Retry(attempts=3, initial="1h", backoff="fixed", cap="1h"))
def fetch(page: int) -> str:
    if page == 2 and context().attempt == 1:
        raise Retryable("the server is busy", code="busy")
    return f"page {page}"


@step(optional=True)
def check(page: str) -> None:
    raise Permanent(f"{page} is empty", code="empty")


@workflow
def crawl(pages: int) -> list[str]:
    found = [fetch.options(id=f"fetch {page}").bind(page) for page in range(1, pages + 1)]
    check.bind(found[0])
    return found


def main() -> None:
    clock = ManualClock()
    with connect("memory://", worker="cycles", clock=clock) as app:
        run = app.start(crawl, 3, id="crawl-1", name="Three pages")

        for hour in range(3):
            # What a game, a robot or a scheduler of your own would do between two cycles goes here.
            cycle = app.run_once(limit=10)
            print(
                f"hour {hour}: {cycle.processed} attempts, {cycle.succeeded} succeeded, {cycle.retried} retried,"
                f" {cycle.failed} failed, {cycle.runs} runs ended"
            )
            clock.advance(3600)
        print(run.result())

        clock.advance(40 * 24 * 3600)
        print("old enough to go:", [row.name for row in app.gc(older_than="30d", dry_run=True).deleted])
        app.gc(older_than="30d")
        print("left:", app.runs())


if __name__ == "__main__":
    main()
