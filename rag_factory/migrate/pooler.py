"""Find a pooler, such as PgBouncer, that hands one client's statements to several sessions of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.database.driver import connect
from rag_factory.errors import NotReadyError

if TYPE_CHECKING:
    from rag_factory.database.url import DatabaseUrl

_ROUNDS = 3
_PID = "SELECT pg_backend_pid()"


def refuse_pooler(
    session: psycopg.Connection[Any], server_pid: int, url: DatabaseUrl, connect_timeout_seconds: int
) -> None:
    """Refuse to work through a pooler in transaction or statement mode.

    server_pid: the session's pg_backend_pid(). Locks and settings of a session don't last there: two
    migrators would work at once, and a revision would run without its timeouts; two runs of tests would
    take the same databases.
    A pooler gives its clients process numbers of its own, since it routes their cancel requests: without a
    difference there is none, and nothing more is asked. In session mode all works as without it.
    Raises NotReadyError: it is one.
    """
    if session.info.backend_pid == server_pid:
        return
    if _is_shared(session, server_pid, url, connect_timeout_seconds):
        raise NotReadyError(
            f"A pooler in transaction or statement mode (PgBouncer?) answers at {url.server}: locks "
            "and timeouts of a session don't hold there. Nothing was changed.",
            fix="Set DATABASE_URL to the server's own port for migrations and tests, "
            "or use a pool in session mode.",
        )


def _is_shared(
    session: psycopg.Connection[Any], server_pid: int, url: DatabaseUrl, connect_timeout_seconds: int
) -> bool:
    """Whether a session of the server serves us only until the end of a transaction."""
    for _ in range(_ROUNDS):
        try:
            # Most poolers hand out the session that was given back last: the other client gets ours. One that
            # goes round gives us another one by itself, asked twice in a row.
            with (
                connect(url, connect_timeout_seconds=connect_timeout_seconds) as other,
                other.transaction(),
            ):
                if _pid(other) == server_pid:
                    return True
        except psycopg.errors.ProtocolViolation:
            return True  # PgBouncer's answer to BEGIN in statement mode
        if {_pid(session), _pid(session)} != {server_pid}:
            return True
    return False


def _pid(session: psycopg.Connection[Any]) -> int:
    row = session.execute(_PID, prepare=False).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM always gives a row
    return int(row[0])
