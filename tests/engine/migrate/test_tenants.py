"""Where the tenants come from, what is kept of a run, and processes that die."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import psycopg
import pytest

from rag_factory.errors import ProblemsError, UsageError
from rag_factory.migrate.many import migrate_tenants
from rag_factory.migrate.tenants import Outcome, StateFile, Tenant, query_tenants, read_urls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rag_factory.migrate.target import Target

URL = "postgresql://app:secret@db.example/"


def test_file_of_urls(tmp_path: Path) -> None:
    path = tmp_path / "tenants"
    path.write_text(f"# ours\n\n  {URL}one\n{URL}two?sslmode=require\n")
    path.chmod(0o640)
    tenants, exposed = read_urls(path)
    assert [tenant.name for tenant in tenants] == ["one on db.example:5432", "two on db.example:5432"]
    assert tenants[1].url.options == {"sslmode": "require"}
    assert exposed
    assert "secret" not in repr(tenants)
    path.chmod(0o600)
    assert not read_urls(path)[1]


def test_every_wrong_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "tenants"
    path.write_text(f"{URL}one\n{URL}one\nmysql://app:secret@db/x\n{URL}\n")
    with pytest.raises(ProblemsError) as caught:
        read_urls(path)
    told = str(caught.value).splitlines()
    assert told[0] == "tenants, line 2 names one on db.example:5432 again."
    assert told[1].startswith("tenants, line 3 is malformed")
    assert told[2].startswith("tenants, line 4 names no database")
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match=r"nowhere can't be read: No such file"):
        read_urls(tmp_path / "nowhere")


def test_query_gives_databases_or_schemas(patient: Target) -> None:
    tenants = query_tenants(patient, "VALUES ('b'), ('a'), ('b')", schemas=False)
    assert [(tenant.name, tenant.url.database) for tenant in tenants] == [
        ("b on the embedded server", "b"),
        ("a on the embedded server", "a"),
    ]
    name = """odd 'name, "with" \\ all"""
    (tenant,) = query_tenants(patient, "VALUES ($$" + name + "$$)", schemas=True)
    assert tenant.schema == name
    with psycopg.connect(tenant.url.plain) as session:
        session.execute(psycopg.sql.SQL("CREATE SCHEMA {}").format(psycopg.sql.Identifier(name)))
        assert session.execute("SELECT current_schemas(false)").fetchone() == ([name, "public"],)
        session.rollback()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("SELECT 1", "must give one column with names"),
        ("SELECT NULL::text", "must give one column with names"),
        ("SELECT 'a', 'b'", "must give one column with names"),
        ("SELECT FROM nowhere", "--tenant-query failed: .*nowhere"),
        ("CREATE TABLE made_by_a_query ()", "--tenant-query failed: .*read-only"),
    ],
)
def test_query_that_gives_no_names(patient: Target, statement: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        query_tenants(patient, statement, schemas=False)


def test_state_of_a_run_that_was_killed(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "made", "some list")
    with pytest.raises(UsageError, match="no run of these tenants to resume"):
        state.read("002")
    state.begin("002")
    for outcome in (Outcome("a"), Outcome("b", error="no"), Outcome("c", error="no"), Outcome("c")):
        state.add(outcome)
    with state.path.open("a") as file:
        file.write('{"tenant": "d", "err')
    assert state.read("002") == {"a", "c"}
    assert state.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="The last run went to 002, this one goes to 003"):
        state.read("003")
    assert StateFile(tmp_path / "made", "another list").path != state.path


def test_process_that_dies_takes_one_tenant_along(
    project: Path, patient: Target, write_revision: Callable[..., Path]
) -> None:
    shutil.rmtree(project / "migrations" / "versions")
    (project / "migrations" / "versions").mkdir()
    database = "op.get_bind().exec_driver_sql('SELECT current_database()').scalar()"
    write_revision("001", None, f"{database} == 'dies' and __import__('os')._exit(9)")
    with psycopg.connect(patient.url.plain, autocommit=True) as server:
        for name in ("first", "dies", "last"):
            server.execute(f"CREATE DATABASE {name}".encode())
    tenants = [Tenant(name, patient.url.with_database(name)) for name in ("first", "dies", "last")]
    outcomes: list[Outcome] = []
    migrate_tenants(project, tenants, "001", parallel=1, wait_seconds=10, on_outcome=outcomes.append)
    assert [(one.tenant, one.after, one.exit_code) for one in outcomes] == [
        ("first", ["001"], 0),
        ("dies", None, 1),
        ("last", ["001"], 0),
    ]
    assert outcomes[1].error == "Its process ended before it was done, with code 9."
