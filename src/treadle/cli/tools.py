"""Verbs about treadle itself: plan, doctor, bench, schema, version."""

from __future__ import annotations

import importlib
import platform
import sys
from typing import Any, Final

import click
import msgspec

from treadle.cli.analysing import critical_path, levels
from treadle.cli.collector import look_less_often
from treadle.cli.desk import Desk, pairs, with_desk
from treadle.cli.documents import document_at, facts_of_saved, is_document, save_plan
from treadle.cli.output import emit, plainly, table, write, write_json
from treadle.cli.plans import dot, mermaid, tree
from treadle.cli.settings import make_folder, store_url
from treadle.cli.targets import load_workflow, parse_inputs, plan_of
from treadle.core.documents import Document
from treadle.core.graph_analysis import Analysis
from treadle.errors import TreadleError, UsageError
from treadle.runtime.report import clean, names

# Documents that have a schema: name -> where its type is.
DOCUMENTS: Final[dict[str, str]] = {
    "plan": "treadle.core.plan:Plan",
    "document": "treadle.core.documents:Document",
    "fragment": "treadle.core.plan:Fragment",
    "event": "treadle.core.events:AnyEvent",
    "input": "treadle.core.inputs:AnyInput",
    "snapshot": "treadle.runtime.inspection:Snapshot",
    "reason": "treadle.runtime.why:Reason",
    "run": "treadle.store.base:RunRow",
    "step": "treadle.store.base:StepRow",
    "session": "treadle.store.base:SessionRow",
    "health": "treadle.store.base:Health",
}


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["tree", "json", "mermaid", "dot"]),
    help="The form of the plan; else `tree`, or `json` with --output json.",
)
@click.option("-o", "--output", type=click.Choice(["json", "jsonl", "table"]), default="table", show_default=True)
@click.option("--input", "inputs", multiple=True, metavar="JSON|@FILE|K=V", help="Arguments of the workflow.")
@click.option("--save", "file", metavar="FILE", help="Write the plan as a document (.json or .yaml), to run it later.")
@click.option("--context", "context", multiple=True, metavar="K=V", help="Noted in the saved document; repeatable.")
@click.option("--levels", "shown", flag_value="levels", help="Instead: which steps may run together, by depth.")
@click.option("--critical-path", "shown", flag_value="critical_path", help="Instead: the longest chain of steps.")
@click.argument("target")
def plan_(
    target: str,
    inputs: tuple[str, ...],
    form: str | None,
    output: str,
    file: str | None,
    context: tuple[str, ...],
    shown: str | None,
) -> None:
    """Show what TARGET would run, without running it; all mistakes are reported at once. Needs no store.

    TARGET is a workflow (file.py:workflow or module:workflow), or a saved plan or receipt.
    """
    given = parse_inputs(inputs)
    found = document_at(target, given) if is_document(target) else plan_of(load_workflow(target), given)
    if shown is not None:
        if form or file is not None:
            raise UsageError("--levels and --critical-path take the plan's place; leave out --format and --save")
        graph = found.plan() if isinstance(found, Document) else found.plan
        document, text = {"levels": levels, "critical_path": critical_path}[shown](graph.workflow, Analysis.of(graph))
        emit(document, output, text)
        return
    form = form or ("tree" if output == "table" else "json")
    if file is not None:
        saved = save_plan(found, file, pairs(context, "--context"))
        emit(facts_of_saved(saved, file), output, f"{clean(file)}  {saved.hash}\n")
        return
    plan = found.plan() if isinstance(found, Document) else found.plan
    if form == "json":
        write_json(plan, lines=output == "jsonl")
    else:
        write({"tree": tree, "mermaid": mermaid, "dot": dot}[form](plan))


plan_.name = "plan"


@click.command()
@with_desk()
async def doctor(desk: Desk) -> int:
    """Examine the store (its integrity, leftovers, settings), its sessions, and this installation."""
    here = {
        "treadle": version_text(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "url": desk.url,
    }
    try:
        async with desk.connect() as app:
            health = await app.check()
            mine = f"{platform.node()}"
            sessions = [session for session in await app.sessions() if session.actions]
            durability = app.durability
    except TreadleError as error:
        if error.code in ("store_not_found", "store_url"):
            raise
        emit({"healthy": False, "problems": [str(error)], "facts": here, "sessions": []}, desk.output, "")
        if desk.output == "table":
            write(_facts(here) + f"\nproblem: {clean(str(error))}\n")
        return 1
    facts = {**here, "durability": durability, **health.facts}
    document = {
        "healthy": not health.problems,
        "problems": health.problems,
        "facts": facts,
        "sessions": [plainly(session) for session in sessions],
    }
    rows = [[s.worker, s.id, str(len(s.actions)), names(s.targets), _place(s.info, mine)] for s in sessions]
    headers = ("WORKER", "SESSION", "ACTIONS", "TARGETS", "WHERE")
    text = _facts(facts) + "\n" + table(headers, rows, empty="no worker is connected")
    text += "\n" + ("".join(f"problem: {clean(p)}\n" for p in health.problems) or "no problems found\n")
    emit(document, desk.output, text)
    return 1 if health.problems else 0


def _facts(facts: dict[str, str]) -> str:
    width = max(len(name) for name in facts)
    return "".join(f"{name:<{width}}  {clean(text)}\n" for name, text in facts.items())


def _place(info: dict[str, Any], host: str) -> str:
    where = str(info.get("host", ""))
    return f"process {info.get('pid', '?')}" + ("" if where == host else f" on {where}")


@click.command()
@click.option("--size", type=click.IntRange(1), help="N: steps, or runs; each workload has a default.")
@click.option("--store", metavar="URL", help="The store; else memory.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "jsonl"]), default="table", show_default=True)
@click.argument("workload")
def bench(workload: str, size: int | None, store: str | None, output: str) -> None:
    """Measure WORKLOAD against the machine's own limit, in one call.

    It is chain, fan, many, gather, phases, recover or grow, or unwind or unwind-fan: against running the same graph.
    """
    from pathlib import Path

    # Imported here: no other verb needs the workloads.
    from treadle.bench.main import run_bench

    url = store_url(store, Path.cwd()) if store else "memory://"
    if not url.startswith("memory"):
        # As `treadle worker` does, which works on such stores.
        look_less_often()
    make_folder(url)
    found = msgspec.to_builtins(run_bench(workload, size, url))
    if output == "table":
        write(_facts({name: str(value) for name, value in found.items()}))
    else:
        write_json(found, lines=True)


@click.command()
@click.option("-o", "--output", type=click.Choice(["json", "jsonl"]), default="json", show_default=True)
@click.argument("document", required=False)
def schema(document: str | None, output: str) -> None:
    """Print the JSON Schema of a DOCUMENT; without it, the names of all documents."""
    if document is None:
        write("".join(f"{name}\n" for name in DOCUMENTS))
        return
    place = DOCUMENTS.get(document)
    if place is None:
        raise UsageError(f"there is no document {document!r}; there are: {', '.join(DOCUMENTS)}")
    module, _, name = place.partition(":")
    kind: Any = getattr(importlib.import_module(module), name)
    found = msgspec.json.schema(kind)
    write_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, lines=output == "jsonl")


def version_text() -> str:
    """The installed version."""
    from importlib.metadata import version as installed

    return installed("treadle")


@click.command()
@click.option("-o", "--output", type=click.Choice(["table", "json", "jsonl"]), default="table", show_default=True)
def version(output: str) -> None:
    """Print the version of treadle and of what it stands on."""
    facts = {"treadle": version_text(), "python": platform.python_version(), "platform": sys.platform}
    emit(facts, output, f"treadle {facts['treadle']} (Python {facts['python']}, {facts['platform']})\n")
