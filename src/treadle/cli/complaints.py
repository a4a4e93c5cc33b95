"""Errors as people and programs read them: one line with a hint, or a JSON object; and the exit code."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

import click
import msgspec

from treadle.errors import DefinitionErrors, DocumentError, RunError, TreadleError, exit_code

INTERRUPTED: Final = 130
CONFLICT: Final = 5
# What a failed run did may be undone by now; then a retry finds nothing to go on from.
UNWOUND: Final = "`treadle show RUN` tells more; `treadle rewind RUN STEP` does again what was undone"

# What to do next, by the error's code.
HINTS: Final[dict[str, str]] = {
    "run_not_found": "`treadle runs` lists the runs of this store",
    "step_not_found": "`treadle show RUN` lists the run's steps",
    "run_exists": "choose another --id; or leave out --input to go on with that run",
    "run_failed": "`treadle show RUN` tells more; `treadle retry RUN` reopens what failed",
    "not_applicable": "`treadle show RUN` tells what state it is in",
    "path_missing": "`treadle result RUN STEP` prints the whole value of a step",
    "run_cancelled": "`treadle retry RUN` reopens what was cancelled",
    "run_not_finished": "`treadle watch RUN` follows it; --wait waits for the end",
    "run_not_running": "`treadle show RUN` tells its status",
    "run_not_paused": "`treadle show RUN` tells its status",
    "step_busy": "`treadle pause RUN`, wait for its attempts, then try again",
    "store_not_found": "`treadle run` and `treadle worker` make a store; or check --store and TREADLE_STORE",
    "store_unavailable": "its server may be away, or others hold the file, for a moment: run the command again",
    "store_corrupt": "`treadle doctor` examines it; restore a copy",
    "schema_version": "upgrade treadle",
    "store_full": "free some space and run the command again; nothing that was committed is lost",
    "checksum_mismatch": "plan the workflow anew; a document is not edited by hand",
    "unregistered_step": "--module FILE imports it; or set modules = [...] under [tool.treadle]",
    "internal": "this is a mistake in treadle; please report it",
}


class NotFinishedError(RunError):
    """The run or step has no result yet; wait for it."""

    code = "run_not_finished"


def wants_json(args: Sequence[str]) -> bool:
    """Whether the command line asks for JSON; looked up in the raw arguments, since parsing may have failed."""
    for place, arg in enumerate(args):
        if arg in ("--output", "-o"):
            return args[place + 1 : place + 2] in (["json"], ["jsonl"])
        if arg in ("--output=json", "--output=jsonl", "-ojson", "-ojsonl"):
            return True
    return False


def complain(error: TreadleError, args: Sequence[str]) -> int:
    """Write the error to stderr; the exit code."""
    from treadle.runtime.report import clean

    code = CONFLICT if isinstance(error, NotFinishedError) else exit_code(error)
    hint = UNWOUND if getattr(error, "unwound", "") else HINTS.get(error.code, "")
    if wants_json(args):
        click.echo(msgspec.json.encode({"error": facts_of(error, hint)}).decode(), err=True)
        return code
    several = isinstance(error, (DefinitionErrors, DocumentError))
    for line in (str(error) or error.code).splitlines() if several else [str(error) or error.code]:
        click.echo(f"treadle: {clean(line)}", err=True)
    if hint:
        run_id = getattr(error, "run_id", "")
        click.echo(f"  {hint.replace('RUN', shlex.quote(clean(run_id))) if run_id else hint}", err=True)
    return code


def complain_of_usage(error: click.ClickException, args: Sequence[str]) -> int:
    """Write a mistake in the command line itself."""
    if wants_json(args):
        fault = {"code": "usage", "message": error.format_message()}
        click.echo(msgspec.json.encode({"error": fault}).decode(), err=True)
    else:
        click.echo(f"treadle: {error.format_message()}", err=True)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"  {error.ctx.get_usage()}", err=True)
    return error.exit_code


def facts_of(error: TreadleError, hint: str = "") -> dict[str, Any]:
    """An error as data: its code, its message and the attributes of its class."""
    facts: dict[str, Any] = {"code": error.code, "message": str(error)}
    if hint:
        facts["hint"] = hint
    if isinstance(error, DefinitionErrors):
        facts["errors"] = [facts_of(one) for one in error.exceptions if isinstance(one, TreadleError)]
        return facts
    for name, value in vars(error).items():
        if name.startswith("_") or not value or name in facts:
            continue
        if isinstance(value, (str, int, float, list, dict)):
            facts[name] = value
    return facts
