"""A server with what the defaults don't have: prepared transactions, a small cache, no autovacuum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.url import DatabaseUrl
from rag_factory.migrate.target import Target
from rag_factory.server import EmbeddedServer
from tests.conftest import FAST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SETTINGS = FAST | {"max_prepared_transactions": "2", "shared_buffers": "1MB", "autovacuum": "off"}


@pytest.fixture(scope="module")
def patient(public_folder: Path) -> Iterator[Target]:
    """A database to make trouble in; the tests of a module share it, each with tables of its own."""
    server = EmbeddedServer(public_folder / "patient", settings=SETTINGS)
    address = server.ensure_running()
    try:
        url = DatabaseUrl(host=address.host, port=address.port, user=address.user, database="patient")
        with psycopg.connect(url.with_database("postgres").plain, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS patient")
            connection.execute("CREATE DATABASE patient")
        target = Target(url, DatabaseConfig.load(public_folder), server)
        with psycopg.connect(url.plain, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        yield target
    finally:
        server.stop()


@pytest.fixture
def session(patient: Target) -> Iterator[Callable[[], psycopg.Connection[tuple[Any, ...]]]]:
    """Open sessions in autocommit mode; those still open are closed after the test."""
    opened: list[psycopg.Connection[tuple[Any, ...]]] = []

    def connect() -> psycopg.Connection[tuple[Any, ...]]:
        opened.append(psycopg.connect(patient.url.plain, autocommit=True))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def run(session: Callable[[], psycopg.Connection[tuple[Any, ...]]]) -> Callable[..., list[tuple[Any, ...]]]:
    """Run statements, each in a transaction of its own; give the rows of the last one."""
    connection = session()

    def run_all(*statements: str) -> list[tuple[Any, ...]]:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    return run_all
