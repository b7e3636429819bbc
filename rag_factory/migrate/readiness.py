"""Is this environment ready? Every problem at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.connection import connect_maintenance
from rag_factory.errors import ProblemsError, RagFactoryError, SettingsError
from rag_factory.migrate.history import History
from rag_factory.migrate.project import Project
from rag_factory.migrate.state import read_state
from rag_factory.migrate.target import Target, embedded_server, embedded_url, reach

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Check:
    """One thing looked at. detail: what was found, when it is good."""

    name: str
    detail: str = ""
    problems: tuple[RagFactoryError, ...] = field(default=())


def check_environment(root: Path) -> list[Check]:
    """Look at settings, history, server, database and test database; all of them, whatever fails."""
    project = Project(root)
    checks = [_check("history", lambda: _history(project))]
    try:
        config = DatabaseConfig.load(root)
    except RagFactoryError as error:
        # Without settings it isn't known which server to ask.
        return [Check("settings", problems=_all(error)), *checks]
    checks.insert(0, Check("settings", f"APP_ENV is {config.app_env}"))
    try:
        target = reach(config)
    except RagFactoryError as error:
        checks.append(Check("server", problems=_all(error)))
    else:
        checks.append(_check("server", lambda: _server(target)))
        if not checks[-1].problems:
            checks.append(_check("database", lambda: _database(target, project)))
    checks.append(_check("test database", lambda: _test_database(config)))
    return checks


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, look())
    except RagFactoryError as error:
        return Check(name, problems=_all(error))


def _all(error: RagFactoryError) -> tuple[RagFactoryError, ...]:
    return error.problems if isinstance(error, ProblemsError) else (error,)


def _history(project: Project) -> str:
    known = History.read(project)
    return f"{len(known.revisions)} revisions, head {known.head or 'none'}"


def _server(target: Target) -> str:
    timeout = target.config.db_connect_timeout_seconds
    with connect_maintenance(target.url, connect_timeout_seconds=timeout) as connection:
        version = connection.info.parameter_status("server_version") or ""
    where = "embedded" if target.server else target.url.server
    return f"PostgreSQL {version.split()[0]}, {where}"


def _database(target: Target, project: Project) -> str:
    state = read_state(target, project)
    state.check(project, target.place)
    return f"{target.url.database}, pgvector {state.pgvector or 'not created yet'}"


def _test_database(config: DatabaseConfig) -> str:
    url = config.test_url
    if url is None:
        return "on an embedded test server"
    real = config.url
    if real is None and not config.protected and (address := embedded_server(config).status().address):
        real = embedded_url(address, config.db_name)
    if url.database and real is not None and url.same_database(real):
        raise SettingsError(
            f"TEST_DATABASE_URL ({config.origin('TEST_DATABASE_URL')}) leads to the application's database "
            f"{real}: the tests would destroy it.",
            fix="Give it a database of its own, such as app_test.",
        )
    timeout = config.db_connect_timeout_seconds
    with connect_maintenance(url, connect_timeout_seconds=timeout):
        return f"{url}"
