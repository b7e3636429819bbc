"""Connections: what a session keeps, what a service asks of its settings, and how errors are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.driver import connect
from rag_factory.database.models import Document
from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import DatabaseMissingError, NotReadyError, ServerError, SettingsError
from rag_factory.services.database.postgres import PostgresqlDatabaseService

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

COUNT = text("SELECT count(*) FROM documents")


def test_rollback_takes_back_to_the_last_commit(db_connection: Session) -> None:
    db_connection.add(Document(filename="kept.md"))
    db_connection.commit()
    db_connection.add(Document(filename="dropped.md"))
    db_connection.rollback()
    assert db_connection.scalar(COUNT) == 1


def test_session_goes_on_after_an_error_and_a_rollback(db_connection: Session) -> None:
    with pytest.raises(DBAPIError, match="nowhere"):
        db_connection.execute(text("SELECT * FROM nowhere"))
    db_connection.rollback()
    assert db_connection.scalar(COUNT) == 0


def test_nested_transactions_are_taken_back_alone(db_connection: Session) -> None:
    db_connection.add(Document(filename="outer.md"))
    inner = db_connection.begin_nested()
    db_connection.add(Document(filename="inner.md"))
    db_connection.flush()
    inner.rollback()
    assert db_connection.scalar(COUNT) == 1


def test_missing_database_is_told_by_its_name(test_db_url: str) -> None:
    url = DatabaseUrl.parse(test_db_url).with_database("never_made")
    with pytest.raises(DatabaseMissingError, match='"never_made" does not exist'):
        connect(url)


@pytest.mark.db
def test_silent_port_is_told_as_no_server() -> None:
    with pytest.raises(ServerError, match="No server answers at localhost:1"):
        connect(DatabaseUrl(host="localhost", port=1, database="app"))


def test_unknown_role_is_refused_by_name(test_db_url: str) -> None:
    url = DatabaseUrl.parse(test_db_url)
    stranger = DatabaseUrl(url.host, url.port, url.database, user="stranger", password="wrong")
    with pytest.raises(NotReadyError, match="stranger") as caught:
        connect(stranger)
    assert "wrong" not in str(caught.value).replace("wrong user or password", "")


def test_service_without_an_address_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(SettingsError, match="DATABASE_URL is not set"):
        PostgresqlDatabaseService.from_config(DatabaseConfig.load(tmp_path))
