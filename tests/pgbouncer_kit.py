"""A real PgBouncer in transaction mode before the tests' PostgreSQL server, where the machine has the program.

It is a package of operating systems (`apt install pgbouncer`), so it cannot come with the development dependencies.
"""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import subprocess
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote

import psycopg
from tests.postgres_kit import shared_server

# Fewer than the stores that the tests open: they must share.
POOL = 4


def find_pgbouncer() -> str | None:
    """The program, if it is here; Debian keeps it where users' PATH does not lead."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


class Pooler:
    """One that is running."""

    def __init__(self, port: int, config: Path, user: str | None) -> None:
        self.port = port
        self._command = [str(find_pgbouncer()), "-q", str(config)]
        self._user = user
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(self._command, user=self._user, stderr=subprocess.DEVNULL)
        while True:
            assert self._process.poll() is None, "pgbouncer did not start"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                break

    def kill(self) -> None:
        """End it at once, and all connections through it."""
        self._process.kill()
        self._process.wait()

    def url(self, schema: str, *, listen: str = "") -> str:
        """The URL of a store behind it; wake-ups go to the server itself, unless `listen` says otherwise."""
        server = f"postgresql://postgres@/postgres?host={shared_server().get_postmaster_info().socket_dir}"
        options = f"pooler=transaction&sslmode=disable&listen={quote(listen or server, safe='')}"
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?schema={schema}&{options}"

    def query(self, sql: str) -> list[tuple[object, ...]]:
        """What its console says."""
        info = f"postgresql://postgres@127.0.0.1:{self.port}/pgbouncer?sslmode=disable"
        # The console knows the simple protocol only.
        with psycopg.connect(info, autocommit=True, cursor_factory=psycopg.ClientCursor) as con:
            return con.execute(sql.encode()).fetchall()


@contextlib.contextmanager
def pooler(folder: Path) -> Generator[Pooler, None, None]:
    """Start one, and stop it at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    users, config = folder / "users.txt", folder / "pgbouncer.ini"
    users.write_text('"postgres" ""\n')
    config.write_text(
        f"[databases]\npostgres = host={shared_server().get_postmaster_info().socket_dir} dbname=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {users}\nadmin_users = postgres\npool_mode = transaction\ndefault_pool_size = {POOL}\n"
        "max_client_conn = 200\n"
    )
    # It refuses to run as root; the user that runs the server can reach the server's socket.
    user = "pgserver" if getpass.getuser() == "root" else None
    if user is not None:
        for path in (folder, users, config):
            shutil.chown(path, user)
    running = Pooler(port, config, user)
    try:
        yield running
    finally:
        running.kill()
