"""The databases, or schemas, of many tenants: whom there is, and how the last run on them went."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.database.driver import connect, translate
from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import ProblemsError, RagFactoryError, RefusedError, SettingsError, UsageError
from rag_factory.migrate.project import Project

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rag_factory.migrate.target import Target

_PATH = """
    SELECT current_schemas(false)::text[],
           ARRAY(SELECT name FROM unnest(current_schemas(false)::text[]) AS name
                 WHERE to_regclass(format('%%I.%%I', name, %s::text)) IS NOT NULL)
"""
_OTHERS_MAY_READ = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Tenant:
    """What is migrated by itself: a database, or one schema of it, which then has its own version table.

    name: for people and the state file; no password in it.
    """

    name: str
    url: DatabaseUrl = field(repr=False)
    schema: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a tenant's migration ended.

    before, after: its revisions; None where they were not read. error: None when all went well.
    exit_code: what a task that failed for this reason ends with; 0 when all went well.
    """

    tenant: str
    before: Sequence[str] | None = None
    after: Sequence[str] | None = None
    milliseconds: float = 0
    error: str | None = None
    exit_code: int = 0


def read_urls(path: Path) -> tuple[list[Tenant], bool]:
    """Read a file with the URL of a database a line; blank lines and those that begin with # don't count.

    Returns them, and whether the file holds passwords that other accounts may read.
    Raises UsageError: there is no such file, or a database stands in it twice. Raises ProblemsError: every
    line that is no URL of a database; passwords masked.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{path} can't be read: {reason}.", fix="Name a file with a URL a line.") from error
    found: dict[str, Tenant] = {}
    problems: list[RagFactoryError] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            url = DatabaseUrl.parse(line, name=f"{path.name}, line {number}")
        except SettingsError as problem:
            problems.append(problem)
            continue
        name = f"{url.database} on {url.server}"
        if not url.database:
            problems.append(SettingsError(f"{path.name}, line {number} names no database: {url}."))
        elif name in found:
            problems.append(SettingsError(f"{path.name}, line {number} names {name} again."))
        found[name] = Tenant(name, url)
    if problems:
        raise ProblemsError(problems)
    exposed = bool(mode & _OTHERS_MAY_READ) and any(tenant.url.password for tenant in found.values())
    return list(found.values()), exposed


def query_tenants(target: Target, statement: str, *, schemas: bool) -> list[Tenant]:
    """Ask the target's database for the names of databases on its server, or of its own schemas.

    statement: gives them in its only column. It runs in a read-only transaction.
    Raises UsageError: it gives something else, or is no SQL. Raises RefusedError: schemas are meant, and one
    that they all see has tables of the project's own.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as connection:
        try:
            with connection.transaction():
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else None
                shared, migrated = _read_path(connection, Project(target.config.root).version_table[-1])
        except (psycopg.ProgrammingError, psycopg.DataError, psycopg.InternalError) as error:
            raise UsageError(f"--tenant-query failed: {translate(error, target.url).what}") from error
        except psycopg.Error as error:
            raise translate(error, target.url) from error
    if rows is None or any(len(row) != 1 or not isinstance(row[0], str) or not row[0] for row in rows):
        raise UsageError(
            "--tenant-query must give one column with names, and a name in each row.",
            fix="Such as: --tenant-query 'SELECT database_name FROM customers'",
        )
    names = list(dict.fromkeys(name for (name,) in rows))
    if schemas:
        if occupied := [name for name in migrated if name not in names]:
            raise RefusedError(
                f"The schema {occupied[0]} of {target.place} is migrated too, and every tenant sees its "
                "tables: a revision that drops something without naming its schema could drop it there.",
                fix="Give the tenants a database without tables of its own in that schema.",
            )
        return [
            Tenant(f"{name} in {target.place}", _with_search_path(target.url, [name, *shared]), schema=name)
            for name in names
        ]
    server = "the embedded server" if target.server else target.url.server
    return [Tenant(f"{name} on {server}", target.url.with_database(name)) for name in names]


def _read_path(connection: psycopg.Connection[Any], version_table: str) -> tuple[list[str], list[str]]:
    """The schemas that every session sees, and those of them that hold a version table."""
    row = connection.execute(_PATH, (version_table,)).fetchone()
    return (row[0], row[1]) if row else ([], [])


def _with_search_path(url: DatabaseUrl, schemas: Sequence[str]) -> DatabaseUrl:
    """The URL with a search path of these schemas, for each session that is opened by it."""
    path = ",".join(sql.Identifier(name).as_string() for name in dict.fromkeys(schemas))
    # The server parts these options at white space that no backslash stands before.
    setting = "-csearch_path=" + re.sub(r"([\\\s])", r"\\\1", path)
    options = " ".join(filter(None, [url.options.get("options"), setting]))
    return DatabaseUrl(
        url.host, url.port, url.database, url.user, url.password, {**url.options, "options": options}
    )


class StateFile:
    """What became of each tenant, a line as soon as it is known: a run that is killed can be taken up too."""

    def __init__(self, folder: Path, source: str) -> None:
        """source: where the list of tenants comes from; each has a file of its own in `folder`."""
        self.path = folder / f"tenants-{hashlib.sha256(source.encode()).hexdigest()[:12]}.jsonl"

    def read(self, goal: str | None) -> set[str]:
        """The names of the tenants that have reached the goal.

        Raises UsageError: there was no run, or it had another goal.
        """
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise UsageError(
                "There is no run of these tenants to resume.", fix="Run it without --resume."
            ) from error
        # The last line of a run that was killed may be half a line.
        known = [entry for line in lines if (entry := _parse(line))]
        before = known[0].get("goal") if known else None
        if before != goal:
            raise UsageError(
                f"The last run went to {before or 'base'}, this one goes to {goal or 'base'}.",
                fix="Run it without --resume.",
            )
        last = {entry["tenant"]: entry for entry in known[1:]}
        return {name for name, entry in last.items() if entry["error"] is None}

    def begin(self, goal: str | None) -> None:
        """Begin anew, with this goal."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"goal": goal}) + "\n", encoding="utf-8")
        self.path.chmod(0o600)

    def add(self, outcome: Outcome) -> None:
        """Write down how a tenant's migration ended."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def _parse(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}
