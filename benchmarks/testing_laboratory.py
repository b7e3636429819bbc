"""The server, projects, environments and processes that the test databases are measured with."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from benchmarks.places import TMPFS, in_memory, temporary_folder
from benchmarks.testing_crews import Crew
from benchmarks.testing_projects import (
    EACH_CONFTEST,
    write_alembic_project,
    write_django_project,
    write_our_project,
)
from benchmarks.timing import (
    inherited_environment,
    installed_program,
    progress,
    time_command,
)
from rag_factory.database.config import DatabaseConfig
from rag_factory.server import EmbeddedServer
from rag_factory.testing.place import FORGETFUL, embedded_test_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rag_factory.server import ServerAddress

PROJECT = Path(__file__).parent.parent
# Left out of a copy of the project, because a clone hasn't got it.
NOT_CLONED = (".git", ".venv", ".nox", ".rag_factory", ".*_cache", "__pycache__", ".env", ".env.test", "dist")
SHARED = ("psycopg", "sqlalchemy", "alembic", "pytest", "pytest-xdist")
# Some names of a registry and a proxy, that uv needs to install anything.
NETWORK = ("UV_", "PIP_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
WORKERS = (1, 2, 4, 8)
MANY = 200
# The plug-in of another rival, in an environment that is shared with it.
ALONE = ("-p", "no:pytest_postgresql")


@dataclass
class Laboratory:
    """One server, the projects of all rivals, and their processes. folder: for all but the server's data."""

    folder: Path
    server: EmbeddedServer
    address: ServerAddress
    stack: ExitStack

    @property
    def project(self) -> Path:
        """Our project."""
        return self.folder / "ours"

    @property
    def old_project(self) -> Path:
        """Ours with many revisions."""
        return self.folder / "old"

    @property
    def alembic_project(self) -> Path:
        """The same without us."""
        return self.folder / "alembic"

    @property
    def each_project(self) -> Path:
        """The same again, with a database that each worker migrates, and SQLAlchemy's own recipe."""
        return self.folder / "each"

    @property
    def django_project(self) -> Path:
        """The same in Django."""
        return self.folder / "django"

    @cached_property
    def environment(self) -> dict[str, str]:
        """Of every process: a copy of the code, and the server for those that don't find it themselves."""
        where = {"HOST": self.address.host, "PORT": str(self.address.port), "ACCOUNT": self.address.user}
        return inherited_environment() | where | {"PYTHONPATH": str(self.folder / "code")}

    @cached_property
    def our_python(self) -> Path:
        """The interpreter of an environment like the others': without what only our own tests need."""
        ours = f"rag-factory[embedded,testing] @ {PROJECT.as_uri()}"
        return self._make_environment("ours", "sqlalchemy", "alembic", ours)

    @cached_property
    def django_python(self) -> Path:
        """The interpreter of Django's environment."""
        return self._make_environment("django", "django", "pytest-django")

    @cached_property
    def alembic_python(self) -> Path:
        """The interpreter of pytest-postgresql's environment."""
        return self._make_environment("alembic", "pytest-postgresql", "sqlalchemy", "alembic")

    @cached_property
    def our_crew(self) -> Crew:
        """Our processes."""
        return self._gather(Path(sys.executable), "ours", folder=self.project)

    @cached_property
    def alembic_crew(self) -> Crew:
        """Alembic's processes."""
        return self._gather(
            self.alembic_python, "alembic_upgrade", str(self.alembic_project), folder=self.alembic_project
        )

    @cached_property
    def janitor_crew(self) -> Crew:
        """The processes of pytest-postgresql."""
        return self._gather(
            self.alembic_python, "postgresql_janitors", str(self.alembic_project), folder=self.alembic_project
        )

    @cached_property
    def django_crew(self) -> Crew:
        """Django's processes."""
        address = self.address
        where = (address.host, str(address.port), address.user)
        return self._gather(self.django_python, "django_databases", *where, "#", folder=self.django_project)

    def facts(self) -> dict[str, str]:
        """What the figures depend on further."""
        found = {"data": "on tmpfs" if in_memory() else "on disk"}
        for python, name in (
            ("django_python", "django"),
            ("django_python", "pytest-django"),
            ("alembic_python", "pytest-postgresql"),
        ):
            if python in self.__dict__:
                code = f"from importlib.metadata import version; print(version({name!r}))"
                done = subprocess.run(
                    [getattr(self, python), "-c", code], check=True, capture_output=True, text=True
                )
                found[name] = done.stdout.strip()
        return found

    def time_ours(
        self, number: int, state: str, project: Path | None = None, *, take_part: bool = True
    ) -> float:
        """Begin a run, and in each of its workers take part in it, as the plug-in does with xdist.

        state: of what is found: "kept" databases, a template from which they are "cloned", or nothing, so
        that it is "built". take_part: without, the clock stops when they are there for the workers.
        """
        root = str(project or self.project)
        if state == "built":
            self.drop("app_test_%")
        elif state == "cloned":
            self.drop("app_test_%", but="app_test_ragt_%")
        else:
            self._begin(root, number)
            self.our_crew.run("end", [{}] * number)
        self.checkpoint()
        seconds, header = self._begin(root, number, take_part=take_part)
        self.our_crew.run("end", [{}] * number)
        expected = {"kept": "cached, {} kept,", "cloned": "cached, {} cloned,", "built": "built, {} cloned,"}
        if f" {expected[state].format(number)} " not in header:
            raise RuntimeError(f"{state} was measured with {header}")
        return seconds

    def _begin(self, root: str, number: int, *, take_part: bool = True) -> tuple[float, str]:
        began = time.perf_counter()
        found: dict[str, Any] = self.our_crew.run("prepare", [{"root": root, "workers": number}])[0]
        if number > 1 and take_part:
            workers = [{"root": root, "run": found["run"], "number": each} for each in range(number)]
            self.our_crew.run("lease", workers)
        return time.perf_counter() - began, found["header"]

    def time_alembic(self, number: int) -> float:
        """Create and migrate a database in each process."""
        self.checkpoint()
        seconds = self.alembic_crew.time("create", self._databases("each", number))
        self.drop("each%")
        return seconds

    def time_pytest_postgresql(self, number: int) -> float:
        """Load a template in each process, and create one test's database."""
        self.checkpoint()
        seconds = self.janitor_crew.time("create", self._databases("janitor", number))
        self.janitor_crew.run("end", [{}] * number)
        return seconds

    def time_django(self, number: int, *, keep: bool) -> float:
        """Set up Django's test database in each process; keep: it is there and migrated."""
        job = {"name": "kept" if keep else "migrated", "keep": keep}
        if keep:
            self.django_crew.run("create", [job] * number)
            self.django_crew.run("end", [{"keep": True}] * number)
        self.checkpoint()
        seconds = self.django_crew.time("create", [job] * number)
        self.django_crew.run("end", [{"keep": keep}] * number)
        return seconds

    def time_django_clones(self, number: int) -> float:
        """Clone Django's test database as often, which Django does one after the other."""
        self.django_crew.run("create", [{"name": "source", "keep": False}])
        self.checkpoint()
        seconds = self.django_crew.time("clone", [{"number": number}])
        # Django takes 1 for no clones at all.
        self.django_crew.run("end", [{"keep": False, "clones": number}])
        self.drop("source%")
        return seconds

    def time_test(self, rival: str, times: int = 100) -> float:
        """Run as many tests one way, in one process that has run one before."""
        self.our_crew.run("prepare", [{"root": str(self.project), "workers": 1}])
        self.checkpoint()
        seconds: float = self.our_crew.run("measure", [{"rival": rival, "times": times}])[0]
        self.our_crew.run("end")
        return seconds

    def time_pytest(self, python: Path, folder: Path, *arguments: str) -> float:
        """Run the tests of a project."""
        return time_command([python, "-m", "pytest", "-q", *arguments], folder, environment=self.environment)

    def time_one_test(self, project: Path) -> float:
        """Run one test of a project of ours, whose databases are there."""
        return self.time_pytest(self.our_python, project, "tests/test_items.py::test_insert[0]")

    def time_cold_run(self, number: int) -> float:
        """Begin to run our tests in as many workers, with neither template nor databases."""
        self.drop("app_test_%")
        self.checkpoint()
        return self._time_until_ready(self.our_python, self.project, number, "tests/test_items.py")

    def time_cold_alembic_run(self, number: int) -> float:
        """Begin to run as many tests with a database that each worker creates and migrates."""
        self.drop("each%")
        self.checkpoint()
        return self._time_until_ready(self.alembic_python, self.each_project, number, "test_items.py", *ALONE)

    def _time_until_ready(self, python: Path, folder: Path, number: int, file: str, *arguments: str) -> float:
        """Run two tests for each worker; seconds from the command until the last one's first test starts."""
        notes = self.folder / "ready"
        notes.mkdir()
        plugin = {
            "PYTHONPATH": f"{self.folder / 'code'}{os.pathsep}{self.folder / 'plugins'}",
            "PYTEST_PLUGINS": "ready_workers",
            "READY_WORKERS": str(notes),
        }
        tests = [f"{file}::test_insert[{each}]" for each in range(2 * number)]
        began = time.time()
        time_command(
            [python, "-m", "pytest", "-q", "-n", str(number), *arguments, *tests],
            folder,
            environment=self.environment | plugin,
        )
        times = [float(note.read_text(encoding="utf-8")) for note in notes.iterdir()]
        shutil.rmtree(notes)
        if len(times) != number:
            raise RuntimeError(f"{len(times)} of {number} workers ran a test")
        return max(times) - began

    def time_fresh_start(self) -> float:
        """Clone, and run the tests: environment, server and template database are all made."""
        with project_copy() as copy:
            return self._time_first_test([installed_program("nox"), "-s", "tests"], copy)

    def time_warm_start(self) -> float:
        """Run the tests again, all being there."""
        return self._time_first_test([installed_program("nox"), "-R", "-s", "tests"], self.clone)

    def time_bare_start(self) -> float:
        """Run one test that needs nothing, with the same interpreter and plug-ins."""
        folder = self.folder / "bare"
        folder.mkdir(exist_ok=True)
        (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
        return self._time_first_test([self.clone / ".nox/tests/bin/pytest"], folder)

    @cached_property
    def clone(self) -> Path:
        """A copy of the project whose tests have run."""
        copy = self.stack.enter_context(project_copy())
        self._time_first_test([installed_program("nox"), "-s", "tests"], copy)
        return copy

    def _time_first_test(self, arguments: Sequence[str | Path], folder: Path) -> float:
        note = self.folder / "first_test"
        note.unlink(missing_ok=True)
        network = {name: value for name, value in os.environ.items() if name.upper().startswith(NETWORK)}
        plugin = {
            "PYTHONPATH": str(self.folder / "plugins"),
            "PYTEST_PLUGINS": "first_test",
            "FIRST_TEST": str(note),
        }
        began = time.time()
        time_command(arguments, folder, environment=inherited_environment() | network | plugin)
        return float(note.read_text(encoding="utf-8")) - began

    def drop(self, pattern: str, but: str = "") -> None:
        """Drop the databases that a LIKE pattern names."""
        with self._connect() as server:
            found = server.execute(
                "SELECT datname FROM pg_database WHERE datname LIKE %s AND datname NOT LIKE %s",
                (pattern, but),
            )
            for (name,) in found.fetchall():
                server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def checkpoint(self) -> None:
        """Let nobody pay for what another one wrote."""
        with self._connect() as server:
            server.execute("CHECKPOINT")

    def _connect(self) -> psycopg.Connection[Any]:
        address = self.address
        return psycopg.connect(
            host=address.host, port=address.port, user=address.user, dbname="postgres", autocommit=True
        )

    def _databases(self, name: str, number: int) -> list[dict[str, Any]]:
        address = self.address
        where = {"host": address.host, "port": address.port, "user": address.user}
        return [where | {"name": f"{name}_{each}"} for each in range(number)]

    def _gather(self, python: Path, module: str, *arguments: str, folder: Path) -> Crew:
        crew = Crew(python, module, arguments, size=WORKERS[-1], folder=folder, environment=self.environment)
        self.stack.callback(crew.close)
        return crew

    def _make_environment(self, name: str, *packages: str) -> Path:
        folder = self.folder / f"{name}-environment"
        same = [f"{each}=={importlib.metadata.version(each)}" for each in SHARED]
        versions = {each.partition("==")[0]: each for each in same}
        wanted = dict.fromkeys(["psycopg", "pytest", "pytest-xdist", *packages])
        chosen = [versions.get(each, each).replace("psycopg==", "psycopg[binary]==") for each in wanted]
        progress(f"installing {' '.join(chosen)}")
        uv = installed_program("uv")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
        python = folder / "bin" / "python"
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *chosen], check=True)
        return python


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    """Make all that the rivals share; stop and remove it at the end."""
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        home = stack.enter_context(temporary_folder(TMPFS if in_memory() else None))
        write_our_project(folder / "ours", home)
        write_our_project(folder / "old", home, MANY)
        write_alembic_project(folder / "alembic")
        write_alembic_project(folder / "each", EACH_CONFTEST)
        write_django_project(folder / "django")
        for part in ("rag_factory", "benchmarks"):
            shutil.copytree(
                PROJECT / part, folder / "code" / part, ignore=shutil.ignore_patterns(*NOT_CLONED)
            )
        (folder / "plugins").mkdir()
        for plugin in ("first_test.py", "ready_workers.py"):
            shutil.copy(PROJECT / "benchmarks/peers" / plugin, folder / "plugins")
        server = EmbeddedServer(home, settings=FORGETFUL, name="test-postgresql")
        stack.callback(server.stop)
        yield Laboratory(folder, server, server.ensure_running(), stack)


@contextmanager
def project_copy() -> Iterator[Path]:
    """A copy of the project as a clone has it. Its servers are stopped at the end."""
    with temporary_folder() as folder:
        copy = folder / "project"
        shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(*NOT_CLONED))
        try:
            yield copy
        finally:
            embedded_test_server(DatabaseConfig.load(copy, for_tests=True)).stop()
