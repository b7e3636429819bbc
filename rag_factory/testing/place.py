"""Where the test databases are: the server of TEST_DATABASE_URL, or an embedded one that may forget."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rag_factory.database.plain import Settings
    from rag_factory.server import EmbeddedServer

EMBEDDED_BASE = "app_test"
# A test server holds nothing that its template can't make again: it need not survive a power cut.
FORGETFUL = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}
# Of libpq's variables, those that say where a server is and how to get in, besides those that a URL has words
# for; with libpq's own words for them.
_LIBPQ = {
    "PGHOSTADDR": "hostaddr",
    "PGPASSFILE": "passfile",
    "PGSERVICE": "service",
    "PGREQUIREAUTH": "require_auth",
    "PGCHANNELBINDING": "channel_binding",
    "PGGSSENCMODE": "gssencmode",
    "PGKRBSRVNAME": "krbsrvname",
    "PGSSLMODE": "sslmode",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCRL": "sslcrl",
    "PGSSLCRLDIR": "sslcrldir",
    "PGSSLNEGOTIATION": "sslnegotiation",
}
# Longer bases would leave no room for what names are made of: 63 bytes is PostgreSQL's limit.
BASE_LIMIT = 24


@dataclass(frozen=True)
class Place:
    """A server for tests. url: its maintenance database. base: what the names of its databases begin with."""

    url: DatabaseUrl
    base: str
    embedded: bool

    def url_of(self, database: str) -> DatabaseUrl:
        """One database of this server."""
        return self.url.with_database(database)

    def as_data(self) -> dict[str, Any]:
        """What another process needs to find the same place; holds the password."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Place:
        """The reverse of `as_data`."""
        return cls(DatabaseUrl(**data["url"]), data["base"], data["embedded"])


def check_place(config: Settings) -> None:
    """Refuse to run tests where they would do harm.

    Raises SettingsError: in a protected environment, on the application's own database, or on one whose name
    doesn't say that it is for tests.
    """
    if config.protected:
        raise SettingsError(
            f"APP_ENV is {config.app_env} ({config.origin('APP_ENV')}): tests don't run there.",
            fix="Unset APP_ENV to run them.",
        )
    url = config.test_url
    if url is None or not url.database:
        return
    origin = f"TEST_DATABASE_URL ({config.origin('TEST_DATABASE_URL')})"
    for name, other in (("application's database", config.url), ("read replica", config.read_url)):
        if other is not None and url.same_database(other):
            raise SettingsError(
                f"{origin} leads to the {name} {other}: tests would destroy it.",
                fix="Give it a database of its own, such as app_test.",
            )
    if "test" not in url.database.lower() and not config.test_database_any_name:
        raise SettingsError(
            f"{origin} names the database {url.database}, without the word test in it.",
            fix="Rename it, or set TEST_DATABASE_ANY_NAME=true if it is one for tests.",
        )


def find_place(config: Settings, environment: Mapping[str, str] = os.environ) -> Place:
    """Find the place for tests; start the embedded test server when it is meant.

    environment: where libpq's own variables may complete the address.
    Raises SettingsError: tests are refused there; see `check_place`. Raises ServerError: the embedded server
    doesn't start.
    """
    check_place(config)
    url = config.test_url
    if url is None:
        address = embedded_test_server(config).ensure_running()
        url = DatabaseUrl(host=address.host, port=address.port, user=address.user, database="postgres")
        return Place(url, EMBEDDED_BASE, embedded=True)
    base = _short(url.database or EMBEDDED_BASE)
    return Place(_complete(url, environment).with_database("postgres"), base, embedded=False)


def embedded_test_server(config: Settings) -> EmbeddedServer:
    """The embedded test server of the project, running or not; another one than for development."""
    from rag_factory.server import EmbeddedServer

    return EmbeddedServer(
        config.root / config.embedded_data_folder.expanduser(),
        bin_folder=config.root / config.postgres_bin_folder.expanduser()
        if config.postgres_bin_folder
        else None,
        settings=FORGETFUL,
        name="test-postgresql",
    )


def checkout_id(root: Path, place: Place) -> str:
    """Eight characters that tell this checkout from others on the same server, and its role from others.

    Nobody may drop, or clone, what belongs to another role.
    """
    return hashlib.sha256(f"{root.resolve()} {place.url.user}".encode()).hexdigest()[:8]


def _complete(url: DatabaseUrl, environment: Mapping[str, str]) -> DatabaseUrl:
    """Write into the URL what libpq would take from its own variables: tests don't see those."""
    port = environment.get("PGPORT", "")
    more = {option: environment[name] for name, option in _LIBPQ.items() if environment.get(name)}
    return replace(
        url,
        host=url.host or environment.get("PGHOST", ""),
        port=url.port or (int(port) if port.isdigit() else None),
        user=url.user or environment.get("PGUSER", ""),
        password=url.password or environment.get("PGPASSWORD", ""),
        options=more | dict(url.options),
    )


def _short(base: str) -> str:
    """A base that is plain and short, and still tells one database from another."""
    plain = re.sub(r"[^a-z0-9_]", "_", base.lower())
    if plain == base and len(base) <= BASE_LIMIT:
        return base
    digest = hashlib.sha256(base.encode()).hexdigest()[:6]
    return f"{plain[: BASE_LIMIT - 7]}_{digest}"
