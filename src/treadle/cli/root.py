"""The root of the command line: finds verbs, turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from treadle.cli.complaints import INTERRUPTED, complain, complain_of_usage
from treadle.errors import TreadleError

# Verb -> the module that holds it, in the order of `treadle --help`.
VERBS: Final[dict[str, str]] = {
    "run": "execute",
    "worker": "execute",
    "plan": "tools",
    "runs": "reading",
    "show": "reading",
    "watch": "watching",
    "result": "reading",
    "events": "watching",
    "artifacts": "artifacts",
    "artifact": "artifacts",
    "why": "reading",
    "cancel": "operating",
    "pause": "operating",
    "resume": "operating",
    "retry": "operating",
    "rewind": "operating",
    "undo": "undo",
    "signal": "operating",
    "release": "operating",
    "breakpoints": "reading",
    "delete": "operating",
    "dead": "dead",
    "queues": "queues",
    "receipt": "receipts",
    "projection": "projection",
    "store": "store",
    "doctor": "tools",
    "gc": "keeping",
    "backup": "keeping",
    "keys": "keys",
    "bench": "tools",
    "nats": "servers",
    "schema": "tools",
    "version": "tools",
}


class Root(click.Group):
    """Loads verbs when they are needed, and is the one place where errors end."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of a name; its module is imported now."""
        module = VERBS.get(cmd_name)
        if module is None:
            return None
        name = "plan_" if cmd_name == "plan" else cmd_name
        found = getattr(importlib.import_module(f"treadle.cli.{module}"), name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a guess at what was meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0], VERBS, 1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit. Every TreadleError ends as one line on stderr and the exit code of its group."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        given = list(sys.argv[1:] if args is None else args)
        try:
            done = super().main(given, prog_name or "treadle", complete_var, standalone_mode=False, **extra)
            code = done if isinstance(done, int) else 0
            sys.stdout.flush()
        except TreadleError as error:
            code = complain(error, given)
        except click.ClickException as error:
            code = complain_of_usage(error, given)
        except click.Abort:
            click.echo("treadle: nothing was changed", err=True)
            code = 1
        except KeyboardInterrupt:
            code = INTERRUPTED
        except BrokenPipeError:
            # The reader of a pipe (`treadle runs | head`) has seen enough; Python must not complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        sys.exit(code)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="treadle", message="treadle %(version)s")
def main() -> None:
    """Run graphs of steps durably.

    The store is --store, else TREADLE_STORE, else `store` of [tool.treadle] in pyproject.toml, else the file
    .treadle/treadle.db. RUN is a run's id, or the first characters of its id or key, if they name one run.
    """
