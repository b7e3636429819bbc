"""What the tests share."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.sources import OLD_NAMES
from rag_factory.database.url import DatabaseUrl
from rag_factory.server import EmbeddedServer
from rag_factory.testing.fixtures import RUN  # [engine]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from sqlalchemy.ext.asyncio import AsyncSession

    from rag_factory.services.database.postgres import PostgresqlDatabaseService

pytest_plugins = ["rag_factory.testing.plugin"]

# [engine
# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# engine]

ROOT = Path(__file__).parent.parent  # [engine]
SETTINGS = {name.upper() for name in DatabaseConfig.model_fields} | OLD_NAMES.keys()
# Where one of these is set, pytest tells the same thing at greater length.
CHATTY = {"CI", "BUILD_NUMBER"}
# [engine
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
PASSWORD = "a:b/c@d#e?f%g"  # every character that a URL must escape
PROJECT_PARTS = ("tasks.py", "alembic.ini", "pyproject.toml", "migrations", ".env.example")
# engine]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of ours, libpq's or pytest's: none leaks into a test."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in SETTINGS | CHATTY and not name.startswith(("PG", "PYTEST"))
    }
    return kept | dict(extra or {})


# [engine
@dataclass(frozen=True)
class CommandLine:
    """Runs the real command line in one project folder."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def invoke(
        self, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "invoke", *arguments, cwd=cwd, **environment)

    def run(
        self, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments,
            cwd=cwd or self.root,
            env=clean_environment(self.environment | environment),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )


def skip_without_databases(config: pytest.Config) -> None:
    """Skip what has a server of its own too when the tests that need a database don't run."""
    off = config.stash[RUN].off
    if "db" in off:
        pytest.skip(off["db"])


@pytest.fixture(scope="session")
def public_folder(pytestconfig: pytest.Config) -> Iterator[Path]:
    """A folder for a server, which every account can reach: the server of root runs as another."""
    skip_without_databases(pytestconfig)
    folder = Path(tempfile.mkdtemp(prefix="rag-factory-tests-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server_url(public_folder: Path) -> Iterator[DatabaseUrl]:
    """A server of this worker's own, reached over TCP with a password; the URL names no database."""
    import psycopg
    from psycopg import sql

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = EmbeddedServer(
        public_folder / "server", settings=FAST | {"listen_addresses": "127.0.0.1", "port": str(port)}
    )
    address = server.ensure_running()
    try:
        local = DatabaseUrl(host=address.host, port=address.port, user=address.user, database="postgres")
        with psycopg.connect(local.plain, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE app SUPERUSER LOGIN PASSWORD {}").format(PASSWORD))
        yield DatabaseUrl(host="127.0.0.1", port=port, user="app", password=PASSWORD)
    finally:
        server.stop()


@pytest.fixture
def database_url(server_url: DatabaseUrl) -> Iterator[DatabaseUrl]:
    """A name for a database of the test's own; the test creates it, and it is dropped afterwards."""
    import psycopg

    url = server_url.with_database(f"test_{uuid4().hex}")
    yield url
    with psycopg.connect(server_url.with_database("postgres").plain, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{url.database}" WITH (FORCE)')


@pytest.fixture(scope="session")
def dump() -> Callable[[DatabaseUrl], str]:
    """Write a database's schema as SQL, the same for the same schema."""
    from rag_factory.server import find_binaries

    pg_dump = find_binaries().folder / "pg_dump"

    def dump_schema(url: DatabaseUrl) -> str:
        return subprocess.run(
            [
                pg_dump,
                "--schema-only",
                "--restrict-key=x",
                "--exclude-schema=rag_factory",
                url.without_password().plain,
            ],
            env={**os.environ, "PGPASSWORD": url.password},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    return dump_schema


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of this project's own files, to be changed at will."""
    folder = tmp_path / "project"
    folder.mkdir()
    for part in PROJECT_PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / part)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / ".env.test.example", folder / "tests")
    return folder


@pytest.fixture
def cli(project: Path, database_url: DatabaseUrl) -> CommandLine:
    """The command line in a copy of the project, on a database that doesn't exist yet."""
    return CommandLine(project, {"DATABASE_URL": database_url.plain})


# engine]


@pytest.fixture
async def db_service(async_db_connection: AsyncSession) -> AsyncIterator[PostgresqlDatabaseService]:
    """The service in the test's own transaction: what it commits is rolled back as well."""
    # Imported here: tests without it start without SQLAlchemy.
    from sqlalchemy.ext.asyncio import AsyncConnection

    from rag_factory.services.database.postgres import PostgresqlDatabaseService

    assert isinstance(async_db_connection.bind, AsyncConnection)
    async with PostgresqlDatabaseService(async_db_connection.bind) as service:
        yield service
