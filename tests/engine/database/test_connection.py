"""Connections go where the address says, whatever libpq's own variables say."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rag_factory.database.driver import connect

if TYPE_CHECKING:
    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine


@pytest.mark.parametrize("variable", ["PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER"])
def test_variable_of_libpq_does_not_redirect(
    server_url: DatabaseUrl, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "10.255.255.1" if "HOST" in variable else "1")
    with connect(server_url.with_database("postgres"), connect_timeout_seconds=2) as connection:
        assert connection.info.port == server_url.port
        assert connection.info.host == server_url.host
        assert (connection.info.user, connection.info.dbname) == (server_url.user, "postgres")


def test_command_line_is_not_redirected(cli: CommandLine) -> None:
    created = cli.invoke("db.create", PGHOSTADDR="10.255.255.1", PGPORT="1")
    assert created.returncode == 0, created.stderr
    migrated = cli.invoke("db.migrate", PGHOSTADDR="10.255.255.1", PGPORT="1")
    assert migrated.returncode == 0, migrated.stderr


def test_driver_is_loaded_without_sqlalchemy() -> None:
    """Every task that looks at a database starts by it."""
    code = "import rag_factory.database.driver, sys; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
