"""Create and drop databases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, sql

from rag_factory.database.driver import MAINTENANCE_DATABASES, connect, connect_maintenance, translated
from rag_factory.errors import ExtensionError, RefusedError
from rag_factory.migrate.state import check_pgvector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

# Two sessions that create the same thing at once: the slower one gets a duplicate, of one kind or the other.
_ALREADY_THERE = (errors.DuplicateDatabase, errors.DuplicateObject, errors.UniqueViolation)


def create_database(target: Target, project: Project) -> list[str]:
    """Create the database and its extensions where they are missing. Returns what was created, in words.

    Changes nothing when all is there. Leaves no database behind when its extensions can't be created.
    Raises NotReadyError: the server, the right to create, or an extension is missing.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect_maintenance(target.url, connect_timeout_seconds=timeout) as server:
        return create_database_from(server, target, project)


def create_database_from(
    server: psycopg.Connection[Any], target: Target, project: Project, strategy: str = "WAL_LOG"
) -> list[str]:
    """Do what `create_database` does, in a session on the maintenance database.

    strategy: how the server copies its template, WAL_LOG or FILE_COPY.
    """
    name = target.url.database
    created = []
    with translated(target.url):
        exists = _one(server, "SELECT true FROM pg_database WHERE datname = %s", name)
        if not exists:
            _check_available(server, target, project)
            exists = not _create(server, name, strategy)
            if not exists:
                created.append(f"database {name}")
        try:
            created += _create_extensions(target, project) if project.extensions else []
        except BaseException:
            if not exists:
                server.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
            raise
    return created


def drop_database(target: Target) -> bool:
    """Drop the database and end the sessions on it. Returns whether it was there.

    Raises RefusedError: it is one that the server itself needs.
    """
    name = target.url.database
    if name in MAINTENANCE_DATABASES:
        raise RefusedError(f"{name} is a database that the server itself needs: it is not dropped.")
    timeout = target.config.db_connect_timeout_seconds
    with connect_maintenance(target.url, connect_timeout_seconds=timeout) as server, translated(target.url):
        if not _one(server, "SELECT true FROM pg_database WHERE datname = %s", name):
            return False
        server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    return True


def _create(server: psycopg.Connection[Any], name: str, strategy: str) -> bool:
    """Create the database; False when somebody else just did."""
    statement = sql.SQL("CREATE DATABASE {} STRATEGY {}").format(sql.Identifier(name), sql.Literal(strategy))
    if _one(server, "SELECT current_setting('server_encoding')") != "UTF8":
        # A cluster made in another encoding: text from documents needs UTF-8, whatever the default is.
        statement += sql.SQL(" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        server.execute(statement)
    except _ALREADY_THERE:
        return False
    return True


def check_server(target: Target, project: Project) -> None:
    """Check that the server could hold a new database with the project's extensions. Changes nothing.

    Raises NotReadyError: it can't be reached, or lacks one.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect_maintenance(target.url, connect_timeout_seconds=timeout) as server, translated(target.url):
        _check_available(server, target, project)


def _check_available(server: psycopg.Connection[Any], target: Target, project: Project) -> None:
    """Check that the extensions could be created, before anything is."""
    query = "SELECT default_version FROM pg_available_extensions WHERE name = %s"
    for name in project.extensions:
        available = _one(server, query, name)
        if name == "vector":
            check_pgvector(None, available, project.minimum_pgvector, target.place)
        elif available is None:
            raise ExtensionError(
                f"The extension {name} is missing on the server of {target.place}.",
                fix="Install it there, or take it out of extensions in [tool.rag_factory] of pyproject.toml.",
            )


def _create_extensions(target: Target, project: Project) -> Sequence[str]:
    """Create the extensions that the database lacks."""
    created = []
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout) as database, translated(target.url):
        for name in project.extensions:
            query = "SELECT extversion FROM pg_extension WHERE extname = %s"
            installed = _one(database, query, name)
            if installed is None:
                _check_available(database, target, project)
                try:
                    database.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(name)))
                    created.append(f"extension {name} {_one(database, query, name)}")
                except _ALREADY_THERE:
                    installed = _one(database, query, name)
            if installed is not None and name == "vector":
                available = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
                check_pgvector(installed, _one(database, available), project.minimum_pgvector, target.place)
    return created


def _one(connection: psycopg.Connection[Any], query: str, *values: str) -> Any:
    """The first column of the first row; None when there is no row."""
    row = connection.execute(query.encode(), values or None).fetchone()
    return row[0] if row else None
