"""A target for functions that the tests call in their own process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.migrate.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl


@pytest.fixture
def make_target(project: Path) -> Callable[[DatabaseUrl], Target]:
    """The target of an address, with the settings of the test's copy of the project."""

    def make(url: DatabaseUrl) -> Target:
        return Target(url, DatabaseConfig.load(project))

    return make


@pytest.fixture
def target(
    make_target: Callable[[DatabaseUrl], Target], database_url: DatabaseUrl, server_url: DatabaseUrl
) -> Iterator[Target]:
    """An empty database; dropped afterwards, and with it all whose name begins with its name."""
    name = database_url.database
    with psycopg.connect(server_url.with_database("postgres").plain, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}"')
        yield make_target(database_url)
        for (each,) in server.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (name,)
        ):
            server.execute(f'DROP DATABASE "{each}" WITH (FORCE)')


@pytest.fixture
def owner(server_url: DatabaseUrl) -> DatabaseUrl:
    """The address of a role that is no superuser, may create databases, and owns nothing but what it makes.

    The role stays, as the server is this worker's own: it is granted things in databases that come and go.
    """
    with psycopg.connect(server_url.with_database("postgres").plain, autocommit=True) as server:
        if not server.execute("SELECT FROM pg_roles WHERE rolname = 'owner_of_tests'").fetchall():
            server.execute("CREATE ROLE owner_of_tests LOGIN")
        server.execute("ALTER ROLE owner_of_tests CREATEDB PASSWORD 'opensesame'")
    return replace(server_url, user="owner_of_tests", password="opensesame")
