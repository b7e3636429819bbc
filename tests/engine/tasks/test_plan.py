"""db.plan at the command line."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.server import EmbeddedServer
from tests.engine.processes import started

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]
    Dump = Callable[[DatabaseUrl], str]
    WriteRevision = Callable[..., Path]

SCRATCH = "SELECT count(*) FROM pg_database WHERE datname LIKE 'rag_factory_scratch%%'"
BIG = """
    CREATE TABLE big (id int, n int);
    INSERT INTO big SELECT i, i FROM generate_series(1, 100000) AS i;
    ANALYZE big
"""
# With it, to read 100,000 rows is long.
SHORT = ("--short", "0.001")


def test_plan_in_all_its_forms(
    tasks: Tasks, write_revision: WriteRevision, query: Query, dump: Dump, database_url: DatabaseUrl
) -> None:
    tasks.succeed("db.migrate")
    query(BIG)
    write_revision("003", "002", "CREATE INDEX big_n ON big (n)", "DROP INDEX big_n")
    write_revision("004", "003", "ALTER TABLE big DROP COLUMN id", "ALTER TABLE big ADD id int")
    write_revision("005", "004", "ALTER ROLE app PASSWORD 'hunter2'", "raise NotImplementedError('no way')")
    before = dump(database_url)
    done = tasks.run("db.plan", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{database_url.database} at 002, 3 revisions to 005: blocks writes")
    assert "003 revision 003: blocks writes, under a second" in lines
    assert any(line.split()[:3] == ["1", "blocks", "writes,"] and "SHARE on big" in line for line in lines), (
        done.stdout
    )
    assert '      op.create_index_online("big_n", "big", ["n"])' in lines
    assert "  data lost: it drops column big.id (about 100,000 rows)" in lines
    assert "  #1 not run on the copy: it changes the whole server, not this database alone" in lines
    assert any("not reversible: Taking back 005" in line and "no way" in line for line in lines), done.stdout
    assert "hunter2" not in done.stdout

    done = tasks.run("db.plan", "--json", "--to", "004", "--fail-on", "blocks-writes", *SHORT)
    assert done.returncode == 4
    assert done.stderr.startswith("--fail-on blocks-writes: 003 (blocks writes, under a second).")
    plan = json.loads(done.stdout)
    assert (plan["at"], plan["to"], plan["level"]) == (["002"], "004", "blocks writes")
    first, second = plan["revisions"]
    assert [first["id"], first["reversible"], first["transactional"]] == ["003", True, True]
    (statement,) = first["statements"]
    assert statement["sql"] == "CREATE INDEX big_n ON big (n)"
    assert statement["ms"] > 0
    assert statement["locks"] == [
        {"relation": "big", "mode": "SHARE", "blocks": "writes", "assumed": False},
    ]
    assert (statement["rewrites"], statement["scans"], statement["builds"]) == ([], ["big"], ["big_n"])
    assert (second["reversible"], second["drops"]) == (True, ["column big.id (about 100,000 rows)"])
    assert second["level"] == "short lock"

    done = tasks.run("db.plan", "--markdown", "--fail-on", "blocks-everything", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| 1 | blocks writes, under a second | " in done.stdout
    assert '```python\nop.create_index_online("big_n", "big", ["n"])\n```' in done.stdout

    # By the usual measure a table of this size is nothing.
    assert "\n003 revision 003: short lock\n" in tasks.succeed("db.plan", "--to", "003").stdout

    assert dump(database_url) == before
    assert query("SELECT version_num FROM alembic_version") == [("002",)]
    assert query(SCRATCH) == [(0,)]


def test_nothing_pending(tasks: Tasks) -> None:
    tasks.succeed("db.migrate")
    done = tasks.succeed("db.plan", "--fail-on", "online")
    assert done.stdout == ""
    assert done.stderr.endswith("is at 002 (head); nothing to plan\n")
    assert json.loads(tasks.succeed("db.plan", "--json").stdout)["revisions"] == []


def test_revision_that_fails_ends_the_plan(tasks: Tasks, write_revision: WriteRevision, query: Query) -> None:
    tasks.succeed("db.migrate")
    write_revision("003", "002", "CREATE TABLE made (id int)", "DROP TABLE made")
    write_revision("004", "003", "ALTER TABLE missing ADD a int")
    write_revision("005", "004")
    done = tasks.run("db.plan")
    assert done.returncode == 1
    assert done.stderr.startswith("Revision 004 fails on a copy of the schema.")
    assert 'relation "missing" does not exist' in done.stdout
    assert "\n004 revision 004: fails\n" in done.stdout
    assert "005 revision 005: not planned, since the one before it fails" in done.stdout
    # The way back of what did not fail was tried.
    assert "reversible: taken back on the copy" in done.stdout
    plan = json.loads(tasks.run("db.plan", "--json").stdout)
    assert [each["error"] is None for each in plan["revisions"]] == [True, False]
    assert plan["not_planned"] == ["005"]
    assert query("SELECT to_regclass('made') IS NULL") == [(True,)]
    assert query(SCRATCH) == [(0,)]


def test_calls_that_are_refused(tasks: Tasks) -> None:
    tasks.fail(3, "db.plan", says="does not exist on .*Create it: invoke db.create")
    tasks.fail(
        2, "db.plan", "--fail-on", "blue", says="--fail-on is blue, and must be one of online, short-lock"
    )
    tasks.fail(2, "db.plan", "--json", "--markdown", says="--json and --markdown exclude each other")
    tasks.fail(2, "db.plan", "--short", "x", says="--short is x, and must be a number of seconds")
    tasks.fail(2, "db.plan", "--to", "999", says="There is no revision '999'")


def test_locked_table_is_not_waited_for(tasks: Tasks, database_url: DatabaseUrl, query: Query) -> None:
    tasks.succeed("db.migrate", "--to", "001")
    with psycopg.connect(database_url.plain) as other:
        other.execute("LOCK TABLE documents")
        said = tasks.fail(
            8, "db.plan", says="See who holds it in pg_stat_activity", DB_LOCK_TIMEOUT_SECONDS="0.2"
        )
        assert "is locked, and its schema can't be read: " in said
    assert query(SCRATCH) == [(0,)]


def test_interrupted_plan_leaves_no_scratch_database(
    cli: CommandLine, tasks: Tasks, query: Query, write_revision: WriteRevision
) -> None:
    tasks.succeed("db.migrate")
    write_revision("003", "002", "SELECT pg_sleep(60)")
    with started(cli, "db.plan") as process:
        deadline = time.monotonic() + 30
        sleeping = "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
        while query(sleeping) != [(True,)]:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors.splitlines()[-1]) == (130, "", "Interrupted.")
    assert query(SCRATCH) == [(0,)]


@pytest.mark.parametrize("right", ["NOCREATEDB", "CREATEDB"], ids=["no database", "no extension"])
def test_role_that_may_create_no_scratch_database(
    tasks: Tasks, database_url: DatabaseUrl, write_revision: WriteRevision, query: Query, right: str
) -> None:
    # Only a superuser creates the extension vector.
    tasks.succeed("db.migrate", "db.backup")
    role = f"reader_{database_url.database}"
    query(f"CREATE ROLE {role} LOGIN {right} PASSWORD 'only-reads' IN ROLE pg_read_all_data")
    url = f"postgresql://{role}:only-reads@{database_url.host}:{database_url.port}/{database_url.database}"
    try:
        compared = tasks.succeed("db.check", "db.drift", "db.stamp", "--detect", DATABASE_URL=url)
        # The copy is written to all the same.
        query(f"ALTER DATABASE {database_url.database} SET default_transaction_read_only = on")
        write_revision("003", "002", "ALTER TABLE chunks ADD note text", "ALTER TABLE chunks DROP note")
        done = tasks.succeed("db.plan", "--json", DATABASE_URL=url)
        rehearsed = tasks.succeed("db.rehearse", DATABASE_URL=url)
    finally:
        EmbeddedServer(tasks.cli.root / ".rag_factory" / "server").stop()
        query(f"BEGIN READ WRITE; DROP ROLE {role}; COMMIT")
    for told in (compared, done, rehearsed):
        assert f"{role} may not create " in told.stderr
        assert ": it is made on the embedded server\n" in told.stderr
    assert f"{role} may not compare in " in compared.stderr
    plan = json.loads(done.stdout)
    assert plan["rehearsed_on"] == "the embedded server"
    (statement,) = plan["revisions"][0]["statements"]
    assert [lock["mode"] for lock in statement["locks"]] == ["ACCESS EXCLUSIVE"]
    assert "only-reads" not in done.stdout + done.stderr
