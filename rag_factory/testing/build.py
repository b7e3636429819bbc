"""Build a template: migrate a new database, and close it."""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.database.driver import translate
from rag_factory.database.plain import PlainSettings
from rag_factory.errors import RagFactoryError
from rag_factory.migrate.creation import create_database_from
from rag_factory.migrate.project import Project
from rag_factory.migrate.target import Target
from rag_factory.testing import catalog
from rag_factory.testing.template import Template, comment, drop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from rag_factory.testing.place import Place

# Whoever had come in before the database was closed. The view of activity takes the server longer to plan.
_END_SESSIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_get_activity(NULL)
    WHERE datid = (SELECT oid FROM pg_database WHERE datname = {}) AND backend_type = 'client backend'
"""


def build(
    server: psycopg.Connection[Any], place: Place, project: Project, name: str, strategy: str
) -> Template:
    """Migrate an empty database and close it. The mark is written last: without it, it is rebuilt."""
    url = place.url_of(name)
    drop(server, name)
    fingerprint, settings, deferrable = "", list[list[str]](), False

    def prove(session: psycopg.Connection[Any]) -> None:
        nonlocal fingerprint, settings, deferrable
        fingerprint = catalog.install(session)
        settings, deferrable = catalog.read_properties(session)

    try:
        migrate_new_database(server, url, project.root, strategy, at_end=prove)
        close = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false")
        server.execute(close.format(sql.Identifier(name)))
        mark = comment(
            name, kind="template", fingerprint=fingerprint, deferrable=deferrable, settings=settings
        )
        server.execute(sql.SQL("; ").join([sql.SQL(_END_SESSIONS).format(sql.Literal(name)), mark]))
    except BaseException as error:
        drop(server, name)
        if isinstance(error, psycopg.Error):
            raise translate(error, url) from error
        if isinstance(error, RagFactoryError):
            error.what = f"The test template can't be built: {error.what}"
        raise
    return Template(name, strategy, fingerprint, deferrable, settings, built=True)


def migrate_new_database(
    server: psycopg.Connection[Any],
    url: DatabaseUrl,
    root: Path,
    strategy: str,
    revision: str = "head",
    *,
    at_end: Callable[[psycopg.Connection[Any]], None] = lambda _: None,
) -> None:
    """Create a database, in the way that this server copies fastest, and migrate it as `db.migrate` does.

    server: a session on the maintenance database. at_end: called with one on the new database.
    """
    project = Project(root)
    # The defaults: neither the application's settings nor a test's have a say here.
    target = Target(url, PlainSettings(root))
    with _as_application(url), _logging_kept():
        # While the server copies files, Alembic is imported and the revisions are read.
        with ThreadPoolExecutor(1) as pool:
            creating = pool.submit(create_database_from, server, target, project, strategy)
            try:
                from rag_factory.migrate.environment import load_scripts
                from rag_factory.migrate.history import History
                from rag_factory.migrate.runner import Runner

                history = History.read(project)
                scripts = load_scripts(project.alembic_config(url))
            finally:
                creating.result()
        runner = Runner(target, project, history, keep_ledger=False, scripts=scripts, at_end=at_end)
        runner.upgrade(history.resolve(revision))


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Take back what an env.py does by `fileConfig`: it would silence the loggers of all later tests."""
    root, manager = logging.getLogger(), logging.Logger.manager
    level, handlers = root.level, root.handlers[:]
    disabled = {name for name, logger in manager.loggerDict.items() if getattr(logger, "disabled", False)}
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        for name, logger in manager.loggerDict.items():
            if isinstance(logger, logging.Logger):
                logger.disabled = name in disabled


@contextmanager
def _as_application(url: DatabaseUrl) -> Iterator[None]:
    """Be a process whose database is this one: an env.py that reads the environment goes to no other.

    What Alembic adds to the import path goes again, or a run that builds would import what others can't.
    """
    path, before = list(sys.path), os.environ.get("DATABASE_URL")
    os.environ["DATABASE_URL"] = url.plain
    try:
        yield
    finally:
        sys.path[:] = path
        if before is None:
            del os.environ["DATABASE_URL"]
        else:
            os.environ["DATABASE_URL"] = before
