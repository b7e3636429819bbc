"""Is this environment ready? Every problem at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.driver import connect, connect_maintenance
from rag_factory.database.sources import PARTS
from rag_factory.errors import (
    ExtensionError,
    ProblemsError,
    RagFactoryError,
    ServerError,
    SettingsError,
)
from rag_factory.migrate.history import History
from rag_factory.migrate.project import Project
from rag_factory.migrate.state import OLDEST_POSTGRESQL, check_pgvector, read_state
from rag_factory.migrate.target import Target, embedded_server, embedded_url, reach

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    import psycopg

    from rag_factory.database.plain import Settings
    from rag_factory.database.url import DatabaseUrl

# What decides which server is asked.
_ADDRESS = {"APP_ENV", "DATABASE_URL", "EMBEDDED_DATA_FOLDER", "POSTGRES_BIN_FOLDER", *PARTS}


@dataclass(frozen=True)
class Check:
    """One thing looked at. detail: what was found, when it is good."""

    name: str
    detail: str = ""
    problems: tuple[RagFactoryError, ...] = field(default=())


def check_environment(root: Path) -> list[Check]:
    """Look at settings, history, server, database and test database; all of them, whatever fails.

    A check that could only fail because another one did, or that nothing is set for, is left out.
    """
    project = Project(root)
    config, problems, doubtful = DatabaseConfig.examine(root)
    given = "" if problems else f"APP_ENV is {config.app_env}"
    checks = [Check("settings", given, tuple(problems)), _check("history", lambda: _history(project))]
    target = None
    if not _ADDRESS & doubtful:
        try:
            target = reach(config)
        except RagFactoryError as error:
            checks.append(Check("server", problems=_all(error)))
    if target is not None:
        checks += _check_target(target, project)
    if config.read_url is not None and config.read_url != config.url:
        checks.append(_check("read replica", lambda: _read_replica(config)))
    if "TEST_DATABASE_URL" not in doubtful:
        checks.append(_check("test database", lambda: _test_database(config)))
    return checks


def _check_target(target: Target, project: Project) -> list[Check]:
    server = _check("server", lambda: _server(target))
    if server.problems:
        return [server]
    installed = None
    try:
        installed = read_state(target, project).pgvector
        database = Check("database", target.url.database)
    except RagFactoryError as error:
        database = Check("database", problems=_all(error))
    extensions = _check("extensions", lambda: _extensions(target, project, installed))
    return [server, database, extensions]


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, look())
    except RagFactoryError as error:
        return Check(name, problems=_all(error))


def _all(error: RagFactoryError) -> tuple[RagFactoryError, ...]:
    return error.problems if isinstance(error, ProblemsError) else (error,)


def _history(project: Project) -> str:
    known = History.read(project)
    count = len(known.revisions)
    return f"{count} revision{'' if count == 1 else 's'}, head {known.head or 'none'}"


def _server(target: Target) -> str:
    with _maintenance(target.config, target.url) as connection:
        version = (connection.info.parameter_status("server_version") or "").split()[0]
        major = connection.info.server_version // 10000
    where = "embedded" if target.server else target.url.server
    if major < OLDEST_POSTGRESQL:
        raise ServerError(
            f"PostgreSQL {version} of {where} is older than {OLDEST_POSTGRESQL}.", fix="Upgrade the server."
        )
    return f"PostgreSQL {version}, {where}"


def _extensions(target: Target, project: Project, installed: str | None) -> str:
    """Check what the project needs: in the database, or to be had when it is created."""
    with _maintenance(target.config, target.url) as connection:
        query = "SELECT name, default_version FROM pg_available_extensions"
        available = dict(connection.execute(query).fetchall())
    problems: list[RagFactoryError] = []
    for name in project.extensions:
        try:
            if name == "vector":
                check_pgvector(installed, available.get(name), project.minimum_pgvector, target.place)
            elif name not in available:
                raise ExtensionError(
                    f"The extension {name} is missing on the server of {target.place}.",
                    fix="Install it there.",
                )
        except ExtensionError as problem:
            problems.append(problem)
    if problems:
        raise ProblemsError(problems)
    return (
        f"pgvector {installed}" if installed else f"to be created: {', '.join(project.extensions) or 'none'}"
    )


def _read_replica(config: DatabaseConfig) -> str:
    assert config.read_url is not None  # noqa: S101 - the caller looked
    with connect(config.read_url, connect_timeout_seconds=config.db_connect_timeout_seconds):
        return f"{config.read_url}"


def _test_database(config: DatabaseConfig) -> str:
    url = config.test_url
    if url is None:
        return "on an embedded test server"
    real = config.url
    if real is None and not config.protected and (address := embedded_server(config).status().address):
        real = embedded_url(address, config.db_name)
    if real is not None and url.same_database(real):
        raise _leads_to_real(config, real)
    started = _server_start(config, url)
    if real is not None and url.database == real.database:
        try:
            same = _server_start(config, real) == started
        except RagFactoryError:
            same = False  # the check of the server tells it
        if same:
            raise _leads_to_real(config, real)
    return f"{url}"


def _server_start(config: DatabaseConfig, url: DatabaseUrl) -> datetime | None:
    """When the server started, to the microsecond: it tells servers apart that have many names."""
    with _maintenance(config, url) as connection:
        row = connection.execute("SELECT pg_postmaster_start_time()").fetchone()
        return row[0] if row else None


def _leads_to_real(config: DatabaseConfig, real: DatabaseUrl) -> SettingsError:
    return SettingsError(
        f"TEST_DATABASE_URL ({config.origin('TEST_DATABASE_URL')}) leads to the application's database "
        f"{real}: the tests would destroy it.",
        fix="Give it a database of its own, such as app_test.",
    )


def _maintenance(config: Settings, url: DatabaseUrl) -> psycopg.Connection[tuple[Any, ...]]:
    return connect_maintenance(url, connect_timeout_seconds=config.db_connect_timeout_seconds)
