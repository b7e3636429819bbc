"""Restoring: what the target keeps, what stands in the way, who is sent away, what a rehearsal finds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import LockedError, NotReadyError, ProblemsError, RagFactoryError, RefusedError
from rag_factory.migrate.backup.content import load
from rag_factory.migrate.backup.dump import back_up
from rag_factory.migrate.backup.restore import name_to_keep, prepare
from rag_factory.migrate.guard import is_marked
from rag_factory.migrate.lock import migrator_lock
from rag_factory.migrate.project import Project
from rag_factory.server import EmbeddedServer, find_binaries
from tests.conftest import FAST

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.migrate.backup.manifest import Backup
    from rag_factory.migrate.target import Target

    Query = Callable[..., list[tuple[Any, ...]]]
    Session = psycopg.Connection[tuple[Any, ...]]
    MakeTarget = Callable[[DatabaseUrl], Target]

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
SCRATCH = "SELECT datname FROM pg_database WHERE datname LIKE 'rag_factory_scratch%'"


@pytest.fixture
def backup(target: Target, project: Path, query: Query) -> Backup:
    """A backup of one row; the row has changed since."""
    query("CREATE TABLE kept (text text); INSERT INTO kept VALUES ('old')")
    made = back_up(target, Project(project))
    query("UPDATE kept SET text = 'new'")
    return made


@pytest.mark.usefixtures("owner")
def test_the_target_keeps_what_is_its_own(
    target: Target, project: Path, backup: Backup, query: Query, server: Session
) -> None:
    name = target.url.database
    for statement in (
        f'ALTER DATABASE "{name}" OWNER TO owner_of_tests',
        f"ALTER DATABASE \"{name}\" SET work_mem = '7MB'",
        f"ALTER DATABASE \"{name}\" SET search_path TO public, \"$user\", 'it''s'",
        f"ALTER DATABASE \"{name}\" SET rag_factory.mark = 'it''s protected'",
        f'ALTER ROLE owner_of_tests IN DATABASE "{name}" SET statement_timeout = 1234',
        f'ALTER DATABASE "{name}" CONNECTION LIMIT 77',
        f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC',
        f'GRANT CREATE ON DATABASE "{name}" TO pg_monitor WITH GRANT OPTION',
        f"COMMENT ON DATABASE \"{name}\" IS 'it''s ours'",
    ):
        server.execute(statement.encode())
    before = _properties(server, name)
    plan = prepare(backup, target, Project(project), no_owner=False)
    assert plan.needs_confirmation
    done = plan.run(jobs=1, wait_seconds=0)
    assert done.refused == ()
    assert done.kept_as is not None
    assert "_before_restore_2" in done.kept_as
    assert _properties(server, name) == before
    assert query("SELECT text FROM kept") == [("old",)]
    with psycopg.connect(target.url.with_database(done.kept_as).plain) as former:
        assert former.execute("SELECT text FROM kept").fetchone() == ("new",)
    assert server.execute(SCRATCH).fetchall() == []


def test_two_restores_of_one_second_keep_two_databases() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    taken: set[str] = set()
    for database in ("app", "app", "app", "é" * 40, "é" * 39):
        name = name_to_keep(database, now, taken)
        assert name not in taken
        assert len(name.encode()) <= 63
        taken.add(name)
    assert {f"app_before_restore_20260102T030405Z{end}" for end in ("", "_2", "_3")} < taken


def test_an_empty_database_is_not_kept(
    target: Target, project: Path, backup: Backup, server: Session, make_target: MakeTarget
) -> None:
    empty = make_target(target.url.with_database(f"{target.url.database}_empty"))
    server.execute(f'CREATE DATABASE "{empty.url.database}"'.encode())
    plan = prepare(backup, empty, Project(project), no_owner=False)
    assert not plan.needs_confirmation
    with psycopg.connect(empty.url.plain):
        # Nothing would be lost, but somebody would be sent away.
        assert prepare(backup, empty, Project(project), no_owner=False).needs_confirmation
    assert plan.run(jobs=1, wait_seconds=0).kept_as is None
    before = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) AND datname LIKE '%%_before_%%'"
    assert server.execute(before, (target.url.database,)).fetchall() == []


def test_a_long_name_is_cut_at_a_character(
    target: Target, project: Path, backup: Backup, server: Session, make_target: MakeTarget
) -> None:
    long = make_target(target.url.with_database((target.url.database + "ä" * 30)[:50]))
    for _ in range(2):
        kept_as = prepare(backup, long, Project(project), no_owner=False).run(jobs=1, wait_seconds=0).kept_as
    assert kept_as is not None
    assert len(kept_as.encode()) in {62, 63}
    assert server.execute("SELECT FROM pg_database WHERE datname = %s", (kept_as,)).fetchall() == [()]


def test_sessions_that_come_back_at_once_are_sent_away(target: Target, project: Path, backup: Backup) -> None:
    stop, ready = Event(), Event()

    def use() -> list[str]:
        """Be an application: read, and connect anew whenever the connection is lost."""
        seen = ["new"]
        while not stop.is_set():
            try:
                with psycopg.connect(target.url.plain, autocommit=True) as connection:
                    while not stop.is_set():
                        (text,) = connection.execute("SELECT text FROM kept").fetchone() or ("",)
                        if text != seen[-1]:
                            seen.append(text)
                        ready.set()
            except psycopg.OperationalError:
                continue
        return seen

    with ThreadPoolExecutor(3) as pool:
        using = [pool.submit(use) for _ in range(3)]
        try:
            assert ready.wait(30)
            plan = prepare(backup, target, Project(project), no_owner=False)
            assert plan.sessions > 0
            plan.run(jobs=1, wait_seconds=0)
            ready.clear()
            assert ready.wait(30)
        finally:
            stop.set()
        # Each saw the one database or the other, and never the new one before the old.
        assert {tuple(user.result()) for user in using} <= {("new", "old"), ("new",)}


def test_a_session_that_can_not_be_ended_stops_the_restore(
    target: Target, project: Path, server: Session, owner: DatabaseUrl, make_target: MakeTarget
) -> None:
    name = target.url.database
    server.execute(f'ALTER DATABASE "{name}" OWNER TO owner_of_tests'.encode())
    theirs = make_target(replace(owner, database=name))
    with psycopg.connect(theirs.url.plain) as connection:
        connection.execute("CREATE TABLE kept (text text); SELECT lo_create(0)")
    made = back_up(theirs, Project(project))
    with psycopg.connect(target.url.plain) as superuser:
        superuser.execute("SELECT 1")
        with pytest.raises(NotReadyError, match=r"is in use by app, which owner_of_tests can't end.*Nothing"):
            prepare(made, theirs, Project(project), no_owner=False).run(jobs=2, wait_seconds=0)
        superuser.execute("INSERT INTO kept VALUES ('new')")
        superuser.commit()
    assert server.execute(SCRATCH).fetchall() == []
    # Restored without a superuser, once the session has ended.
    done = prepare(made, theirs, Project(project), no_owner=False).run(jobs=2, wait_seconds=0)
    with psycopg.connect(target.url.with_database(done.kept_as or "").plain) as former:
        assert former.execute("SELECT count(*) FROM kept").fetchone() == (1,)
    with psycopg.connect(theirs.url.plain) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_setting_that_only_a_superuser_gives_is_told(
    target: Target, project: Path, server: Session, owner: DatabaseUrl, make_target: MakeTarget
) -> None:
    name = target.url.database
    server.execute(f'ALTER DATABASE "{name}" OWNER TO owner_of_tests'.encode())
    server.execute(f"ALTER DATABASE \"{name}\" SET log_statement = 'all'".encode())
    server.execute(f"ALTER DATABASE \"{name}\" SET work_mem = '7MB'".encode())
    server.execute(f"ALTER DATABASE \"{name}\" SET rag_factory.protected = 'on'".encode())
    theirs = make_target(replace(owner, database=name))
    done = prepare(back_up(theirs, Project(project)), theirs, Project(project), no_owner=False).run(
        jobs=1, wait_seconds=0
    )
    assert done.refused == ('log_statement: permission denied to set parameter "log_statement"',)
    with psycopg.connect(theirs.url.plain) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)
    # The mark of protection is not lost with it.
    assert is_marked(theirs)


# --- what stands in the way ---


def test_rights_and_roles_are_looked_at_before_anything(
    target: Target, project: Path, query: Query, server: Session, owner: DatabaseUrl, make_target: MakeTarget
) -> None:
    server.execute("CREATE ROLE passing_by")
    query("CREATE TABLE things (id int); GRANT SELECT ON things TO passing_by, owner_of_tests")
    query("CREATE TABLE theirs (id int); ALTER TABLE theirs OWNER TO owner_of_tests")
    made = back_up(target, Project(project))
    assert made.manifest.roles == ("app", "owner_of_tests", "passing_by")
    query("DROP OWNED BY passing_by; DROP ROLE passing_by")
    with pytest.raises(
        NotReadyError, match=r"needs roles that .* lacks: passing_by\. Create them.*--no-owner"
    ):
        prepare(made, target, Project(project), no_owner=False)
    server.execute("ALTER ROLE owner_of_tests NOCREATEDB")
    theirs = make_target(replace(owner, database=target.url.database))
    with pytest.raises(ProblemsError) as caught:
        prepare(made, theirs, Project(project), no_owner=True)
    assert "owner_of_tests may not create databases" in str(caught.value)
    assert "does not own" in str(caught.value)
    copy = make_target(target.url.with_database(f"{target.url.database}_copy"))
    prepare(made, copy, Project(project), no_owner=True).run(jobs=1, wait_seconds=0)
    with psycopg.connect(copy.url.plain) as connection:
        found = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert found.fetchall() == [("app",)]


def test_owners_that_can_not_be_given_are_told_with_the_way_out(
    target: Target, project: Path, query: Query, owner: DatabaseUrl, make_target: MakeTarget, server: Session
) -> None:
    query("CREATE TABLE things (id int)")
    made = back_up(target, Project(project))
    theirs = make_target(replace(owner, database=f"{target.url.database}_theirs"))
    with pytest.raises(RagFactoryError, match=r"pg_restore failed: .*\"app\".*--no-owner$"):
        prepare(made, theirs, Project(project), no_owner=False).run(jobs=1, wait_seconds=0)
    names = (
        "SELECT datname FROM pg_database WHERE datname = %s OR starts_with(datname, 'rag_factory_scratch')"
    )
    assert server.execute(names, (theirs.url.database,)).fetchall() == []
    prepare(made, theirs, Project(project), no_owner=True).run(jobs=1, wait_seconds=0)


def test_an_extension_that_may_not_be_created_is_told(
    target: Target, project: Path, query: Query, owner: DatabaseUrl, make_target: MakeTarget
) -> None:
    query("CREATE EXTENSION vector")
    made = back_up(target, Project(project))
    theirs = make_target(replace(owner, database=f"{target.url.database}_theirs"))
    with pytest.raises(RagFactoryError, match=r"CREATE EXTENSION.*Let a role restore it that may create"):
        prepare(made, theirs, Project(project), no_owner=True).run(jobs=1, wait_seconds=0)
    unknown = replace(made, manifest=replace(made.manifest, extensions={"vector": "1", "nope": "2"}))
    with pytest.raises(NotReadyError, match=r"needs extensions that .* lacks: nope\. Install"):
        prepare(unknown, theirs, Project(project), no_owner=True)


def test_a_newer_backup_is_refused(target: Target, project: Path, backup: Backup) -> None:
    newer = replace(backup, manifest=replace(backup.manifest, server_version="99.1"))
    with pytest.raises(NotReadyError, match=r"is of PostgreSQL 99\.1, newer than the server .*, 18\.6\."):
        prepare(newer, target, Project(project), no_owner=False)


def test_databases_of_the_server_are_never_replaced(
    target: Target, project: Path, backup: Backup, make_target: MakeTarget
) -> None:
    with pytest.raises(RefusedError, match="postgres is a database that the server itself needs"):
        prepare(backup, make_target(target.url.with_database("postgres")), Project(project), no_owner=False)


def test_rows_that_are_missing_leave_the_target_alone(
    target: Target, project: Path, backup: Backup, query: Query, server: Session
) -> None:
    wrong = replace(backup, manifest=replace(backup.manifest, rows={"public.kept": 2, "public.gone": 0}))
    with pytest.raises(
        RagFactoryError, match=r"public\.gone has no such table instead of 0; public\.kept has 1"
    ):
        prepare(wrong, target, Project(project), no_owner=False).run(jobs=1, wait_seconds=0)
    assert query("SELECT text FROM kept") == [("new",)]
    assert server.execute(SCRATCH).fetchall() == []


def test_a_migrator_at_work_is_not_pulled_from_under(
    target: Target, project: Path, backup: Backup, query: Query
) -> None:
    with (
        migrator_lock(target, Project(project), wait_seconds=0),
        pytest.raises(LockedError, match="Another migrator works on"),
    ):
        prepare(backup, target, Project(project), no_owner=False).run(jobs=1, wait_seconds=0)
    assert query("SELECT text FROM kept") == [("new",)]


PROPERTIES = """
    SELECT datdba, encoding, datlocprovider, datcollate, datctype, datlocale, datconnlimit, dattablespace,
           shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s
"""
SETTINGS = """
    SELECT setrole, unnest(setconfig) FROM pg_db_role_setting JOIN pg_database AS d ON d.oid = setdatabase
    WHERE datname = %s ORDER BY 1, 2
"""
GRANTS = """
    SELECT grantor, grantee, privilege_type, is_grantable FROM pg_database, aclexplode(datacl)
    WHERE datname = %s ORDER BY 1, 2, 3
"""


def _properties(server: Session, name: str) -> list[Any]:
    return [server.execute(query, (name,)).fetchall() for query in (PROPERTIES, SETTINGS, GRANTS)]


@pytest.mark.skipif(not DEBIAN_15.is_dir(), reason="needs a server older than the programs: Debian's 15")
def test_programs_may_be_newer_than_the_server(
    public_folder: Path, project: Path, make_target: MakeTarget
) -> None:
    (project / ".env").write_text(f"POSTGRES_BIN_FOLDER={find_binaries().folder}\n")
    server = EmbeddedServer(public_folder / "server-15", bin_folder=DEBIAN_15, settings=FAST)
    try:
        address = server.ensure_running()
        url = DatabaseUrl(host=address.host, port=address.port, user=address.user, database="postgres")
        with psycopg.connect(url.plain, autocommit=True) as connection:
            connection.execute("CREATE DATABASE old")
        old = make_target(url.with_database("old"))
        with psycopg.connect(old.url.plain) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 9)")
        made = back_up(old, Project(project))
        assert (made.manifest.server_version[:3], made.manifest.pg_dump_version) == ("15.", "18.6")
        assert (
            prepare(made, old, Project(project), no_owner=False).run(jobs=2, wait_seconds=0).kept_as
            is not None
        )
        with psycopg.connect(old.url.plain) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (9,)
        # An error that isn't that one still counts.
        with pytest.raises(RagFactoryError, match=r'pg_restore failed: .*"kept" already exists'):
            load(made, old, jobs=2, no_owner=False)
    finally:
        server.stop()
