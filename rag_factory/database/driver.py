"""Connect to PostgreSQL by the driver alone, and say in our words why it didn't work."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.errors import (
    DatabaseMissingError,
    ExtensionError,
    LockedError,
    NotReadyError,
    RagFactoryError,
    ServerError,
    SettingsError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rag_factory.database.url import DatabaseUrl

APPLICATION_NAME = "rag-factory"
# Databases that are there on every server, in the order in which to try them.
MAINTENANCE_DATABASES = ("postgres", "template1")
# An address that leaves one of these out means libpq's default, not what PGHOST or PGHOSTADDR happen to say:
# those would lead a task to another server than the one it names.
NO_ENVIRONMENT = {"host": "", "hostaddr": "", "port": ""}


def connect(
    url: DatabaseUrl,
    *,
    connect_timeout_seconds: int = 10,
    read_only: bool = False,
    factory: Callable[..., psycopg.Connection[tuple[Any, ...]]] = psycopg.connect,
) -> psycopg.Connection[tuple[Any, ...]]:
    """Open one connection in autocommit mode. factory: opens another class of them.

    Raises NotReadyError: the server, the login or the database is not there; says which.
    """
    given = NO_ENVIRONMENT | {
        "connect_timeout": str(connect_timeout_seconds),
        "application_name": APPLICATION_NAME,
    }
    try:
        connection = factory(**(given | url.libpq), autocommit=True)
        if read_only:
            # psycopg's own attribute is for the transactions that it begins; in autocommit it begins none.
            connection.execute("SET default_transaction_read_only = on")
    except psycopg.Error as error:
        # The server may say it in any language; this one case decides what a task does.
        if url.database not in MAINTENANCE_DATABASES and _is_missing(url, error, given):
            raise _database_missing(url) from error
        raise translate(error, url) from error
    return connection


def connect_maintenance(
    url: DatabaseUrl, *, connect_timeout_seconds: int = 10
) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a connection to the server's maintenance database, for work on databases as a whole."""
    for name in MAINTENANCE_DATABASES:
        try:
            return connect(url.with_database(name), connect_timeout_seconds=connect_timeout_seconds)
        except DatabaseMissingError:
            continue
    raise DatabaseMissingError(
        f"The server {url.server} has no database {' or '.join(MAINTENANCE_DATABASES)} to work from.",
        fix="Create one: CREATE DATABASE postgres",
    )


def translate(error: BaseException, url: DatabaseUrl) -> RagFactoryError:
    """Turn a psycopg error into ours. Keeps the server's own words where they say more."""
    state = getattr(error, "sqlstate", None)
    text = " ".join(str(error).split()).removeprefix("connection failed: ")
    place = f"{url.database} on {url.server}"
    if state is None:
        # libpq says of a failed connection no more than this; other errors are the driver's, of a wrong call.
        if isinstance(error, psycopg.OperationalError) or "connection option" in text:
            return _translate_connect(text, url)
        return RagFactoryError(f"{place}: {text}.")
    primary = getattr(getattr(error, "diag", None), "message_primary", None) or text
    who = url.user or "this role"
    match state:
        case "42501":
            return NotReadyError(
                f"{who} has not the right for it in {place}: {primary}.",
                fix="Grant it, or use a role that has it in DATABASE_URL.",
            )
        case "25006":
            return NotReadyError(
                f"{place} is read-only: {primary}.", fix="Set DATABASE_URL to the primary, not a replica."
            )
        case "3F000":
            return NotReadyError(
                f"{place} lacks a schema: {primary}.", fix="Create it, or correct its name where it is given."
            )
        case "3D000":
            return _database_missing(url)
        case "58P01" | "0A000" if "extension" in primary:
            return ExtensionError(
                f"{primary}, on {url.server}.", fix="Install it on the server, then run the task again."
            )
        case "55P03" | "40P01":
            return LockedError(
                f"A lock in {place} was not obtained: {primary}.",
                fix="See who holds it in pg_stat_activity, then run the task again.",
            )
        case "57014":
            return RagFactoryError(
                f"A statement in {place} was ended: {primary}.",
                fix="If it was the timeout: raise DB_STATEMENT_TIMEOUT_SECONDS (0: none).",
            )
        case "53100":
            return ServerError(f"The disk of {url.server} is full: {primary}.", fix="Free space on it.")
        case _ if state.startswith(("08", "57P")):
            return ServerError(
                f"The connection to {place} was lost: {primary}.", fix="Run the task again when it is back."
            )
    return RagFactoryError(f"{place}: {primary} (SQLSTATE {state}).")


@contextmanager
def translated(url: DatabaseUrl) -> Iterator[None]:
    """Turn the psycopg errors of the body into ours."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, url) from error


def _translate_connect(text: str, url: DatabaseUrl) -> RagFactoryError:
    """Read why libpq could not connect; at this stage it gives no SQLSTATE, only text."""
    who = url.user or "this operating-system user"
    login = f"The server {url.server} refused the login of {who}"

    def says(*needles: str) -> bool:
        return any(needle in text for needle in needles)

    if says("password authentication failed"):
        return SettingsError(f"{login}: wrong user or password.", fix="Correct it in DATABASE_URL.")
    if says("no password supplied"):
        return SettingsError(
            f"{login}: it asks for a password and none is set.", fix="Add it to DATABASE_URL or DB_PASSWORD."
        )
    if f'database "{url.database}" does not exist' in text:
        return _database_missing(url)
    if says(f'role "{url.user}" does not exist'):
        return SettingsError(f"{login}: no such role.", fix="Correct the user in DATABASE_URL.")
    if says("no pg_hba.conf entry", "Peer authentication failed", "permission denied for database"):
        return SettingsError(f"{login}: {_last(text)}.", fix="Allow it on the server, or use another role.")
    if says("invalid connection option", "invalid URI", "invalid sslmode", "invalid integer value"):
        return SettingsError(
            f"The connection options of {url} are wrong: {_last(text)}.", fix="Correct them."
        )
    if says("could not translate host name", "failed to resolve host", "Name or service not known"):
        return ServerError(f"The host {url.host} is unknown.", fix="Correct it in DATABASE_URL.")
    if says("too many clients", "remaining connection slots", "too many connections"):
        return ServerError(
            f"The server {url.server} has no connection left.", fix="Close some, or raise its limit."
        )
    if says("Connection refused", "No such file or directory", "timeout expired", "timed out", "unreachable"):
        return ServerError(
            f"No server answers at {url.server}.",
            fix="Start it, or correct DATABASE_URL; unset, the embedded server is used.",
        )
    return ServerError(f"Can't connect to {url}: {_last(text)}.", fix="Check the server and DATABASE_URL.")


def _is_missing(url: DatabaseUrl, error: psycopg.Error, given: dict[str, str]) -> bool:
    """Whether the server refused only because it has no such database: ask it from another one."""
    if "FATAL" not in str(error):
        return False
    arguments: dict[str, Any] = given | url.with_database(MAINTENANCE_DATABASES[0]).libpq
    try:
        with psycopg.connect(**arguments, autocommit=True) as server:
            found = server.execute("SELECT FROM pg_database WHERE datname = %s", (url.database,)).fetchone()
    except psycopg.Error:
        return False
    return found is None


def _database_missing(url: DatabaseUrl) -> DatabaseMissingError:
    return DatabaseMissingError(
        f'Database "{url.database}" does not exist on {url.server}.', fix="Create it: invoke db.create"
    )


def _last(text: str) -> str:
    """What libpq said, without its list of attempts."""
    return text.rpartition("FATAL: ")[2].strip().rstrip(".")
