"""Measure what the tasks cost: their start, a migration with nothing to do, and the first one of all.

Works in a temporary folder on a copy of the project, code included, so that edits made during the run don't
count and every first migration really is one. Run it: uv run python benchmarks/spine.py
"""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks.places import temporary_folder
from benchmarks.timing import (
    Comparison,
    Figure,
    describe_machine,
    inherited_environment,
    installed_program,
    parse_arguments,
    race,
    report,
    time_command,
)
from rag_factory.database.url import DatabaseUrl
from rag_factory.server import EmbeddedServer, ServerAddress, find_binaries
from rag_factory.server.account import choose_account, run_as
from rag_factory.server.cluster import ENVIRONMENT
from rag_factory.server.installation import reachable_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROJECT = Path(__file__).parent.parent
PARTS = ("tasks.py", "alembic.ini", "pyproject.toml", "migrations", "rag_factory")
PACKAGES = ("invoke", "alembic", "sqlalchemy", "psycopg")
INVOKE = installed_program("invoke")
ALEMBIC = installed_program("alembic")
START_SECONDS = 60
REVISION = '''"""Change nothing."""

revision = {revision!r}
down_revision = {parent!r}


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
'''
# The choices of the embedded server's launcher, without which the rival would make another kind of cluster.
INITDB_OPTIONS = (
    *("-U", "postgres", "-E", "UTF8", "--auth=trust"),
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--lc-ctype=C.UTF-8"),
)


def main() -> None:
    arguments = parse_arguments(__doc__)
    rounds: int = arguments.repeat
    figures = [measure_list(rounds), measure_nothing_to_do(rounds), measure_first_migration(rounds)]
    machine = describe_machine(PACKAGES, PostgreSQL=find_binaries().version)
    report(machine, figures, as_json=arguments.json)


def measure_list(rounds: int) -> Figure:
    """Time the start of every task: ours loads more than invoke itself does."""
    ours, empty = "`invoke --list`", "`invoke --list`, empty tasks.py"
    with temporary_folder() as folder, project_copy() as project:
        (folder / "tasks.py").touch()
        rivals = {
            ours: lambda: time_command([INVOKE, "--list"], project),
            # invoke ends with 1 when there is nothing to list.
            empty: lambda: time_command([INVOKE, "--list"], folder, exit_code=1),
        }
        return race("Listing the tasks", rivals, [Comparison(ours, empty, 1.15)], rounds)


def measure_nothing_to_do(rounds: int) -> Figure:
    """Time what it takes to find out that the database is migrated."""
    migrate, status = "`invoke db.migrate`", "`invoke db.status`"
    same = "`alembic upgrade head`, this project"
    bare = "`alembic upgrade head`, bare project"
    with temporary_folder() as folder, project_copy() as project, project_copy() as neighbour:
        time_command([INVOKE, "db.migrate"], project)
        server = embedded_server(project).ensure_running()
        make_bare_project(folder, bare_database(server))
        # Alembic in our own folder would leave bytecode there that invoke, which writes none, then gains by.
        with_url = inherited_environment() | {"DATABASE_URL": database_url(server, "app").plain}
        rivals = {
            migrate: lambda: time_command([INVOKE, "db.migrate"], project),
            status: lambda: time_command([INVOKE, "db.status"], project),
            same: lambda: time_command([ALEMBIC, "upgrade", "head"], neighbour, environment=with_url),
            bare: lambda: time_command([ALEMBIC, "upgrade", "head"], folder),
        }
        comparisons = [Comparison(ours, theirs, 1.0) for theirs in (same, bare) for ours in (migrate, status)]
        return race("Nothing to do", rivals, comparisons, rounds)


def measure_first_migration(rounds: int) -> Figure:
    """Time a fresh clone against a server alone: the rest is the database, its schema and our own start."""
    ours, bare = "first `invoke db.migrate`", "`initdb` and `pg_ctl start`"
    started = "`initdb` and `postgres`, asked every 5 ms"
    rivals = {ours: time_first_migration, bare: time_pg_ctl, started: time_postgres}
    comparisons = [Comparison(ours, bare, 3.0), Comparison(ours, started, 3.0)]
    return race("The first migration", rivals, comparisons, rounds)


def time_first_migration() -> float:
    """Migrate a fresh copy of the project."""
    with project_copy() as project:
        return time_command([INVOKE, "db.migrate"], project)


def time_pg_ctl() -> float:
    """Make a cluster and start a server on it, and nothing else."""
    with bare_cluster() as cluster:
        return cluster.initdb() + cluster.run("pg_ctl", "-w", "-l", cluster.folder / "log", "start")


def time_postgres() -> float:
    """Do the same without pg_ctl, which looks only ten times a second whether the server is ready."""
    with bare_cluster() as cluster:
        seconds = cluster.initdb()
        began = time.perf_counter()
        cluster.launch()
        while not cluster.is_ready():
            if time.perf_counter() - began > START_SECONDS:
                raise RuntimeError(f"No server within {START_SECONDS} s")
            time.sleep(0.005)
        return seconds + time.perf_counter() - began


@dataclass(frozen=True)
class BareCluster:
    """A cluster made by hand, with the binaries, account and kind of folder of the embedded server."""

    folder: Path
    bin_folder: Path
    account: Mapping[str, Any]

    @property
    def data_folder(self) -> Path:
        """What -D names."""
        return self.folder / "data"

    def initdb(self) -> float:
        """Make the cluster; its server will listen on a socket in the folder alone. Returns seconds."""
        socket_options = ("--set", "listen_addresses=", "--set", f"unix_socket_directories={self.folder}")
        return self.run("initdb", *INITDB_OPTIONS, *socket_options)

    def run(self, program: str, *arguments: str | Path) -> float:
        """Run one of PostgreSQL's programs on the cluster and return its seconds."""
        command = [self.bin_folder / program, "-D", self.data_folder, *arguments]
        # With TZ set, initdb doesn't search all time zones: the launcher's gain is the rival's too.
        return time_command(command, Path("/"), environment=ENVIRONMENT, account=self.account)

    def launch(self) -> None:
        """Start the server and don't wait. It outlives the shell, and nobody has to reap it."""
        script = '"$1" -D "$2" </dev/null >"$3" 2>&1 &'
        arguments = (self.bin_folder / "postgres", self.data_folder, self.folder / "log")
        time_command(
            ["/bin/sh", "-c", script, "sh", *arguments],
            Path("/"),
            environment=ENVIRONMENT,
            account=self.account,
        )

    def is_ready(self) -> bool:
        """Whether the server says that it takes connections."""
        pid_file = self.data_folder / "postmaster.pid"
        # Its last word; the file is empty for a moment when it is new.
        return pid_file.is_file() and pid_file.read_text().split()[-1:] == ["ready"]

    def stop(self) -> None:
        """Stop the server if there is one."""
        if (self.data_folder / "postmaster.pid").is_file():
            self.run("pg_ctl", "-w", "-m", "fast", "stop")


@contextmanager
def bare_cluster() -> Iterator[BareCluster]:
    """A folder for a cluster; what runs in it is stopped at the end, and the folder removed."""
    with temporary_folder() as folder:
        account = choose_account(folder)
        if account is not None:
            os.chown(folder, account.uid, account.gid)
        cluster = BareCluster(folder, reachable_binaries(find_binaries(), account), run_as(account))
        try:
            yield cluster
        finally:
            cluster.stop()


@contextmanager
def project_copy() -> Iterator[Path]:
    """A copy of the project as a clone has it: no bytecode, no data. Its server is stopped at the end."""
    with temporary_folder() as folder:
        for part in PARTS:
            source = PROJECT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        try:
            yield folder
        finally:
            embedded_server(folder).stop()


def embedded_server(project: Path) -> EmbeddedServer:
    """The server that a project's tasks use when no setting names another."""
    return EmbeddedServer(project / ".rag_factory" / "server")


def database_url(server: ServerAddress, name: str) -> DatabaseUrl:
    """The address of one database on an embedded server."""
    return DatabaseUrl(host=server.host, port=server.port, user=server.user, database=name)


def bare_database(server: ServerAddress) -> DatabaseUrl:
    """Create an empty database."""
    with psycopg.connect(database_url(server, "postgres").plain, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
    return database_url(server, "bare")


def make_bare_project(folder: Path, url: DatabaseUrl) -> None:
    """Write the least that Alembic works with, its own template and two revisions, and migrate it."""
    time_command([ALEMBIC, "init", "--template", "generic", "migrations"], folder)
    ini = folder / "alembic.ini"
    address = url.sqlalchemy.replace("%", "%%")
    text, count = re.subn(
        r"(?m)^sqlalchemy\.url = .*$", lambda _: f"sqlalchemy.url = {address}", ini.read_text()
    )
    if count != 1:
        raise RuntimeError(f"alembic's template names sqlalchemy.url {count} times, not once")
    ini.write_text(text)
    for revision, parent in (("001", None), ("002", "001")):
        path = folder / "migrations" / "versions" / f"{revision}.py"
        path.write_text(REVISION.format(revision=revision, parent=parent))
    time_command([ALEMBIC, "upgrade", "head"], folder)


if __name__ == "__main__":
    main()
