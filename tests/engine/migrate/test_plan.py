"""The planner on real servers: each statement of the table, and what is said of whole revisions."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.url import DatabaseUrl
from rag_factory.migrate.history import History
from rag_factory.migrate.plan.planner import make_plan
from rag_factory.migrate.project import Project
from rag_factory.migrate.target import Target
from rag_factory.server import EmbeddedServer, find_binaries
from tests.conftest import FAST
from tests.engine.migrate.plan_cases import (
    CASES,
    LIVE,
    LIVE_VECTORS,
    SHORT_SECONDS,
    VECTOR_CASES,
    Case,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rag_factory.migrate.plan.model import Plan, PlannedRevision

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
INI = "[alembic]\nscript_location = %(here)s/migrations\n"
# As anybody's: it takes the address and makes a connection of its own.
ENV = """
from alembic import context
from sqlalchemy import NullPool, engine_from_config

address = {"sqlalchemy.url": context.config.get_main_option("sqlalchemy.url")}
engine = engine_from_config(address, poolclass=NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
"""
REVISION = '''"""{message}"""
from alembic import op
revision = {id!r}
down_revision = {parent!r}


def upgrade():
{body}


def downgrade():
    pass
'''
LOCK_ORDER = [
    "ROW EXCLUSIVE",
    "SHARE UPDATE EXCLUSIVE",
    "SHARE",
    "SHARE ROW EXCLUSIVE",
    "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
]
TABLES = {"big", "other", "tiny", "loose", "parted", "seen", "vectors"}


@contextmanager
def server_15(folder: Path) -> Iterator[DatabaseUrl]:
    server = EmbeddedServer(folder / "fifteen", bin_folder=DEBIAN_15, settings=FAST)
    try:
        address = server.ensure_running()
        yield DatabaseUrl(host=address.host, port=address.port, user=address.user, database="postgres")
    finally:
        server.stop()


def write_project(root: Path, bodies: list[str], env: str = ENV) -> Project:
    versions = root / "migrations" / "versions"
    versions.mkdir(parents=True)
    (root / "alembic.ini").write_text(INI)
    (root / "pyproject.toml").write_text("[tool.rag_factory]\nextensions = []\n")
    (root / "migrations" / "env.py").write_text(env)
    (root / "migrations" / "script.py.mako").touch()
    for number, body in enumerate(bodies):
        parent = f"{number - 1:03}" if number else None
        text = REVISION.format(message=f"revision {number}", id=f"{number:03}", parent=parent, body=body)
        (versions / f"{number:03}.py").write_text(text)
    return Project(root)


def body_of(case: Case) -> str:
    if case.autocommit:
        return f"    with op.get_context().autocommit_block():\n        op.execute({case.sql!r})"
    return f"    op.execute({case.sql!r})"


def plan_on(url: DatabaseUrl, live: str, project: Project) -> Plan:
    """Make a database, and plan all of the project's revisions on it."""
    target = Target(url.with_database("test_plan"), DatabaseConfig.load(project.root))
    with psycopg.connect(url.plain, autocommit=True) as server:
        server.execute("CREATE DATABASE test_plan")
        try:
            with psycopg.connect(target.url.plain, autocommit=True) as session:
                session.execute(live.encode())
            history = History.read(project)
            return make_plan(target, project, history, history.head, SHORT_SECONDS)
        finally:
            left = server.execute("SELECT datname FROM pg_database WHERE datname ~ '^rag_factory_scratch'")
            assert left.fetchall() == []
            server.execute("DROP DATABASE test_plan WITH (FORCE)")


@pytest.fixture(scope="module")
def plan_18(server_url: DatabaseUrl, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    project = write_project(tmp_path_factory.mktemp("plan"), [body_of(case) for case in CASES + VECTOR_CASES])
    return plan_on(server_url.with_database("postgres"), LIVE + LIVE_VECTORS, project)


@pytest.fixture(scope="module")
def plan_15(public_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    project = write_project(tmp_path_factory.mktemp("plan"), [body_of(case) for case in CASES])
    # Its pg_dump is newer than the server, as on most machines.
    (project.root / ".env").write_text(f"POSTGRES_BIN_FOLDER={find_binaries().folder}\n")
    with server_15(public_folder) as url:
        return plan_on(url, LIVE, project)


def check(case: Case, planned: PlannedRevision) -> None:
    assert planned.error is None
    (statement,) = planned.statements
    assert statement.sql == case.sql
    locks: dict[str, str] = {}
    for lock in sorted(
        (
            lock.as_data()
            for lock in statement.locks
            if lock.relation in TABLES and lock.mode != "RowShareLock"
        ),
        key=lambda lock: LOCK_ORDER.index(lock["mode"]),
    ):
        locks[lock["relation"]] = lock["mode"]
    assert locks == case.locks
    assert case.rewrites <= set(statement.rewrites)
    assert bool(case.rewrites) == bool(statement.rewrites), statement.rewrites
    if not case.rewrites:
        assert set(statement.scans) == case.scans
    assert (statement.verdict.level, planned.verdict.level) == (case.level, case.level)
    assert planned.transactional is not case.autocommit
    assert tuple(planned.drops) == case.drops
    if case.advice is None:
        assert list(statement.advice) == []
    else:
        assert case.advice in "\n".join(statement.advice)


@pytest.mark.parametrize("number", range(len(CASES + VECTOR_CASES)))
def test_statement_on_18(plan_18: Plan, number: int) -> None:
    check((CASES + VECTOR_CASES)[number], plan_18.revisions[number])


@pytest.mark.skipif(not DEBIAN_15.is_dir(), reason="needs the oldest server that is supported: Debian's 15")
@pytest.mark.parametrize("number", range(len(CASES)))
def test_statement_on_15(plan_15: Plan, number: int) -> None:
    check(CASES[number], plan_15.revisions[number])
