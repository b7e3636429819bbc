"""The database to work on: the one the settings name, or the embedded server's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from rag_factory.database.config import DatabaseConfig
    from rag_factory.database.plain import Settings
    from rag_factory.server import EmbeddedServer, ServerAddress

NAME_LIMIT_BYTES = 63


@dataclass(frozen=True)
class Target:
    """A database, its settings, and the embedded server if it is the one."""

    url: DatabaseUrl
    config: Settings
    server: EmbeddedServer | None = None

    @property
    def place(self) -> str:
        """The database and where it is, for a message."""
        return f"{self.url.database} on {'the embedded server' if self.server else self.url.server}"


def reach(config: DatabaseConfig) -> Target:
    """Find the database of the settings; start the embedded server, or attach to it, when it is meant.

    Raises NotReadyError: the embedded server can't be used here, or doesn't start; or the name is too long.
    """
    if config.url is not None:
        _check_name(config.url.database)
        return Target(config.url, config)
    server = embedded_server(config)
    _check_name(config.db_name)
    return Target(embedded_url(server.ensure_running(), config.db_name), config, server)


def embedded_server(config: DatabaseConfig) -> EmbeddedServer:
    """The embedded server of the project, running or not.

    Raises SettingsError: the environment is a protected one, where no embedded server is ever used.
    """
    if config.app_env == "test":
        raise SettingsError(
            "APP_ENV is test and DATABASE_URL is not set: the embedded server is for development.",
            fix="Take a database fixture, which sets it, or unset APP_ENV.",
        )
    if config.protected:
        raise SettingsError(
            f"APP_ENV is {config.app_env} and DATABASE_URL is not set: "
            "the embedded server is for development only.",
            fix="Set DATABASE_URL.",
        )
    from rag_factory.server import EmbeddedServer

    return EmbeddedServer(
        anchored(config, config.embedded_data_folder),
        bin_folder=anchored(config, config.postgres_bin_folder) if config.postgres_bin_folder else None,
    )


def embedded_url(address: ServerAddress, database: str) -> DatabaseUrl:
    """The address of one database on an embedded server."""
    return DatabaseUrl(host=address.host, port=address.port, user=address.user, database=database)


def _check_name(name: str) -> None:
    """Refuse a name that PostgreSQL would cut without a word: the rest may be another database's."""
    if len(name.encode()) > NAME_LIMIT_BYTES:
        raise SettingsError(
            f"The database name {name} is {len(name.encode())} bytes long; PostgreSQL would cut it at "
            f"{NAME_LIMIT_BYTES}.",
            fix="Choose a shorter one.",
        )


def anchored(config: Settings, path: Path) -> Path:
    """A folder among the settings; relative ones start at the project's root."""
    return config.root / path.expanduser()
