"""Small projects whose tests use the plug-in, run by real pytest processes on a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from xml.etree import ElementTree as ET

import psycopg
import pytest
from psycopg import sql

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.sources import OLD_NAMES
from rag_factory.database.url import DatabaseUrl
from rag_factory.server import EmbeddedServer
from rag_factory.testing.cleanup import describe
from rag_factory.testing.place import Place, checkout_id
from tests.conftest import clean_environment, skip_without_databases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS = {name.upper() for name in DatabaseConfig.model_fields} | OLD_NAMES.keys()
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "max_prepared_transactions": "8",
}
MEMORY_DISK = Path("/dev/shm")
PYPROJECT = """
[tool.rag_factory]
extensions = []
[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = ["--strict-markers", "--strict-config", "-p", "no:cacheprovider"]
filterwarnings = ["error"]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
"""
ENV_PY = """
from sqlalchemy import MetaData
from rag_factory.migrate.environment import run_environment
run_environment(MetaData())
"""
SCHEMA = """
CREATE TABLE item (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text NOT NULL);
"""


# What the tests of a checkout begin with, and how a later one sees that nothing was left.
INSERT = """
    from sqlalchemy.exc import SQLAlchemyError
    INSERT = text("INSERT INTO item (name) VALUES ('a')")
    COUNT = text("SELECT count(*) FROM item")
"""
CLEAN = """
    def test_{name}_after(db_connection):
        assert db_connection.execute(COUNT).scalar() == 0
        assert db_connection.execute(text("SELECT to_regclass('made')")).scalar() is None
"""


def clean_after(name: str) -> str:
    """A test that fails when the one of this name has left something."""
    return CLEAN.format(name=name)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait for a state of another process, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        time.sleep(0.005)
    return found


@dataclass(frozen=True)
class Result:
    """What a pytest process said. outcomes: by test; text: of everything that was wrong with it."""

    code: int
    output: str
    outcomes: dict[str, str]
    texts: dict[str, str]

    @property
    def header(self) -> str:
        """The plug-in's header line; the last one, which tells what was built."""
        lines = [line for line in self.output.splitlines() if line.startswith("databases: ")]
        return lines[-1] if lines else ""

    @property
    def wrong(self) -> set[str]:
        """The tests that failed, themselves or after their end."""
        return {name for name, outcome in self.outcomes.items() if outcome in {"failed", "error"}}

    def assert_passed(self, number: int | None = None) -> None:
        assert self.code == 0, self.output
        assert not self.wrong, self.output
        if number is not None:
            assert list(self.outcomes.values()).count("passed") == number, self.output


@dataclass
class Checkout:
    """A project's folder, and a name on the server for its test databases."""

    root: Path
    server: DatabaseUrl
    base: str = field(default_factory=lambda: f"t{uuid4().hex[:10]}_test")
    environment: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
        return file

    def write_test(self, text: str, name: str = "test_it") -> None:
        self.write(
            f"tests/{name}.py", "import os\nimport pytest\nfrom sqlalchemy import text\n" + dedent(text)
        )

    def write_revision(self, statements: str, number: int = 1, code: str = "") -> None:
        """Write a revision that runs these statements, after some code."""
        before = repr(f"{number - 1:03}") if number > 1 else None
        self.write(
            f"migrations/versions/{number:03}_step.py",
            f"from alembic import op\nrevision = '{number:03}'\ndown_revision = {before}\n"
            f"def upgrade():\n    {code or 'pass'}\n    op.get_bind().exec_driver_sql({statements!r})\n"
            "def downgrade():\n    pass\n",
        )

    def pytest(self, *arguments: str, **environment: str | None) -> Result:
        """Run the tests to their end."""
        return self.finish(self.start(*arguments, terminal=None, **environment))

    def start(
        self, *arguments: str, terminal: int | None = None, **environment: str | None
    ) -> subprocess.Popen[str]:
        """Start to run the tests. terminal: where their output goes. A variable of None is left out."""
        report = self.root / f"report-{uuid4().hex}.xml"
        variables = (
            clean_environment() | {"TEST_DATABASE_URL": self.url.plain} | self.environment | environment
        )
        process = subprocess.Popen(
            # hypothesis imports itself at the end of every run, which takes longer than these runs.
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:hypothesispytest",
                "-rA",
                f"--junitxml={report}",
                *arguments,
            ],
            cwd=self.root,
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> Result:
        output, _ = process.communicate(timeout=120)
        assert isinstance(process.args, list)
        report = Path(next(a for a in process.args if a.startswith("--junitxml=")).partition("=")[2])
        outcomes, texts = _read_report(report) if report.exists() else ({}, {})
        return Result(process.returncode, output, outcomes, texts)

    @property
    def url(self) -> DatabaseUrl:
        return self.server.with_database(self.base)

    @property
    def checkout_id(self) -> str:
        return checkout_id(self.root, Place(self.url, self.base, embedded=False))

    def databases(self, pattern: str = "") -> set[str]:
        """The names of this base's databases, without the base, that match."""
        with self.connect() as server:
            rows = server.execute(
                "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (self.base,)
            ).fetchall()
        names = {name.removeprefix(f"{self.base}_") for (name,) in rows}
        return {name for name in names if re.search(pattern, name)}

    def connect(self, name: str = "") -> psycopg.Connection[Any]:
        """Connect to one of this base's databases, named without the base, or to the maintenance database."""
        database = f"{self.base}_{name}" if name else "postgres"
        return psycopg.connect(self.server.with_database(database).plain, autocommit=True)

    def worker(self, slot: int = 0) -> str:
        """The name of the slot's database, without the base."""
        return f"ragw_{self.checkout_id}_{slot}"

    def leased(self) -> list[str]:
        """The names of the databases that some run uses."""
        with self.connect() as server:
            return [one.name for one in describe(server, self.base) if one.leased]

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, 9)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        with self.connect() as server:
            for name in self.databases():
                database = sql.Identifier(f"{self.base}_{name}")
                server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))


def _read_report(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    outcomes: dict[str, str] = {}
    texts: dict[str, str] = {}
    for case in ET.parse(path).iter("testcase"):
        name = case.attrib["name"]
        for part in case:
            if part.tag in {"failure", "error", "skipped"}:
                outcome = {"failure": "failed"}.get(part.tag, part.tag)
                outcomes[name] = outcome
                texts[name] = texts.get(name, "") + part.attrib.get("message", "") + (part.text or "")
        outcomes.setdefault(name, "passed")
    return outcomes, texts


@pytest.fixture(scope="session")
def disk() -> Iterator[Path]:
    """A folder that every account can enter, in memory where there is room."""
    roomy = MEMORY_DISK.is_dir() and shutil.disk_usage(MEMORY_DISK).free > 4_000_000_000
    folder = Path(tempfile.mkdtemp(prefix="rf-testing-", dir=MEMORY_DISK if roomy else None))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config, disk: Path) -> Iterator[DatabaseUrl]:
    """A server for this worker; the URL names no database."""
    skip_without_databases(pytestconfig)
    embedded = EmbeddedServer(disk / "server", settings=FAST)
    address = embedded.ensure_running()
    yield DatabaseUrl(host=address.host, port=address.port, user=address.user)
    embedded.stop()


@pytest.fixture
def make_checkout(server: DatabaseUrl, disk: Path) -> Iterator[Callable[..., Checkout]]:
    """Make projects with one table."""
    made: list[Checkout] = []

    def make(**options: Any) -> Checkout:
        root = Path(tempfile.mkdtemp(prefix="project-", dir=disk))
        root.chmod(0o755)
        checkout = Checkout(root, **({"server": server} | options))
        made.append(checkout)
        checkout.write("pyproject.toml", PYPROJECT)
        checkout.write("alembic.ini", "[alembic]\nscript_location = %(here)s/migrations\n")
        checkout.write("migrations/env.py", ENV_PY)
        checkout.write_revision(SCHEMA)
        checkout.write("tests/conftest.py", 'pytest_plugins = ["rag_factory.testing.plugin"]\n')
        return checkout

    yield make
    for checkout in made:
        checkout.end()
        shutil.rmtree(checkout.root, ignore_errors=True)


@pytest.fixture
def checkout(make_checkout: Callable[..., Checkout]) -> Checkout:
    """A project with one table."""
    return make_checkout()


@pytest.fixture(scope="session")
def ordinary(server: DatabaseUrl) -> DatabaseUrl:
    """The server, as a role that may create databases and nothing else."""
    with psycopg.connect(server.with_database("postgres").plain, autocommit=True) as connection:
        connection.execute("CREATE ROLE ordinary LOGIN CREATEDB")
    return replace(server, user="ordinary")
