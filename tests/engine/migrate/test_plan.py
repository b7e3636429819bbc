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
from rag_factory.migrate.plan import statements
from rag_factory.migrate.plan.planner import make_plan
from rag_factory.migrate.plan.verdict import size_text, time_text
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
ASYNC_ENV = """
import asyncio

from alembic import context
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

async def run():
    address = context.config.get_main_option("sqlalchemy.url")
    async with create_async_engine(address, poolclass=NullPool).connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()

asyncio.run(run())
"""
IN_ONE = """
    op.execute("ALTER TABLE big ADD late text DEFAULT '50%'")
    op.execute("CREATE INDEX late ON big (k)")
"""
BATCHES = """
    with op.get_context().autocommit_block():
        op.execute("DO $$BEGIN UPDATE big SET a = ''; COMMIT; END$$")
"""
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
    project = write_project(
        tmp_path_factory.mktemp("plan"), [*map(body_of, CASES + VECTOR_CASES), IN_ONE, BATCHES]
    )
    return plan_on(server_url.with_database("postgres"), LIVE + LIVE_VECTORS, project)


@pytest.fixture(scope="module")
def plan_15(public_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    project = write_project(tmp_path_factory.mktemp("plan"), [body_of(case) for case in CASES])
    # Its pg_dump is newer than the server, as on most machines.
    (project.root / ".env").write_text(f"POSTGRES_BIN_FOLDER={find_binaries().folder}\n")
    with server_15(public_folder) as url:
        return plan_on(url, LIVE, project)


def test_lock_lasts_until_its_transaction_ends(plan_18: Plan) -> None:
    first, second = plan_18.revisions[-2].statements
    assert first.sql == "ALTER TABLE big ADD late text DEFAULT '50%'"
    assert first.seconds < SHORT_SECONDS < second.seconds
    assert (first.verdict.level, first.held_seconds) == ("blocks everything", first.seconds + second.seconds)
    assert "held until its transaction ends" in first.advice[0]
    assert [lock.mode for lock in second.locks] == ["ShareLock"]
    # Under the first one's lock, readers wait for the build as well.
    assert second.verdict.level == "blocks everything"


def test_block_that_commits_holds_a_batch_only(plan_18: Plan) -> None:
    (statement,) = plan_18.revisions[-1].statements
    assert statement.verdict.level == "online"
    assert [str(each) for each in statement.writes] == ["writes up to 100,000 rows of big"]
    assert str(statement.verdict) == "online, about 2 seconds"


@pytest.mark.parametrize("env", [ENV.replace("transaction_per_migration=True", ""), ASYNC_ENV])
def test_env_of_any_kind_is_watched(server_url: DatabaseUrl, tmp_path: Path, env: str) -> None:
    bodies = [
        '    op.execute("CREATE TABLE a (id int REFERENCES other)")',
        '    op.execute("DROP TABLE other CASCADE")',
    ]
    plan = plan_on(
        server_url.with_database("postgres"),
        "CREATE TABLE other (id int PRIMARY KEY)",
        write_project(tmp_path, bodies, env),
    )
    locks = [
        [lock.mode for lock in each.statements[0].locks if lock.relation == "other"]
        for each in plan.revisions
    ]
    assert locks == [["ShareRowExclusiveLock"], ["AccessExclusiveLock"]]
    assert [each.reversible for each in plan.revisions] == [False, False]


def test_text_is_split_recognised_and_shown() -> None:
    sql = "-- first\nCREATE TABLE a (b text DEFAULT ';'); /* x; */ DO $x$BEGIN; DELETE FROM a; END$x$;"
    assert [statements.head(each) for each in statements.split(sql)] == ["CREATE", "DO"]
    assert statements.written_in_body(statements.split(sql)[1]) == ["a"]
    assert statements.shown("ALTER ROLE a PASSWORD 'se''cret' LOGIN") == "ALTER ROLE a PASSWORD '***' LOGIN"
    for text in (
        "CREATE ROLE a",
        "alter user a with login",
        "GRANT a TO b",
        "DO $$BEGIN CREATE ROLE a; END$$",
        "ALTER SYSTEM SET a = 1",
        "SELECT 1; DROP DATABASE a",
    ):
        assert statements.is_server_wide(text), text
    for text in (
        "GRANT SELECT ON a TO b",
        "CREATE USER MAPPING FOR a SERVER b",
        "CREATE TABLE role (a int)",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'CREATE ROLE a'",
        "COMMENT ON TABLE a IS 'create role'",
    ):
        assert not statements.is_server_wide(text), text


def test_times_and_sizes_are_told_roughly() -> None:
    times = [0.2, 1.2, 80, 200, 7000, 200_000]
    assert [time_text(each).removeprefix("about ") for each in times] == [
        "under a second", "1 second", "80 seconds", "3 minutes", "2 hours", "2 days",
    ]  # fmt: skip
    assert [size_text(each) for each in (1, 2_500_000, 3_210_000_000)] == ["0.1 MB", "2.5 MB", "3.2 GB"]


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
