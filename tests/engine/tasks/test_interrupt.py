"""Ctrl-C in a long task, as a terminal gives it to all of its processes: one line, code 130, nothing left."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.engine.processes import started, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]

SLEEPS = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
WAITS = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"
LEFT = "SELECT datname FROM pg_database WHERE NOT datname = ANY (%s)"
DATABASES = "SELECT array_agg(datname) FROM pg_database"
# A revision that takes a minute in every other database than the one it is written for.
ELSEWHERE = """
    DO $$ BEGIN IF current_database() <> '{database}' THEN PERFORM pg_sleep(60); END IF; END $$
"""
# An index whose rows take a minute each, in every database but this one: in what is restored.
SLOW = """
    CREATE FUNCTION slow(id integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN
        IF current_database() <> '{database}' THEN PERFORM pg_sleep(60); END IF;
        RETURN id;
    END $$;
    CREATE TABLE slow AS SELECT 1 AS id;
    CREATE INDEX ON slow (slow(id))
"""


def interrupt(cli: CommandLine, query: Query, condition: str, *arguments: str, **environment: str) -> None:
    """Start a task, press Ctrl-C when something is so, and see how it ends."""
    before = query(DATABASES)[0][0]
    with started(cli, *arguments, session=True, **environment) as process:
        wait_for(query, condition)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, ""), errors
    assert errors.splitlines()[-1] == "Interrupted.", errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 2, errors
    wait_for(query, "SELECT count(*) = 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    assert query(LEFT, before) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["db.drift"],
        ["db.stamp", "--detect"],
        ["test.prepare"],
    ],
    ids=" ".join,
)
def test_revisions_that_run_elsewhere(
    cli: CommandLine,
    tasks: Tasks,
    query: Query,
    write_revision: Callable[..., Path],
    database_url: DatabaseUrl,
    arguments: list[str],
) -> None:
    write_revision("003", "002", ELSEWHERE.format(database=database_url.database))
    tasks.succeed("db.migrate")
    tests = {"TEST_DATABASE_URL": database_url.with_database("postgres_test").plain}
    interrupt(cli, query, SLEEPS, *arguments, **(tests if arguments[0] == "test.prepare" else {}))


def test_backup(cli: CommandLine, tasks: Tasks, query: Query, database_url: DatabaseUrl) -> None:
    tasks.succeed("db.migrate")
    with psycopg.connect(database_url.plain) as other:
        other.execute("LOCK TABLE documents")
        interrupt(cli, query, WAITS, "db.backup")
    assert not list((cli.root / "backups").glob("*"))


@pytest.mark.parametrize("arguments", [["db.restore", "--yes"], ["db.rehearse"]], ids=" ".join)
def test_restoring(
    cli: CommandLine, tasks: Tasks, query: Query, database_url: DatabaseUrl, arguments: list[str]
) -> None:
    tasks.succeed("db.migrate")
    query(SLOW.format(database=database_url.database))
    tasks.succeed("db.backup")
    interrupt(cli, query, SLEEPS, *arguments)
    assert query("SELECT id FROM slow") == [(1,)]
