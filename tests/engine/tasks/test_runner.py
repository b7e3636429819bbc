"""Migrators as real processes: several at once, stopped, killed, blocked, and what they leave."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.migrate.lock import read_keys
from rag_factory.migrate.project import Project
from tests.engine.migrate.pooling_proxy import pooling_proxy
from tests.engine.processes import started, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]
    WriteRevision = Callable[..., Path]

SLEEP = "op.execute('CREATE TABLE half (id int)')\nop.execute('SELECT pg_sleep(60)')"
SLEEPS = "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
AWAKE = "SELECT count(*) = 0 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_says_where_it_is_and_goes_on(
    cli: CommandLine,
    tasks: Tasks,
    query: Query,
    write_revision: WriteRevision,
    number: signal.Signals,
    code: int,
) -> None:
    tasks.succeed("db.migrate", "--to", "001")
    path = write_revision("003", "002", SLEEP)
    with started(cli, "db.migrate") as process:
        wait_for(query, SLEEPS)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (code, ""), errors
    assert errors.splitlines()[-1] == (
        "Stopped. In this run, applied: 002; the transaction under way is rolled back. "
        "The database is at 002. To go on, run the task again."
    )
    assert query(
        "SELECT to_regclass('half') IS NULL AND count(*) = 0 FROM pg_locks WHERE locktype = 'advisory'"
    ) == [(True,)]
    path.write_text(path.read_text().replace("pg_sleep(60)", "1"))
    assert tasks.succeed("db.migrate").stderr.endswith("is at 003 (head)\n")


def test_killed_run_is_finished_and_told_by_the_next(
    cli: CommandLine, tasks: Tasks, query: Query, write_revision: WriteRevision
) -> None:
    tasks.succeed("db.migrate")
    path = write_revision("003", "002", SLEEP)
    with started(cli, "db.migrate") as process:
        wait_for(query, SLEEPS)
        assert process.stderr is not None
        assert process.stderr.readline() == "applying 003 revision 003 …\n"
        process.kill()
        process.wait()
    path.write_text(path.read_text().replace("pg_sleep(60)", "1"))
    # The server notices by itself that nobody waits for the statement, and the next one waits for that.
    done = tasks.succeed("db.migrate")
    assert "an earlier run was killed while it applied 003 (app, 20" in done.stderr
    assert "what it had not committed was rolled back" in done.stderr
    wait_for(query, AWAKE)
    rows = json.loads(tasks.succeed("db.history", "--ledger", "--json").stdout)
    assert [(row["revision"], row["outcome"]) for row in rows[:3]] == [
        ("003", "done"),
        ("003", "lost"),
        ("002", "done"),
    ]
    assert re.search(r"up +003 +lost +app", tasks.succeed("db.history", "--ledger").stdout)


def test_of_several_migrators_one_applies_and_nobody_fails(
    cli: CommandLine, tasks: Tasks, query: Query
) -> None:
    tasks.succeed("db.create")
    with contextlib.ExitStack() as running:
        processes = [running.enter_context(started(cli, "db.migrate")) for _ in range(6)]
        said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, said
    assert sum(text.count("+ 00") for text in said) == 2
    assert all(re.search(r"is at 002 \(head\)(; nothing to do)?\n$", text) for text in said), said
    assert query("SELECT revision, count(*) FROM rag_factory.ledger GROUP BY 1 ORDER BY 1") == [
        ("001", 1),
        ("002", 1),
    ]


def test_blocker_that_never_goes_is_named(
    tasks: Tasks, database_url: DatabaseUrl, write_revision: WriteRevision
) -> None:
    tasks.succeed("db.migrate")
    write_revision("003", "002", "ALTER TABLE documents ADD more int", "ALTER TABLE documents DROP more")
    with psycopg.connect(database_url.plain, application_name="report") as writer:
        writer.execute("INSERT INTO documents (filename) VALUES ('a')")
        limits = ("--lock-timeout", "0.1", "--retries", "0")
        held = (
            rf"Held by: pid {writer.info.backend_pid}, user app, report, idle in transaction, .*INSERT INTO"
        )
        said = tasks.fail(8, "db.migrate", *limits, says=f"Applying 003 .*lock timeout.*{held}.*is at 002")
        assert said.endswith(
            f"SELECT pg_terminate_backend({writer.info.backend_pid})), then run the task again."
        )
        writer.rollback()
        tasks.succeed("db.migrate")
        writer.execute("INSERT INTO documents (filename) VALUES ('a')")
        tasks.fail(
            8, "db.rollback", "--yes", *limits, says=f"Taking back 003 .*lock timeout.*{held}.*is at 003"
        )
    for option, text in (("--lock-timeout", "0"), ("--statement-timeout", "x"), ("--retries", "-1")):
        tasks.fail(2, "db.migrate", f"{option}={text}", says=f"^{option} is {text}, and must be")


def test_edited_revision_is_found_and_accepted(tasks: Tasks, write_revision: WriteRevision) -> None:
    write_revision("003", "002", "CREATE TABLE t (id int)", "DROP TABLE t")
    tasks.succeed("db.migrate")
    write_revision("003", "002", "CREATE TABLE t (id bigint)", "DROP TABLE t")
    for arguments in (["db.migrate"], ["db.status", "--json"], ["db.rollback", "--yes"]):
        tasks.fail(
            7, *arguments, says=r"Edited since it was applied to .*: 003_made_by_a_test\.py \(003, applied 20"
        )
    tasks.fail(2, "db.accept", "base", says="base is not applied in .*: there is nothing to accept")
    assert "is as it was applied" in tasks.succeed("db.accept", "002").stderr
    tasks.succeed("db.accept", "003", "db.status", "db.rollback", "--yes", "db.migrate")


def test_dry_run_keeps_nothing(tasks: Tasks, query: Query, write_revision: WriteRevision) -> None:
    done = tasks.succeed("db.migrate", "--dry-run")
    assert "does not exist yet: trying on a new scratch database\n+ 001 initial schema" in done.stderr
    tasks.fail(3, "db.status", says="does not exist")
    tasks.succeed("db.migrate")
    write_revision("003", "002", "CREATE TABLE t (id int)")
    done = tasks.succeed("db.migrate", "--dry-run")
    assert re.search(r"^\+ 003 revision 003  \d+ ms$", done.stderr, re.MULTILINE)
    assert "dry run: 1 revision passed, in a transaction that is rolled back; " in done.stderr
    assert query("SELECT to_regclass('t') IS NULL") == [(True,)]
    tasks.fail(2, "db.migrate", "--dry-run", "--sql", says="exclude each other")
    write_revision("003", "002", "SELECT 1 / 0")
    tasks.fail(1, "db.migrate", "--dry-run", says="Trying 003 .*division by zero.*is as it was")


def test_pooler_in_transaction_mode_is_refused(tasks: Tasks, database_url: DatabaseUrl, query: Query) -> None:
    tasks.succeed("db.create")
    ((folders, port),) = query("SELECT current_setting('unix_socket_directories'), current_setting('port')")
    path = f"{folders.strip(chr(34))}/.s.PGSQL.{port}"
    with pooling_proxy(path, "app", database_url.database) as proxy:
        url = f"postgresql://app@127.0.0.1:{proxy.port}/{database_url.database}"
        tasks.fail(3, "db.migrate", says="A pooler in transaction .*pool in session mode", DATABASE_URL=url)
    assert tasks.status()["revision"] == []


def test_plain_alembic_takes_the_lock_and_keeps_the_ledger(
    cli: CommandLine, tasks: Tasks, database_url: DatabaseUrl, query: Query
) -> None:
    tasks.succeed("db.create")
    with psycopg.connect(database_url.plain, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (read_keys(other, Project(cli.root)).lock,))
        with started(cli, "upgrade", "head", module="alembic") as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("waiting for another migrator on ")
            other.execute("SELECT pg_advisory_unlock_all()")
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    recorded = query("SELECT revision, direction, outcome FROM rag_factory.ledger ORDER BY id")
    assert recorded == [("001", "up", "done"), ("002", "up", "done")]
