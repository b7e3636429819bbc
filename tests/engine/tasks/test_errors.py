"""Each thing that can be wrong: one message, its exit code, no traceback, nothing half-made."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from rag_factory.database.url import DatabaseUrl
from rag_factory.server import EmbeddedServer, find_binaries
from tests.engine.conftest import assert_styled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]
    Session = psycopg.Connection[tuple[Any, ...]]

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
# Root may write anywhere, unless it gives that right up.
WITHOUT_OVERRIDE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["db.migrat"],
            "There is no task db.migrat. Did you mean db.migrate",
        ),
        (["rollback"], "There is no task rollback. Did you mean db.rollback?"),
        (["qwertz"], "There is no task qwertz. See what there is: invoke --list"),
        (["db.migrate", "--wiat", "3"], "db.migrate has no option --wiat. Did you mean --wait?"),
        (
            ["db.migrate", "--nope"],
            "has no option --nope. See what there is: invoke --help db.migrate",
        ),
        (["--lits"], "invoke has no option --lits. Did you mean --list?"),
        (["db.revision"], "db.revision needs 'message'. See: invoke --help db.revision"),
        (["db.rollback", "--to"], "--to needs a value. See: invoke --help db.rollback"),
        (["--help", "db.nothing"], "There is no task db.nothing."),
    ],
)
def test_call_that_cannot_be_read_is_usage(cli: CommandLine, arguments: list[str], says: str) -> None:
    done = cli.invoke(*arguments)
    assert done.returncode == 2
    assert done.stderr.count(says) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_server_that_is_down(tasks: Tasks) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql://app:secret@127.0.0.1:{free.getsockname()[1]}/app"
        for task in ("db.status", "db.migrate", "db.create"):
            said = tasks.fail(
                3, task, says=r"No server answers at 127\.0\.0\.1:\d+\. Start it", DATABASE_URL=url
            )
            assert "secret" not in said


def test_wrong_password(tasks: Tasks, database_url: DatabaseUrl) -> None:
    wrong = DatabaseUrl(
        host=database_url.host, port=database_url.port, user="app", password="letmein", database="app"
    )
    for task in ("db.status", "db.migrate"):
        said = tasks.fail(3, task, says="refused the login of app: wrong user", DATABASE_URL=wrong.plain)
        assert "letmein" not in said


def test_malformed_url(tasks: Tasks) -> None:
    for url in (
        "mysql://app:secret@localhost/app",
        "postgresql://app:secret@localhost:port/app",
        "localhost",
    ):
        said = tasks.fail(3, "db.status", says=r"DATABASE_URL \(environment\) is malformed", DATABASE_URL=url)
        assert "secret" not in said


def test_unreadable_settings_file(cli: CommandLine) -> None:
    (cli.root / ".env").write_text("APP_ENV=development\n")
    (cli.root / ".env").chmod(0)
    done = _run_without_override(cli, "db.status")
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert done.stderr.startswith(".env can't be read: Permission denied. ")
    assert len(done.stderr.splitlines()) == 1


def test_database_that_is_missing(tasks: Tasks, write_revision: Callable[..., Path], server: Session) -> None:
    write_revision("003")
    for arguments in (
        ["db.status", "--json"],
        ["db.rollback", "--yes"],
        ["db.stamp", "001"],
        ["db.stamp", "001", "--purge", "--yes"],
        ["db.check"],
        ["db.revision", "-m", "x"],
    ):
        tasks.fail(
            3, *arguments, says=r'Database "test_\w+" does not exist on .*Create it: invoke db\.create'
        )
    name = DatabaseUrl.parse(tasks.cli.environment["DATABASE_URL"]).database
    assert not server.execute("SELECT true FROM pg_database WHERE datname = %s", (name,)).fetchone()


@pytest.fixture
def weak_url(database_url: DatabaseUrl, server: Session) -> Iterator[DatabaseUrl]:
    """The address of the test's database for a role that may do nothing."""
    role = sql.Identifier(f"weak_{database_url.database}")
    server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'weak'").format(role))
    yield DatabaseUrl(
        host=database_url.host,
        port=database_url.port,
        user=f"weak_{database_url.database}",
        password="weak",
        database=database_url.database,
    )
    database = sql.Identifier(database_url.database)
    server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
    server.execute(sql.SQL("DROP ROLE {}").format(role))


def test_role_without_rights(tasks: Tasks, weak_url: DatabaseUrl, server: Session) -> None:
    weak = {"DATABASE_URL": weak_url.plain}
    for task in ("db.create", "db.migrate"):
        tasks.fail(
            3, task, says="has not the right for it in .*: permission denied to create database", **weak
        )
    assert not server.execute(
        "SELECT true FROM pg_database WHERE datname = %s", (weak_url.database,)
    ).fetchone()
    tasks.succeed("db.create")
    said = tasks.fail(3, "db.migrate", says="has not the right for it", **weak)
    assert "permission denied for schema public" in said
    assert "The database is at base." in said
    assert tasks.status()["revision"] == []


def test_settings_name_too_long_for_postgresql(tasks: Tasks, database_url: DatabaseUrl) -> None:
    long = database_url.with_database("ä" * 32)
    for arguments in (["db.create"], ["db.status"], ["db.drop", "--yes"]):
        tasks.fail(
            3, *arguments, says=r"is 64 bytes long; PostgreSQL would cut it at 63", DATABASE_URL=long.plain
        )
    tasks.fail(3, "db.create", says="is 64 bytes long", DATABASE_URL="", DB_NAME="ä" * 32)


@pytest.mark.parametrize("name", ['it\'s "quoted"', "größe %d"])
def test_unusual_database_names_work(
    tasks: Tasks, server_url: DatabaseUrl, server: Session, name: str
) -> None:
    name = f"{name} {os.getpid()}"
    url = {"DATABASE_URL": server_url.with_database(name).plain}
    try:
        done = tasks.succeed("db.migrate", "db.status", "--json", "db.rollback", "--all", "--yes", **url)
        assert json.loads(done.stdout)["database"]["name"] == name
        assert f"dropped database {name}" in tasks.succeed("db.drop", "--yes", **url).stderr
    finally:
        server.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))


def _started(server: EmbeddedServer) -> dict[str, str]:
    """Start a server; return the setting that leads to a database on it."""
    address = server.ensure_running()
    url = DatabaseUrl(host=address.host, port=address.port, user=address.user, database="app")
    return {"DATABASE_URL": url.plain}


def _databases(environment: dict[str, str]) -> set[str]:
    url = DatabaseUrl.parse(environment["DATABASE_URL"]).with_database("postgres")
    with psycopg.connect(url.plain) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def _copy_with_old_pgvector(folder: Path) -> Path:
    """Copy the embedded programs, and call their pgvector 0.5.0. Returns the copy's folder of programs."""
    package = find_binaries().folder.parents[1]
    for part in package.parent.glob(f"{package.name}*"):
        if part.suffix != ".dist-info":  # the package, and the libraries beside it
            shutil.copytree(part, folder / "old" / part.name)
    extensions = next((folder / "old").rglob("vector.control")).parent
    control = extensions / "vector.control"
    text = control.read_text()
    version = re.search(r"default_version = '(.*)'", text)
    assert version is not None
    control.write_text(text.replace(version[0], "default_version = '0.5.0'"))
    (extensions / f"vector--{version[1]}.sql").rename(extensions / "vector--0.5.0.sql")
    return folder / "old" / package.name / "pginstall" / "bin"


@pytest.mark.skipif(not DEBIAN_15.is_dir(), reason="needs a PostgreSQL without pgvector: Debian's 15")
def test_extension_that_is_missing(tasks: Tasks, public_folder: Path) -> None:
    server = EmbeddedServer(public_folder / "without_pgvector", bin_folder=DEBIAN_15)
    try:
        there = _started(server)
        for task in ("db.create", "db.migrate"):
            tasks.fail(
                3, task, says="pgvector is missing on the server of app on .*Install its package", **there
            )
        assert "app" not in _databases(there)
    finally:
        server.stop()


def test_extension_that_is_too_old(tasks: Tasks, public_folder: Path) -> None:
    server = EmbeddedServer(public_folder / "old_server", bin_folder=_copy_with_old_pgvector(public_folder))
    try:
        there = _started(server)
        for task in ("db.create", "db.migrate"):
            tasks.fail(
                3, task, says=r"pgvector is 0\.5\.0 on the server of app .*older than 0\.8\.4", **there
            )
        assert "app" not in _databases(there)
        # A database that has it already, made by others.
        url = DatabaseUrl.parse(there["DATABASE_URL"])
        with psycopg.connect(url.with_database("postgres").plain, autocommit=True) as connection:
            connection.execute("CREATE DATABASE app")
        with psycopg.connect(url.plain, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        for task in ("db.create", "db.migrate"):
            tasks.fail(3, task, says=r"pgvector is 0\.5\.0 .*older than 0\.8\.4.*minimum_pgvector", **there)
        pyproject = tasks.cli.root / "pyproject.toml"
        pyproject.write_text(pyproject.read_text() + '\n[tool.rag_factory]\nminimum_pgvector = "0.5.0"\n')
        tasks.succeed("db.migrate", **there)
    finally:
        server.stop()


def test_database_at_a_revision_this_checkout_lacks(
    tasks: Tasks, write_revision: Callable[..., Path]
) -> None:
    path = write_revision("9f8e")
    tasks.succeed("db.migrate")
    path.unlink()
    for arguments in (
        ["db.status"],
        ["db.migrate"],
        ["db.rollback", "--yes"],
        ["db.stamp", "002"],
        ["db.check"],
    ):
        tasks.fail(7, *arguments, says="is at 9f8e, which this checkout lacks: its newest is 002.*--purge")
    tasks.succeed("db.stamp", "002", "--purge", "--yes")
    assert tasks.status()["revision"] == ["002"]


def test_revision_that_is_not_there(tasks: Tasks) -> None:
    tasks.succeed("db.migrate", "--to", "001")
    for arguments in (
        ["db.migrate", "--to", "nope"],
        ["db.rollback", "--to", "nope", "--yes"],
        ["db.stamp", "nope"],
        ["db.show", "nope"],
    ):
        tasks.fail(2, *arguments, says="There is no revision 'nope' in this checkout.*db.history")
    tasks.fail(2, "db.show", "0", says="0 could be 001, 002")
    tasks.fail(2, "db.show", "base", says="no revision to show")
    tasks.fail(2, "db.rollback", "--to", "002", "--yes", says="not at or past 002.*db.migrate --to 002")
    assert tasks.status()["revision"] == ["001"]


def test_numbers_that_are_none(tasks: Tasks) -> None:
    for text in ("x", "0"):
        tasks.fail(2, "db.rollback", f"--steps={text}", says="must be a whole number, 1 or more")
    for text in ("x", "nan"):
        tasks.fail(2, "db.migrate", f"--wait={text}", says="must be a number of seconds")
    tasks.fail(2, "db.rollback", "--all", "--to", "001", says="exclude each other")


def test_several_heads_are_mended_by_a_merge(tasks: Tasks, write_revision: Callable[..., Path]) -> None:
    tasks.succeed("db.migrate")
    write_revision("003a")
    write_revision("003b")
    for arguments in (["db.status"], ["db.migrate"], ["db.revision", "-m", "x", "--empty"]):
        tasks.fail(7, *arguments, says="The history has 2 heads: 003a, 003b. Merge them: invoke db.merge")
    heads = tasks.run("db.heads")
    assert (heads.returncode, heads.stdout.split()) == (7, ["003a", "003b"])
    written = Path(tasks.succeed("db.merge").stdout.strip())
    assert_styled(written)
    assert written.parent == tasks.cli.root / "migrations" / "versions"
    assert "nothing to merge" in tasks.succeed("db.migrate", "db.status", "db.merge").stderr


def test_two_files_with_one_id(tasks: Tasks, write_revision: Callable[..., Path]) -> None:
    write_revision("003", name="003_one.py")
    write_revision("003", name="003_two.py")
    for task in ("db.migrate", "db.history"):
        tasks.fail(7, task, says="Two files have the revision id 003: 003_one.py and 003_two.py")


def test_history_that_runs_in_a_circle(tasks: Tasks, write_revision: Callable[..., Path]) -> None:
    write_revision("003", "004")
    write_revision("004", "003")
    tasks.fail(7, "db.status", says="The history runs in a circle through 00[34] and 00[34]")
    (tasks.cli.root / "migrations/versions/004_made_by_a_test.py").unlink()
    tasks.fail(7, "db.status", says=r"003_made_by_a_test.py follows 004, which this checkout lacks")
    write_revision("003", "003")
    tasks.fail(7, "db.status", says="The history runs in a circle through 003 and 003")


def test_revision_file_that_is_broken(tasks: Tasks, write_revision: Callable[..., Path]) -> None:
    tasks.succeed("db.create")
    path = write_revision("003")
    text = path.read_text()
    path.write_text(f"{text}\ndef :\n")
    for arguments in (["db.status"], ["db.revision", "-m", "x"]):
        tasks.fail(7, *arguments, says=r"003_made_by_a_test.py can't be read: invalid syntax .*line \d+")
    path.write_text(f"import no_such_module\n{text}")
    for arguments in (["db.migrate"], ["db.migrate", "--sql"], ["db.stamp", "002"]):
        tasks.fail(
            7, *arguments, says=r"can't be loaded: ModuleNotFoundError: .*003_made_by_a_test.py, line 1"
        )
    path.write_text(text.replace("revision = '003'", "", 1))
    tasks.fail(7, "db.status", says="can't be loaded: Could not determine revision id from filename 003_")


def test_project_without_alembic(tasks: Tasks) -> None:
    shutil.rmtree(tasks.cli.root / "migrations")
    tasks.fail(3, "db.status", says="The Alembic environment can't be used: Path doesn't exist")
    (tasks.cli.root / "alembic.ini").unlink()
    tasks.fail(3, "db.status", says=r"has no alembic.ini, and its pyproject.toml no \[tool.alembic\]")
    (tasks.cli.root / "alembic.ini").write_text("[alembic\n")
    tasks.fail(3, "db.status", says="alembic.ini can't be read")


def test_read_only_database(tasks: Tasks, database_url: DatabaseUrl, server: Session, query: Query) -> None:
    tasks.succeed("db.migrate", "--to", "001")
    database = sql.Identifier(database_url.database)
    server.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(database))
    for arguments in (["db.migrate"], ["db.rollback", "--yes"], ["db.stamp", "002"]):
        said = tasks.fail(3, *arguments, says="is read-only: cannot execute .* in a read-only transaction")
        assert "Set DATABASE_URL to the primary" in said
    assert tasks.status()["revision"] == ["001"]
    assert query("SELECT count(*) FROM information_schema.columns WHERE column_name = 'parent_chunk_id'") == [
        (0,)
    ]


def test_read_only_folder(cli: CommandLine) -> None:
    versions = cli.root / "migrations" / "versions"
    before = sorted(versions.iterdir())
    versions.chmod(0o555)
    done = _run_without_override(cli, "db.revision", "--empty", "-m", "x")
    versions.chmod(0o755)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert "can't be written: Permission denied. Give this user the right" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(versions.iterdir()) == before


def test_revision_that_fails_in_the_middle(
    tasks: Tasks, write_revision: Callable[..., Path], query: Query
) -> None:
    write_revision("003", "002", "CREATE TABLE first (id int)", "DROP TABLE first")
    path = write_revision(
        "004",
        "003",
        "op.execute('CREATE TABLE half (id int)')\nop.execute('SELECT 1 / 0')",
        "raise ValueError('no way back')",
    )
    done = tasks.run("db.migrate")
    assert done.returncode == 1
    *steps, last = done.stderr.splitlines()
    assert steps[-1].startswith("+ 003 ")
    assert "Applying 004 (004_made_by_a_test.py) failed: " in last
    assert "division by zero" in last
    assert last.endswith("The database is at 003.")
    assert query("SELECT to_regclass('first') IS NOT NULL, to_regclass('half') IS NULL") == [(True, True)]
    path.write_text(path.read_text().replace("SELECT 1 / 0", "SELECT 1"))
    tasks.succeed("db.migrate")
    said = tasks.fail(1, "db.rollback", "--yes", says="Taking back 004 .* failed: ValueError: no way back ")
    assert "004_made_by_a_test.py, line " in said
    assert said.endswith("The database is at 004.")
    assert query("SELECT to_regclass('half') IS NOT NULL") == [(True,)]


def test_lock_that_another_session_holds(tasks: Tasks, database_url: DatabaseUrl) -> None:
    tasks.succeed("db.migrate", "--to", "001")
    with psycopg.connect(database_url.plain) as other:
        other.execute("LOCK TABLE chunks IN ACCESS EXCLUSIVE MODE")
        said = tasks.fail(
            8,
            "db.migrate",
            says="Applying 002 .*lock timeout",
            DB_LOCK_TIMEOUT_SECONDS="0.2",
            DB_LOCK_RETRIES="0",
        )
        assert "The database is at 001." in said
        assert "run the task again" in said
    tasks.succeed("db.migrate")


def test_debug_shows_the_traceback(cli: CommandLine) -> None:
    done = cli.invoke("db.status", "--debug")
    assert done.returncode == 3
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.rstrip().endswith("Create it: invoke db.create")
    assert "Traceback" not in cli.invoke("db.status").stderr


def _run_without_override(cli: CommandLine, *arguments: str) -> Any:
    return cli.run(*WITHOUT_OVERRIDE, sys.executable, "-m", "invoke", *arguments)
