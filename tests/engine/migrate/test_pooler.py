"""A pooler that shares sessions is refused, by what it does; one in session mode serves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import NotReadyError
from tests.engine.migrate.pooling_proxy import pooling_proxy

if TYPE_CHECKING:
    from tests.engine.migrate.conftest import Small


@pytest.fixture
def socket_path(small: Small) -> str:
    """The server's Unix socket, where nobody is asked for a password."""
    ((folders, port),) = small.query(
        "SELECT current_setting('unix_socket_directories'), current_setting('port')"
    )
    folder = str(folders).strip('"')
    return f"{folder}/.s.PGSQL.{port}"


def _behind(small: Small, port: int) -> Small:
    url = DatabaseUrl(host="127.0.0.1", port=port, user="app", database=small.target.url.database)
    return replace(small, target=replace(small.target, url=url))


@pytest.mark.parametrize("take", [-1, 0], ids=["last given back", "free for longest"])
def test_transaction_mode_is_refused(small: Small, socket_path: str, take: int) -> None:
    with (
        pooling_proxy(socket_path, "app", small.target.url.database, take=take) as proxy,
        pytest.raises(
            NotReadyError, match=r"A pooler in transaction .*Nothing was changed\. Set DATABASE_URL"
        ),
    ):
        _behind(small, proxy.port).runner().upgrade("001")
    assert small.query("SELECT to_regclass('a') IS NULL") == [(True,)]


def test_session_mode_serves(small: Small, socket_path: str) -> None:
    with pooling_proxy(socket_path, "app", small.target.url.database, session_mode=True) as proxy:
        assert _behind(small, proxy.port).runner().upgrade("001") == ("001",)
