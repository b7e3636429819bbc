"""db.migrate-tenants as it is typed: several databases, one that fails, and the rest of it later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.conftest import PASSWORD, clean_environment
from tests.engine.testing.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

Server = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def tenants(database_url: DatabaseUrl, server: Server) -> Iterator[list[DatabaseUrl]]:
    """Three databases, of which the last is not created."""
    urls = [database_url.with_database(f"{database_url.database}_{letter}") for letter in "abc"]
    for url in urls[:2]:
        server.execute(f'CREATE DATABASE "{url.database}"'.encode())
    yield urls
    for url in urls:
        server.execute(f'DROP DATABASE IF EXISTS "{url.database}" WITH (FORCE)'.encode())


@pytest.fixture
def url_file(project: Path, tenants: list[DatabaseUrl]) -> Path:
    path = project / "tenants.txt"
    path.write_text("\n".join(["# one a line", *(url.plain for url in tenants)]))
    path.chmod(0o644)
    return path


def test_failures_are_told_and_resumed(
    tasks: Tasks, url_file: Path, tenants: list[DatabaseUrl], server: Server
) -> None:
    run = ("db.migrate-tenants", "--tenant-urls", url_file.name, "--parallel", "2")
    # In production too, and without an application's database.
    environment = {"DATABASE_URL": "", "APP_ENV": "production", "DB_LOCK_TIMEOUT_SECONDS": "0.1"}
    environment["DB_LOCK_RETRIES"] = "1"
    done = tasks.run(*run, **environment)
    assert done.returncode == 1
    rows = {line.split()[1]: line for line in done.stdout.splitlines()}
    for url in tenants[:2]:
        assert rows[url.database].startswith("done ")
        assert " base to 002 " in rows[url.database]
    assert rows[tenants[2].database].startswith("failed ")
    reason = f"does not exist on {tenants[2].server}. Create it, or take it off the list."
    assert rows[tenants[2].database].endswith(reason)
    assert "warning: tenants.txt holds passwords and other accounts may read it: chmod 600" in done.stderr
    assert done.stderr.endswith(
        "1 of 3 tenants failed; the others are there. When what stopped them is mended, run it again with "
        "--resume\n"
    )
    (state,) = (url_file.parent / ".rag_factory").glob("tenants-*.jsonl")
    assert PASSWORD not in done.stdout + done.stderr + state.read_text()

    url_file.chmod(0o600)
    server.execute(f'CREATE DATABASE "{tenants[2].database}"'.encode())
    with psycopg.connect(tenants[2].plain) as holder:
        holder.execute("CREATE TABLE documents ()")
        done = tasks.run(*run, "--resume", "--json", **environment)
        assert done.returncode == 8, done.stderr
        (outcome,) = json.loads(done.stdout)
        assert (outcome["tenant"].split()[0], outcome["after"]) == (tenants[2].database, [])
        assert "lock" in outcome["error"]
        holder.rollback()
    done = tasks.succeed(*run, "--resume", **environment)
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["done", tenants[2].database]]
    assert done.stderr == "2 of 3 tenants got there before; 1 to do\nAll tenants are there\n"


def test_schemas_have_version_tables_of_their_own(
    tasks: Tasks, server: Server, database_url: DatabaseUrl
) -> None:
    server.execute(f'CREATE DATABASE "{database_url.database}"'.encode())
    with psycopg.connect(database_url.plain, autocommit=True) as session:
        session.execute('CREATE SCHEMA one; CREATE SCHEMA "Number 2"')
        query = "SELECT nspname FROM pg_namespace WHERE nspname IN ('one', 'Number 2')"
        run = ("db.migrate-tenants", "--tenant-query", query, "--tenant-schemas", "--json")
        # A search path would lead to it, and to the tables beside it.
        session.execute("CREATE TABLE alembic_version AS SELECT '999' AS version_num")
        tasks.fail(4, *run, says="The schema public of .* is migrated too, .* of its own in that schema")
        session.execute("DROP TABLE alembic_version")
        for before in ([], ["002"]):
            outcomes = json.loads(tasks.succeed(*run).stdout)
            assert {outcome["tenant"].partition(" in ")[0] for outcome in outcomes} == {"one", "Number 2"}
            assert [(one["before"], one["after"]) for one in outcomes] == [(before, ["002"])] * 2
        found = session.execute(
            "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'documents' ORDER BY 1"
        )
        assert found.fetchall() == [('"Number 2"',), ("one",)]
        missing = ("db.migrate-tenants", "--tenant-query", "SELECT 'three'", "--tenant-schemas")
        done = tasks.run(*missing)
        assert done.returncode == 1
        assert "There is no schema three in " in done.stdout + done.stderr


def test_interrupted_run_says_how_far_it_got(
    cli: CommandLine,
    url_file: Path,
    tenants: list[DatabaseUrl],
    server: Server,
    write_revision: Callable[..., Path],
) -> None:
    write_revision("003", upgrade="SELECT pg_sleep(60)")
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "invoke",
            "db.migrate-tenants",
            "--tenant-urls",
            url_file.name,
            "--parallel",
            "1",
        ],
        cwd=cli.root,
        env=clean_environment(cli.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        asleep = "SELECT true FROM pg_stat_activity WHERE query LIKE %s AND state = 'active' AND datname = %s"
        values = ("SELECT pg_sleep%", tenants[0].database)
        wait_until(lambda: server.execute(asleep, values).fetchall(), "the migration to sleep")
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    (line,) = stdout.splitlines()
    assert line.startswith(f"failed  {tenants[0].database} ")
    with psycopg.connect(tenants[0].plain) as session:
        assert session.execute("SELECT version_num FROM alembic_version").fetchall() == [("002",)]


def test_calls_that_make_no_sense(tasks: Tasks) -> None:
    tasks.fail(2, "db.migrate-tenants", says="from --tenant-urls FILE or from --tenant-query SQL")
    tasks.fail(2, "db.migrate-tenants", "--tenant-urls", "x", "--parallel", "0", says="--parallel is 0")
    both = ("--tenant-urls", "x", "--tenant-schemas")
    tasks.fail(2, "db.migrate-tenants", *both, says="--tenant-schemas goes with --tenant-query")
