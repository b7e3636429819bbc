"""Put a database in the place of another by renaming both, in one transaction."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.database.driver import connect_maintenance, translate
from rag_factory.errors import NotReadyError

if TYPE_CHECKING:
    from rag_factory.migrate.target import Target

_POLL_SECONDS = 0.05
_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
# The server's own processes have no role, and a role that may not watch them isn't told their kind.
_OTHERS = (
    "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = %s AND usename IS NOT NULL ORDER BY 1"
)


def swap(target: Target, new: str, keep_as: str | None) -> None:
    """Give the database `new` the target's name, and the one that had it the name keep_as; None: nobody had.

    Sessions on both are ended. Either both are renamed or none, whenever this process is killed.
    Raises NotReadyError: somebody stays on the old one; nothing was changed.
    """
    name = target.url.database
    timeout = target.config.db_connect_timeout_seconds
    ended: psycopg.Error | None = None
    with (
        connect_maintenance(target.url, connect_timeout_seconds=timeout) as renamer,
        connect_maintenance(target.url, connect_timeout_seconds=timeout) as ender,
        ThreadPoolExecutor(1) as pool,
    ):
        # RENAME locks the database first, so nobody new comes in, and then waits five seconds for those who
        # are on it. They are sent away meanwhile: before, a pool would be back at once.
        renaming = pool.submit(_rename, renamer, name, new, keep_as)
        while not wait((renaming,), timeout=_POLL_SECONDS).done:
            for busy in (name, new):
                try:
                    ender.execute(_END, (busy,))
                except psycopg.Error as error:
                    ended = error
        try:
            renaming.result()
        except psycopg.errors.ObjectInUse as error:
            who = ", ".join(other for (other,) in ender.execute(_OTHERS, (name,)))
            why = f" ({ended.diag.message_primary})" if ended else ""
            raise NotReadyError(
                f"{target.place} is in use by {who or 'a prepared transaction or the server itself'}, which "
                f"{target.url.user or 'this role'} can't end{why}. Nothing was changed.",
                fix="Stop what uses it, or let the role end its sessions: GRANT pg_signal_backend TO …",
            ) from error
        except psycopg.Error as error:
            raise translate(error, target.url) from error


def _rename(session: psycopg.Connection[Any], name: str, new: str, keep_as: str | None) -> None:
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    with session.transaction():
        if keep_as is not None:
            session.execute(rename.format(sql.Identifier(name), sql.Identifier(keep_as)))
        session.execute(rename.format(sql.Identifier(new), sql.Identifier(name)))
