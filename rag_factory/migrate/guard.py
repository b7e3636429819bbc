"""The guard: a destructive task is confirmed, and where data matters by the database's name."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.database.driver import connect, translate
from rag_factory.errors import DatabaseMissingError, NotReadyError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.migrate.target import Target

SETTING = "rag_factory.protected"
# Part of the database's comment, where the role may not put a setting of ours on it.
COMMENT = "[rag_factory.protected]"
# Read from the catalog: a session's own value could hide it. Neither is in a clone or in a restored dump.
_MARKED = """
    SELECT EXISTS (SELECT FROM pg_db_role_setting, unnest(setconfig) AS entry
                   WHERE setdatabase = pg_database.oid AND setrole = 0
                     AND split_part(entry, '=', 1) = %(setting)s
                     AND lower(split_part(entry, '=', 2)) IN ('on', 'true', 'yes', '1'))
           OR coalesce(position(%(comment)s IN shobj_description(oid, 'pg_database')) > 0, false)
    FROM pg_database WHERE datname = current_database()
"""


def confirm(
    target: Target, effect: str, *, yes: bool, database: str | None, ask: Callable[[str], str] | None
) -> None:
    """Let a destructive task through, or refuse it.

    effect: what it destroys, as a sentence without a full stop.
    database: the name typed out on the command line. ask: puts a question to the user and gives the answer;
    None where nobody can be asked.
    Raises RefusedError: not confirmed, or confirmed for another database.
    """
    name = target.url.database
    if database is not None and database != name:
        raise RefusedError(
            f"--database is {database}, but the settings lead to {target.place}. Nothing was changed.",
            fix="Correct DATABASE_URL or --database.",
        )
    # Typed out in full, it is confirmed wherever it is.
    protection = None if yes and database else find_protection(target)
    if protection:
        raise RefusedError(
            f"{effect}, and {protection}. Nothing was changed.",
            fix=f"If that is what you want, add: --yes --database {shlex.quote(name)}",
        )
    if yes:
        return
    if ask is None:
        raise RefusedError(f"{effect}. Nothing was changed.", fix="If that is what you want, add: --yes")
    if ask(f"{effect}. Go on? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise RefusedError(f"Not confirmed. Nothing was changed in {target.place}.")


def find_protection(target: Target) -> str | None:
    """Why the target is protected: by APP_ENV, or by a mark of its own. None: it isn't."""
    if target.config.protected:
        return f"APP_ENV is {target.config.app_env}"
    return f"{target.url.database} is marked as protected" if is_marked(target) else None


def is_marked(target: Target) -> bool:
    """Whether the database itself is marked as protected, so that a wrong APP_ENV can't hurt it."""
    try:
        with connect(target.url, connect_timeout_seconds=target.config.db_connect_timeout_seconds) as session:
            row = session.execute(_MARKED, {"setting": SETTING, "comment": COMMENT}).fetchone()
    except DatabaseMissingError:
        return False
    except psycopg.Error as error:
        raise translate(error, target.url) from error
    return bool(row and row[0])


def mark(target: Target, *, protected: bool) -> None:
    """Mark the database as protected, or take the mark away.

    The mark is a setting of the database; where the role may not set one of ours, which only a superuser may,
    as on managed servers, it is a part of the database's comment.
    Raises NotReadyError: the role is not the database's owner.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout) as session:
        try:
            try:
                _set(session, target.url.database, protected=protected)
            except psycopg.errors.InsufficientPrivilege:
                _comment(session, target.url.database, protected=protected)
            else:
                if not protected:
                    _comment(session, target.url.database, protected=False)
        except psycopg.Error as error:
            raise translate(error, target.url) from error
    if is_marked(target) != protected:
        raise NotReadyError(
            f"{target.url.user or 'This role'} may not change whether {target.place} is protected.",
            fix="Let its owner, or the superuser who marked it, run this task.",
        )


def _set(session: psycopg.Connection[Any], name: str, *, protected: bool) -> None:
    change = sql.SQL("SET rag_factory.protected = 'on'" if protected else "RESET rag_factory.protected")
    session.execute(sql.SQL("ALTER DATABASE {} ").format(sql.Identifier(name)) + change)


def _comment(session: psycopg.Connection[Any], name: str, *, protected: bool) -> None:
    row = session.execute(
        "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database "
        "WHERE datname = current_database()"
    ).fetchone()
    before = row[0] if row else ""
    text = before.replace(COMMENT, "").strip()
    if protected:
        text = f"{text} {COMMENT}".strip()
    if text != before:
        change = sql.SQL("COMMENT ON DATABASE {} IS {}")
        session.execute(change.format(sql.Identifier(name), sql.Literal(text or None)))
