"""`test.*`: the test databases through the command line."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.url import DatabaseUrl
from rag_factory.migrate.target import embedded_server
from rag_factory.testing.place import embedded_test_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rag_factory.server import EmbeddedServer
    from tests.conftest import CommandLine


@pytest.fixture
def base(server_url: DatabaseUrl) -> Iterator[DatabaseUrl]:
    """A name for test databases of this test's own."""
    url = server_url.with_database(f"t{uuid4().hex[:6]}_test")
    yield url
    with psycopg.connect(server_url.with_database("postgres").plain, autocommit=True) as server:
        for name in databases(url):
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def databases(base: DatabaseUrl) -> list[str]:
    with psycopg.connect(base.with_database("postgres").plain) as server:
        found = server.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (base.database,)
        )
        return [name for (name,) in found]


def test_databases_are_prepared_listed_and_cleaned(cli: CommandLine, base: DatabaseUrl) -> None:
    cli = replace(cli, environment={"TEST_DATABASE_URL": base.plain})
    prepared = cli.invoke("test.prepare", "--workers", "2")
    assert prepared.returncode == 0, prepared.stderr
    assert "built, 2 cloned" in prepared.stderr
    assert "cached, 2 kept" in cli.invoke("test.prepare", "--workers", "2").stderr

    listed = json.loads(cli.invoke("test.status", "--json").stdout)["databases"]
    assert sorted(database["kind"] for database in listed) == ["template", "worker", "worker"]
    assert not any(database["leased"] for database in listed)
    table = cli.invoke("test.status")
    assert all(name in table.stdout for name in databases(base))

    cleaned = cli.invoke("test.clean")
    assert cleaned.stderr.count("dropped") == 3, cleaned.stderr
    assert databases(base) == []
    assert "nothing to clean" in cli.invoke("test.clean").stderr


def test_the_embedded_server_is_the_tests_own_and_is_stopped(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APP_ENV")
    own = replace(cli, environment={})
    config = DatabaseConfig.load(own.root)
    tests, development = embedded_test_server(config), embedded_server(config)

    def fsync(server: EmbeddedServer) -> object:
        address = server.ensure_running()
        url = DatabaseUrl(host=address.host, port=address.port, user=address.user, database="postgres")
        with psycopg.connect(url.plain) as session:
            return session.execute("SHOW fsync").fetchone()

    try:
        for task in ("test.prepare", "db.create"):
            done = own.invoke(task)
            assert done.returncode == 0, done.stderr
        assert fsync(tests) == ("off",)
        assert fsync(development) == ("on",)
        stopped = own.invoke("test.stop")
        assert stopped.returncode == 0, stopped.stderr
        assert tests.status().state != "running"
        assert development.status().state == "running"
        assert "cached, 1 kept" in own.invoke("test.prepare", "--workers", "1").stderr
    finally:
        tests.stop()
        development.stop()


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        (["test.prepare", "--workers", "-1"], {}, 2, "--workers is -1"),
        (["test.prepare", "--workers", "x"], {}, 2, "--workers is x"),
        (["test.prepare"], {"APP_ENV": "production"}, 3, "tests don't run there"),
        (["test.prepare"], {"TEST_DATABASE_URL": "postgresql://localhost:1/a_test"}, 3, "No server answers"),
        (["test.status"], {"TEST_DATABASE_URL": "postgresql://localhost:1/a"}, 3, "without the word test"),
        (["test.clean"], {"TEST_DATABASE_URL": "postgresql://localhost:1/a_test"}, 3, "No server answers"),
    ],
)
def test_what_cannot_be_is_refused(
    cli: CommandLine, arguments: list[str], environment: dict[str, str], code: int, says: str
) -> None:
    done = replace(cli, environment=environment).invoke(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("task", ["test.status", "test.clean"])
def test_a_silent_server_is_waited_for_as_long_as_the_setting_says(cli: CommandLine, task: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/a_test"
        started = time.monotonic()
        done = replace(cli, environment={"TEST_DATABASE_URL": url, "DB_CONNECT_TIMEOUT_SECONDS": "2"}).invoke(
            task
        )
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - started < 9, "it waited the 10 s that are the default"


def test_stopping_what_does_not_run_says_so(cli: CommandLine) -> None:
    done = cli.invoke("test.stop")
    assert done.returncode == 0
    assert "was not running" in done.stderr
