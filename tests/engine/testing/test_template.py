"""The template database: built once, whole or not at all, and anew when anything it is made of changes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.errors import SettingsError
from rag_factory.migrate.project import Project
from rag_factory.server import EmbeddedServer
from rag_factory.testing import template
from rag_factory.testing.template import ServerFacts, read_facts, template_key
from tests.engine.migrate.pooling_proxy import pooling_proxy
from tests.engine.testing.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.testing.conftest import Checkout

TESTS = """
def test_unit():
    pass

def test_database(db_connection):
    assert db_connection.execute(text("SELECT count(*) FROM item")).scalar() == 0
"""
# It commits all revisions at once, on a connection of its own.
PLAIN_ENV_PY = """
from alembic import context
from sqlalchemy import create_engine, make_url

url = make_url(context.config.get_main_option("sqlalchemy.url"))
with create_engine(url).connect() as connection:
    context.configure(connection=connection{options})
    with context.begin_transaction():
        context.run_migrations()
"""
GATE = 4711
FACTS = ServerFacts("18.6", "FILE_COPY", "vector 0.8.6", "me")


def test_eight_runs_at_once_build_one_template(checkout: Checkout) -> None:
    checkout.write_test(TESTS)
    with checkout.connect() as server:
        server.execute("CREATE TABLE IF NOT EXISTS built (base text)")
    url = checkout.server.with_database("postgres").plain
    checkout.write_revision(
        "CREATE TABLE item (id int)",
        code=f"import psycopg; psycopg.connect({url!r}, autocommit=True).execute("
        f"'INSERT INTO built VALUES (%s)', [{checkout.base!r}]).connection.close()",
    )
    runs = [checkout.start() for _ in range(8)]
    results = [checkout.finish(run) for run in runs]
    for result in results:
        result.assert_passed(2)
    with checkout.connect() as server:
        rows = server.execute("SELECT count(*) FROM built WHERE base = %s", (checkout.base,)).fetchone()
    assert rows == (1,)
    assert sum(" built, " in result.header for result in results) == 1
    assert len(checkout.databases("^ragt_")) == 1
    assert checkout.databases("^(?!ragt_)") <= {checkout.worker(slot) for slot in range(8)}


def test_a_killed_build_is_built_again(checkout: Checkout) -> None:
    checkout.write_test(TESTS)
    checkout.write_revision(f"SELECT pg_advisory_xact_lock({GATE}); CREATE TABLE item (id int)")

    def waiting() -> Any:
        with checkout.connect() as server:
            return server.execute(
                "SELECT FROM pg_stat_activity WHERE starts_with(datname, %s) AND wait_event = 'advisory'",
                (checkout.base,),
            ).fetchall()

    # The lock is held in the very database that is being built: advisory locks are per database.
    builder = checkout.start()
    template = wait_until(lambda: checkout.databases("^ragt_"), "the template database").pop()
    with wait_until(lambda: connect_if_there(checkout, template), "the template to accept sessions") as gate:
        gate.execute("SELECT pg_advisory_lock(%s)", (GATE,))
        wait_until(waiting, "the revision to wait")
        os.killpg(builder.pid, signal.SIGKILL)
        builder.communicate()
        result = checkout.pytest()
    result.assert_passed(2)
    assert " built, " in result.header
    assert checkout.databases() == {template, checkout.worker()}


def connect_if_there(checkout: Checkout, name: str) -> psycopg.Connection[Any] | None:
    try:
        return checkout.connect(name)
    except psycopg.OperationalError:
        return None


def test_a_failing_revision_is_told_and_leaves_nothing(checkout: Checkout) -> None:
    checkout.write_test(TESTS)
    checkout.write_revision("SELECT no_such_thing", 2)
    for more in ([], ["-n", "2"]):
        result = checkout.pytest(*more)
        assert result.outcomes == {"test_unit": "passed", "test_database": "error"}, result.output
        said = "The test template can't be built: Applying 002 (002_step.py) failed"
        assert said in result.header
        assert said in result.texts["test_database"]
        assert "no_such_thing" in result.header
        assert checkout.databases() == set()
    checkout.write_revision("SELECT 1", 2)
    checkout.pytest().assert_passed(2)


def test_an_env_py_of_anybodys_builds_it(checkout: Checkout) -> None:
    checkout.write("migrations/env.py", PLAIN_ENV_PY.format(options=""))
    checkout.write_revision("CREATE TYPE colour AS ENUM ('red'); CREATE TABLE paint (colour colour)", 2)
    checkout.write_revision("ALTER TYPE colour ADD VALUE 'blue'", 3)
    # In one transaction with the revision before it, that value could not be used.
    checkout.write_revision("INSERT INTO paint VALUES ('blue')", 4)
    checkout.write_test(
        """
        def test_database(db_connection):
            assert db_connection.execute(text("SELECT colour FROM paint")).scalar() == "blue"
            assert db_connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "004"
        """
    )
    checkout.pytest().assert_passed(1)


def test_an_env_py_with_another_version_table_is_told(checkout: Checkout) -> None:
    checkout.write("migrations/env.py", PLAIN_ENV_PY.format(options=", version_table='mine'"))
    checkout.write_test(TESTS)
    result = checkout.pytest()
    assert result.outcomes == {"test_unit": "passed", "test_database": "error"}, result.output
    assert "but alembic_version in " in result.header
    assert "Set version_table in" in result.header
    assert checkout.databases() == set()


def test_a_pooler_that_shares_sessions_is_refused(checkout: Checkout) -> None:
    checkout.write_test(TESTS)
    server = checkout.server
    with pooling_proxy(f"{server.host}/.s.PGSQL.{server.port}", server.user, "postgres") as proxy:
        behind = replace(checkout.url, host="127.0.0.1", port=proxy.port)
        result = checkout.pytest(TEST_DATABASE_URL=behind.plain)
    assert result.outcomes == {"test_unit": "passed", "test_database": "error"}, result.output
    assert (
        f"A pooler in transaction or statement mode (PgBouncer?) answers at {behind.server}" in result.header
    )
    assert "Set TEST_DATABASE_URL to the server's own port" in result.header
    assert checkout.databases() == set()


def test_a_template_takes_no_connections(checkout: Checkout) -> None:
    checkout.write_test(TESTS)
    checkout.pytest().assert_passed(2)
    (template,) = checkout.databases("^ragt_")
    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        checkout.connect(template)


def test_a_template_without_its_mark_is_built_again(checkout: Checkout) -> None:
    checkout.write_test(TESTS)
    checkout.pytest().assert_passed(2)
    (template,) = checkout.databases("^ragt_")
    with checkout.connect() as server:
        server.execute(f'COMMENT ON DATABASE "{checkout.base}_{template}" IS NULL'.encode())
    result = checkout.pytest()
    result.assert_passed(2)
    assert " built, " in result.header


def test_the_key_changes_with_what_a_migration_depends_on(checkout: Checkout) -> None:
    def key(facts: ServerFacts = FACTS) -> str:
        return template_key(Project(checkout.root), facts)

    keys = [key()]
    assert key() == keys[0]
    checkout.write("migrations/versions/__pycache__/001.pyc", "x")
    checkout.write("migrations/versions/.001_step.py.swp", "x")
    checkout.write("tests/test_other.py", "x")
    assert key() == keys[0]
    for path in ("migrations/versions/001_step.py", "migrations/env.py", "alembic.ini"):
        file = checkout.root / path
        file.write_text(file.read_text() + "\n# changed\n")
        keys.append(key())
    checkout.write("migrations/versions/data.csv", "1,2")
    keys.append(key())
    (checkout.root / "migrations/versions/data.csv").rename(checkout.root / "migrations/versions/other.csv")
    keys.append(key())
    checkout.write("pyproject.toml", "[tool.rag_factory]\nextensions = []\nversion_table = 'other'\n")
    keys.append(key())
    keys += [key(replace(FACTS, version="18.7")), key(replace(FACTS, extensions="vector 0.8.7"))]
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_the_files_that_the_project_names(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        return template_key(Project(checkout.root), FACTS)

    checkout.write("app/models/item.py", "x")
    checkout.write("seeds/a.csv", "x")
    checkout.write("one.sql", "x")
    checkout.write(
        "pyproject.toml", '[tool.rag_factory]\ntemplate_files = ["app/models", "seeds/*.csv", "one.sql"]\n'
    )
    keys = [key()]
    checkout.write("app/other.py", "x")
    assert key() == keys[0]
    for path in ("app/models/item.py", "app/models/sub/new.py", "seeds/a.csv", "seeds/b.csv", "one.sql"):
        checkout.write(path, "y")
        keys.append(key())
    checkout.write("engine/migrate/runner.py", "x")
    monkeypatch.setattr(template, "ENGINE", checkout.root.resolve() / "engine")
    keys.append(key())
    checkout.write("engine/migrate/runner.py", "y")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    for given in ('["no/such"]', '["no/*.sql"]', '"app"', '["/no/such"]'):
        checkout.write("pyproject.toml", f"[tool.rag_factory]\ntemplate_files = {given}\n")
        with pytest.raises(SettingsError, match="template_files"):
            key()


def test_two_checkouts_with_the_same_revisions_share_a_template(
    make_checkout: Callable[..., Checkout], checkout: Checkout
) -> None:
    other = make_checkout(base=checkout.base)
    for one in (checkout, other):
        one.write_test(TESTS)
        one.pytest().assert_passed(2)
    assert len(checkout.databases("^ragt_")) == 1
    assert checkout.databases("^(?!ragt_)") == {checkout.worker(), other.worker()}


@pytest.mark.parametrize(("fsync", "strategy"), [("on", "WAL_LOG"), ("off", "FILE_COPY")])
def test_a_clone_is_made_the_way_that_is_fast_there(
    checkout: Checkout, disk: Path, fsync: str, strategy: str
) -> None:
    embedded = EmbeddedServer(disk / f"fsync-{fsync}", settings={"fsync": fsync, "log_statement": "ddl"})
    address = embedded.ensure_running()
    try:
        url = replace(checkout.server, host=address.host, port=address.port, user=address.user)
        with psycopg.connect(url.with_database("postgres").plain, autocommit=True) as server:
            facts = read_facts(server, url, Project(checkout.root), 10)
        assert facts.strategy == strategy
        checkout.write_test(TESTS)
        checkout.pytest(TEST_DATABASE_URL=url.with_database("app_test").plain).assert_passed(2)
        log = next((disk / f"fsync-{fsync}").glob("*.log")).read_text()
        assert f'STRATEGY "{strategy.lower()}"' in log
    finally:
        embedded.stop()
