"""The address of a database: parse every spelling of it, write it for each reader, mask it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from rag_factory.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SCHEMES = ("postgres", "postgresql")
MASK = "***"
_SECRET_OPTIONS = ("password", "sslpassword")
_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


@dataclass(frozen=True)
class DatabaseUrl:
    """One PostgreSQL database and how to reach it.

    host: a name, an address, or the absolute folder of a Unix socket; empty for libpq's default.
    database: empty when the address names a server only.
    options: further libpq connection options, such as `sslmode`.
    The password is left out of `repr` and `str`; `sqlalchemy` and `libpq` carry it.
    """

    host: str = ""
    port: int | None = None
    database: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str, *, name: str = "The database URL") -> DatabaseUrl:
        """Read a URL in any spelling: postgres://, postgresql://, or with a `+driver`.

        name: the setting it came from, for the message.
        Raises SettingsError: not such a URL. The message holds no password, however broken the URL.
        """
        text = text.strip()

        def malformed(what: str) -> SettingsError:
            return SettingsError(
                f"{name} is malformed: {what}: {mask(text)}.",
                fix=f"Write it as {_FORM}, with special characters in the password percent-encoded.",
            )

        scheme, separator, _ = text.partition("://")
        if not separator or scheme.lower().partition("+")[0] not in SCHEMES:
            raise malformed("it does not start with postgresql://")
        if any(character.isspace() or ord(character) < ord(" ") for character in text):
            raise malformed("it holds white space")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            # The text of the port may be a piece of a password with a "/" or "#" in it: never shown.
            raise malformed("its port is not a number from 1 to 65535") from None
        if "," in parts.netloc.rpartition("@")[2]:
            raise malformed("it names several hosts")
        if parts.fragment or "#" in text:
            raise malformed("it holds a bare #")
        if "@" in parts.path or port == 0:
            raise malformed("its host and port can't be told apart from its password")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if "ssl" in options:  # asyncpg's word for it
            options.setdefault("sslmode", options.pop("ssl"))
        database = unquote(parts.path.removeprefix("/")) or options.pop("dbname", "")
        if "\0" in unquote(text):
            raise malformed("it holds a NUL byte")
        return cls(
            host=unquote(parts.hostname or "") or options.pop("host", ""),
            port=port or _port(options.pop("port", None), malformed),
            database=database,
            user=unquote(parts.username or "") or options.pop("user", ""),
            password=unquote(parts.password or "") or options.pop("password", ""),
            options=options,
        )

    @property
    def sqlalchemy(self) -> str:
        """The URL as SQLAlchemy reads it, for psycopg 3, password included."""
        return self._write("postgresql+psycopg", self.password, self.options)

    @property
    def plain(self) -> str:
        """The URL as psql and other libpq clients read it, password included."""
        return self._write("postgresql", self.password, self.options)

    @property
    def masked(self) -> str:
        """The URL for human eyes: no secret in it."""
        shown = {key: MASK if key in _SECRET_OPTIONS else value for key, value in self.options.items()}
        return self._write("postgresql", MASK if self.password else "", shown)

    @property
    def libpq(self) -> dict[str, str]:
        """The keyword arguments of `psycopg.connect`, password included."""
        named = {
            "host": self.host,
            "port": str(self.port or ""),
            "dbname": self.database,
            "user": self.user,
            "password": self.password,
        }
        return {key: value for key, value in named.items() if value} | dict(self.options)

    @property
    def server(self) -> str:
        """Where the server is, for a message: `localhost:5432`, or the socket's folder."""
        if self.host.startswith("/"):
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host or "localhost"
        return f"{host}:{self.port or 5432}"

    def with_database(self, database: str) -> DatabaseUrl:
        """Name another database on the same server."""
        return replace(self, database=database)

    def without_password(self) -> DatabaseUrl:
        """Leave the secrets out, for a command line that others can see."""
        options = {key: value for key, value in self.options.items() if key not in _SECRET_OPTIONS}
        return replace(self, password="", options=options)

    def same_database(self, other: DatabaseUrl) -> bool:
        """Whether both name one database, as far as their text tells."""
        return (_host(self.host), self.port or 5432, self.database) == (
            _host(other.host),
            other.port or 5432,
            other.database,
        )

    def __str__(self) -> str:
        return self.masked

    def _write(self, scheme: str, password: str, options: Mapping[str, str]) -> str:
        options = dict(options)
        host = self.host
        if host.startswith("/"):
            # A folder in a URL's authority is not read alike everywhere; as an option it is.
            options = {"host": host, **options}
            host = ""
        elif ":" in host:
            host = f"[{host}]"
        else:
            host = quote(host, safe="")
        if self.port is not None and not host:
            options["port"] = str(self.port)
        login = quote(self.user, safe="")
        if password:
            login += ":" + (password if password == MASK else quote(password, safe=""))
        authority = (f"{login}@" if login else "") + host
        if self.port is not None and host:
            authority += f":{self.port}"
        query = f"?{urlencode(options, quote_via=quote, safe='/*')}" if options else ""
        return f"{scheme}://{authority}/{quote(self.database, safe='')}{query}"


def mask(text: str) -> str:
    """Replace whatever could be the password in a setting's text that may be a URL.

    Works on malformed URLs: from the first `:` after the scheme to the last `@`, all is masked; without
    an `@`, all from that `:` on; without a scheme, everything.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return MASK
    login, at, place = rest.rpartition("@")
    user, colon, _ = (login if at else rest).partition(":")
    if colon:
        user += f":{MASK}"
    if at:
        return f"{scheme}://{user}@{_mask_options(place)}"
    return f"{scheme}://{user if colon else _mask_options(rest)}"


def _mask_options(text: str) -> str:
    """Mask passwords among a URL's query options."""
    return re.sub(r"((?:ssl)?password=)[^&\s]*", rf"\1{MASK}", text)


def _host(host: str) -> str:
    """Map the names of this machine to one."""
    return "localhost" if host.lower() in {"", "localhost", "127.0.0.1", "::1"} else host.lower()


def _port(text: str | None, malformed: Callable[[str], SettingsError]) -> int | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit() and 0 < int(text) <= 65535:  # noqa: PLR2004
        return int(text)
    raise malformed("its port is not a number from 1 to 65535")
