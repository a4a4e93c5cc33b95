"""Verbs that execute steps: `run` holds an engine and a worker for one run, `worker` for all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from treadle.cli.collector import look_less_often
from treadle.cli.complaints import INTERRUPTED
from treadle.cli.desk import Desk, pairs, with_desk
from treadle.cli.documents import document_at, is_document, runnable
from treadle.cli.output import emit, say, write_value
from treadle.cli.progress import QuietView, View, follow, lines_shown, view_for
from treadle.cli.settings import find_project, make_folder
from treadle.cli.targets import (
    Inputs,
    Workflow,
    load_module,
    load_workflow,
    name_of,
    packages_in,
    packages_of_target,
    parse_data,
    parse_inputs,
    plan_of,
    split_target,
    workflows_of,
)
from treadle.cli.watchers import watchers
from treadle.errors import DefinitionError, RunExistsError, UsageError
from treadle.runtime.report import clean, duration

if TYPE_CHECKING:
    from treadle.authoring.builder import Planned
    from treadle.authoring.packages import Package
    from treadle.runtime.client import App
    from treadle.runtime.run import Run

DEFAULT_SLOTS = 1000
DEFAULT_THREADS = 16


def _capacity(function: Any) -> Any:
    """The options that say how much is executed at a time."""
    positive = click.IntRange(1)
    slots = click.option(
        "--slots", type=positive, default=DEFAULT_SLOTS, show_default=True, help="Async steps at a time."
    )
    threads = click.option(
        "--threads", type=positive, default=DEFAULT_THREADS, show_default=True, help="Sync steps at a time."
    )
    return slots(threads(function))


@contextlib.contextmanager
def stopping(say_first: Callable[[], None]) -> Generator[asyncio.Event]:
    """An event that SIGINT or SIGTERM sets; the second one ends the process at once.

    What is lost then is lost as by a crash: another process executes it again.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()
        say_first()

    def late(_number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(asked)

    signals = (signal.SIGINT, signal.SIGTERM)
    former: dict[int, Any] = {}
    for number in signals:
        try:
            loop.add_signal_handler(number, asked)
        except NotImplementedError:
            # Windows has no handlers on its loop.
            former[number] = signal.signal(number, late)
    try:
        yield stop
    finally:
        for number in signals:
            if number in former:
                signal.signal(number, former[number])
            else:
                loop.remove_signal_handler(number)


# -- run -----------------------------------------------------------------------------------------------------------


@click.command()
@with_desk("json", "jsonl")
@click.option(
    "--input", "inputs", multiple=True, metavar="JSON|@FILE|K=V", help="Arguments of the workflow; may be repeated."
)
@click.option("--id", "run_id", metavar="ID", help="The run's id; the same id again attaches to that run.")
@click.option("--name", "title", metavar="TEXT", help="What people call the run.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label of the run; may be repeated.")
@click.option("--meta", "metadata", multiple=True, metavar="K=V", help="Something to see of the run; may be repeated.")
@click.option("--break", "breaks", multiple=True, metavar="LABEL", help="Arm the breakpoints of this label.")
@click.option("--on-failure", type=click.Choice(("stop", "unwind")), help="What a failure does, if not the workflow's.")
@click.option("--data", "data", multiple=True, metavar="JSON|@FILE|K=V", help="The run's data; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Tell every step to change nothing, and to say what it would do.")
@_capacity
@click.option("--delay", metavar="DURATION", help="Start its first steps so much later, such as 90s or 1h30m.")
@click.option("--detach", is_flag=True, help="Only start it, for workers to execute; print the run's id.")
@click.option(
    "--module", "modules", multiple=True, metavar="TARGET", help="Import it; for a TARGET that is a document."
)
@click.option("--reset", is_flag=True, help="Run the plan of a receipt again.")
@click.option("--receipt", metavar="FILE|FOLDER", help="Write the run's receipt at the end, whatever became of it.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.argument("target")
async def run(
    desk: Desk,
    target: str,
    inputs: tuple[str, ...],
    run_id: str | None,
    title: str | None,
    labels: tuple[str, ...],
    metadata: tuple[str, ...],
    breaks: tuple[str, ...],
    on_failure: Literal["stop", "unwind"] | None,
    data: tuple[str, ...],
    dry_run: bool,
    delay: str | None,
    detach: bool,
    modules: tuple[str, ...],
    reset: bool,
    receipt: str | None,
    quiet: bool,
    **capacity: int,
) -> int | None:
    """Run TARGET (file.py:workflow or module:workflow), show its progress, print its result as JSON.

    TARGET may also be an installed package, or one of its entrypoints: crawler/crawl.

    The name may be left out if the file holds one workflow. A second run of the same --id attaches to the run and
    finishes what is left of it. Ctrl-C lets running steps end; the same command goes on later.
    TARGET may be a saved plan (plan.json, plan.yaml); it is refused if it was changed.
    """
    look_less_often()
    given = parse_inputs(inputs)
    kept = _place_of_receipt(receipt, detach=detach)
    workflow = _found(target, given, modules, reset=reset)
    marks, notes = pairs(labels, "--label"), pairs(metadata, "--meta")
    facts = parse_data(data)
    planned = _planned(workflow, given, run_id)
    make_folder(desk.url)
    packages = [] if is_document(target) else packages_of_target(target)
    async with desk.connect(create=True, worker=not detach, packages=packages, **watchers(), **capacity) as app:
        # A document's arguments are fixed, so an existing run of the id must be a run of just this plan.
        fresh = bool(facts) or dry_run or is_document(target)
        handle = None if fresh else await _attached(app, workflow, given, run_id)
        if handle is None:
            if isinstance(planned, DefinitionError):
                raise planned
            handle = await app.start(
                planned,
                id=run_id,
                name=title,
                labels=marks,
                metadata=notes,
                breakpoints=breaks,
                data=facts,
                dry_run=dry_run,
                delay=delay,
                on_failure=on_failure,
            )
        if detach:
            emit({"run": handle.id, "key": await handle.key()}, desk.output, "")
            return None
        if not quiet:
            say(f"{'dry ' if dry_run else ''}run {clean(handle.id)} of {clean(name_of(workflow))}")
        view = view_for(quiet=quiet)
        try:
            with lines_shown(handle.id, view):
                return await _execute(app, handle, view)
        finally:
            if kept is not None:
                from treadle.cli.receipts import keep

                await keep(handle, kept[0], folder=kept[1])


def _place_of_receipt(receipt: str | None, *, detach: bool) -> tuple[Path, bool] | None:
    """Where the receipt goes, and whether that is a folder; known to be there before anything runs."""
    from treadle.runtime.documents import make_receipt_folder

    if detach and receipt is not None:
        raise UsageError("--receipt is written at the end of the run, and --detach does not wait for it")
    kept = find_project(Path.cwd()).receipt_folder() if receipt is None and not detach else None
    place = kept or (Path(receipt) if receipt is not None else None)
    if place is None:
        return None
    if kept is not None or place.is_dir() or str(receipt).endswith(("/", os.sep)):
        make_receipt_folder(place)
        return place, True
    if not place.parent.is_dir():
        raise UsageError(f"--receipt {clean(str(receipt))}: there is no folder {clean(str(place.parent))}")
    return place, False


def _found(target: str, given: Inputs, modules: tuple[str, ...], *, reset: bool) -> Workflow:
    """The workflow of a target, or the plan of one that is a document."""
    if is_document(target):
        return runnable(document_at(target, given), modules, reset=reset)
    if modules or reset:
        raise UsageError("--module and --reset are for a target that is a document")
    return load_workflow(target)


def _planned(workflow: Workflow, given: Inputs, run_id: str | None) -> Planned | DefinitionError:
    """The plan, made before there is a store. Without input an existing run may be meant: its error can wait."""
    try:
        return plan_of(workflow, given)
    except DefinitionError as error:
        if run_id is None or given.given:
            raise
        return error


async def _attached(app: App, workflow: Workflow, given: Inputs, run_id: str | None) -> Run[Any] | None:
    """The run of this id, if it exists and no input was given that could differ from its own."""
    if run_id is None or given.given:
        return None
    row = next((row for row in await app.find(run_id) if row.id == run_id), None)
    if row is None:
        return None
    definition = getattr(workflow, "definition", None)
    known = (name_of(workflow), *(definition.aliases if definition is not None else ()))
    if row.workflow not in known:
        text = f"run {run_id!r} exists and is a run of {row.workflow!r}, not of {name_of(workflow)!r}"
        raise RunExistsError(text, run_id=run_id)
    handle = app.run(row.key)
    handle.id = row.id
    if row.hold:
        say(f"run {clean(row.id)} is paused; `treadle resume {clean(row.id)}` lets it go on")
    return handle


async def _execute(app: App, handle: Run[Any], view: View) -> int | None:
    """Wait for the run's end, or for a signal to stop; print the result."""
    from treadle.authoring import codec

    resume = f"the same command goes on with it (--id {clean(handle.id)})"
    with stopping(lambda: say(f"\nstopping: waiting for running steps; again to exit at once. {resume}")) as stop:
        end = asyncio.create_task(handle.wait())
        asked = asyncio.create_task(stop.wait())
        shown = asyncio.create_task(follow(handle, view))
        try:
            await asyncio.wait({end, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)
            asked.cancel()
        if not end.done():
            view.close()
            await app.drain()
            # The last steps may have been the run's last.
            await asyncio.sleep(0)
            if not end.done():
                end.cancel()
                return INTERRUPTED
        end.result()
    snapshot = await handle.inspect()
    view.update(snapshot)
    view.close()
    value = await handle.result()
    if not isinstance(view, QuietView):
        say(f"{snapshot.status} in {duration(snapshot.total_seconds)}")
    write_value(codec.encode(value))
    return None


# -- worker --------------------------------------------------------------------------------------------------------


@click.command()
@with_desk()
@click.option("--id", "worker_id", default="", metavar="NAME", help="The worker's name; else host and process id.")
@_capacity
@click.option(
    "--grace", type=float, metavar="SECONDS", help="How long to wait for running steps at the end; else as needed."
)
@click.option(
    "--offer", "offers", multiple=True, metavar="NAME", help="Execute steps that are placed on it; may be repeated."
)
@click.option("--max-cycles", type=click.IntRange(1), metavar="N", help="End after so many cycles.")
@click.option("--until-idle", is_flag=True, help="End when nothing is due any more.")
@click.option("--package", "named", multiple=True, metavar="NAME", help="Serve an installed package; may be repeated.")
@click.argument("targets", metavar="TARGET...", nargs=-1)
async def worker(
    desk: Desk,
    targets: tuple[str, ...],
    named: tuple[str, ...],
    offers: tuple[str, ...],
    grace: float | None,
    max_cycles: int | None,
    until_idle: bool,
    **capacity: Any,
) -> int | None:
    """Execute the steps of all runs, until SIGTERM or SIGINT; then let running steps end.

    TARGET is a file or a module; without it, `modules` of [tool.treadle] in pyproject.toml. The packages that it holds
    are served too.
    """
    look_less_often()
    names, packages = _import_all(targets, named)
    make_folder(desk.url)
    mode: bool | Literal["cycles"] = "cycles" if until_idle or max_cycles else True
    async with desk.connect(
        create=True, worker=mode, packages=packages, targets=offers, **watchers(), **capacity
    ) as app:
        actions = app.registry.names()
        listed = ", ".join(clean(name) for name in actions[:8])
        more = f" and {len(actions) - 8} more" if len(actions) > 8 else ""
        say(f"worker of {desk.url} for {', '.join(names)}: {listed}{more}")
        with stopping(lambda: say("stopping: waiting for running steps; again to exit at once")) as stop:
            if mode == "cycles":
                await _work(app, stop, max_cycles, until_idle=until_idle)
            else:
                await stop.wait()
            drained = await app.drain(grace)
    if not drained:
        say("some steps still ran; other workers execute them again")
        return 1
    say("stopped")
    return None


async def _work(app: App, stop: asyncio.Event, max_cycles: int | None, *, until_idle: bool) -> None:
    """Work in cycles until they are over, or a signal comes."""
    working = asyncio.ensure_future(app.work(max_cycles=max_cycles, until_idle=until_idle))
    asked = asyncio.ensure_future(stop.wait())
    await asyncio.wait([working, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if working.done():
        cycle = working.result()
        say(f"{cycle.processed} attempts: {cycle.succeeded} succeeded, {cycle.retried} retried, {cycle.failed} failed")
    else:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def _import_all(targets: tuple[str, ...], named: tuple[str, ...]) -> tuple[list[str], list[Package | str]]:
    """Import the modules of targets, or those that pyproject.toml names; also the packages to serve.

    Raises:
        UsageError: nothing is named.
    """
    names = [split_target(target)[0] for target in targets]
    packages: list[Package | str] = list(named)
    if not names and not named:
        names = find_project(Path.cwd()).modules
    if not names and not named:
        raise UsageError("name a file or module with steps, or set modules = [...] under [tool.treadle]")
    for name in names:
        module = load_module(name)
        # Asked for its mistakes: a workflow that is broken is better known now than at its first run.
        workflows_of(module)
        packages += packages_in(module)
    unique = list(dict.fromkeys(packages))
    return [*names, *named], unique
