"""The address of a database: parse every spelling of it, write it for each reader, mask it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from rag_factory.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMES = ("postgres", "postgresql")
MASK = "***"
_SECRET_OPTIONS = ("password", "sslpassword", "oauth_client_secret")
_SSL_MODES = {"true": "require", "false": "disable"}
_PLAIN_HOST = re.compile(r"[A-Za-z0-9._-]*|[0-9A-Fa-f:.]+")
_THIS_MACHINE = ("", "localhost", "127.0.0.1", "::1")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NO_PORT = re.compile(r"^(\[[^]/?]*\]|[^:/?]*):(?!\d{0,5}(?:[/?]|$)).*", re.DOTALL)
_WRONG_PORT = "its port is not a number from 1 to 65535"
_SEVERAL_HOSTS = "it names several hosts"
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

        An option that names what the URL names as well, such as `?host=`, wins over it, as with libpq.
        name: the setting it came from, for the message.
        Raises SettingsError: not such a URL. The message holds no password, however broken the URL.
        """
        text = text.strip()
        fault = _find_fault(text)
        if fault is not None:
            raise SettingsError(
                f"{name} is malformed: {fault}: {mask(text)}.",
                fix=f"Write it as {_FORM}, with special characters in the password percent-encoded.",
            )
        parts = urlsplit(text)
        options = _options(parts.query)
        if "ssl" in options:  # asyncpg's word for it
            ssl = options.pop("ssl")
            options.setdefault("sslmode", _SSL_MODES.get(ssl.lower(), ssl))
        port = options.pop("port", "") or parts.port
        return cls(
            host=options.pop("host", "") or unquote(parts.hostname or ""),
            port=int(port) if port else None,
            database=options.pop("dbname", "") or unquote(parts.path.removeprefix("/")),
            user=options.pop("user", "") or unquote(parts.username or ""),
            password=options.pop("password", "") or unquote(parts.password or ""),
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
        return self._place() == other._place()

    def __str__(self) -> str:
        return self.masked

    def _place(self) -> tuple[str, int, str]:
        host = (self.options.get("hostaddr") or self.host).lower()
        return "localhost" if host in _THIS_MACHINE else host, self.port or 5432, self.database

    def _write(self, scheme: str, password: str, options: Mapping[str, str]) -> str:
        options = dict(options)
        host = self.host
        if not _PLAIN_HOST.fullmatch(host):
            # A folder or a zone (%eth0) before the path is not read alike everywhere; as an option it is.
            options = {"host": host, **options}
            host = ""
        elif ":" in host:
            host = f"[{host}]"
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


def scrub(text: str) -> str:
    """Mask the passwords of whatever URLs stand in somebody else's text, such as a foreign exception's."""
    return re.sub(r"""(\w://[^\s:/@'"]*:)\S*@""", rf"\1{MASK}@", text)


def mask(text: str) -> str:
    """Replace whatever could be the password in a setting's text that may be a URL.

    Works on malformed URLs: from the first `:` after the scheme to the last `@`, all is masked; without
    an `@`, all from that `:` on; a port that is no number; all options; without a scheme, everything.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return MASK
    login, at, place = rest.rpartition("@")
    user, colon, _ = (login if at else rest).partition(":")
    # A port that is none may be a password in the wrong place.
    place = _NO_PORT.sub(rf"\1:{MASK}", place) if at else ""
    if colon:
        user += f":{MASK}"
    address, question, _ = (user + at + place if at or colon else rest).partition("?")
    shown = f"{scheme}://{address}" + f"?{MASK}" * bool(question)
    return "".join(character if character.isprintable() else "?" for character in shown)


def _find_fault(text: str) -> str | None:
    """Say what makes the text no URL of a PostgreSQL database; None when it is one."""
    scheme, separator, _ = text.partition("://")
    if not separator or scheme.lower().partition("+")[0] not in SCHEMES:
        return "it does not start with postgresql://"
    if any(character.isspace() or ord(character) < ord(" ") for character in text):
        return "it holds white space"
    blurred = "its host and port can't be told apart from its password"
    # What Python says of a wrong URL may hold a piece of a password, so it is left alone.
    try:
        parts = urlsplit(text)
    except ValueError:
        return blurred
    try:
        port = parts.port
    except ValueError:
        return _WRONG_PORT
    if port == 0:
        return _WRONG_PORT
    if "@" in parts.path or ("@" in parts.query and "@" not in parts.netloc):
        return blurred
    if "#" in text:
        return "it holds a bare #"
    host = parts.netloc.rpartition("@")[2]
    if "${" in host:
        return "its host holds a ${…}, which is replaced in a file only, and not in single quotes"
    if "," in host:
        return _SEVERAL_HOSTS
    try:
        decoded = unquote(text, errors="strict")
        option_fault = _find_option_fault(parts.query)
    except UnicodeDecodeError:
        return "its percent-encoding is not that of UTF-8"
    return "it holds a NUL byte" if "\0" in decoded else option_fault


def _find_option_fault(query: str) -> str | None:
    if ";" in query:
        return "its options are parted by ; instead of &"
    options = _options(query)
    for option in options:
        if not _is_option(option):
            # What follows a bare & in a password looks like an option too.
            told = "" if "password" in query.lower() or "@" in query else f" {option!r}"
            return f"it has an option{told} that PostgreSQL does not know"
    if "port" in options and not (_PORT.fullmatch(options["port"]) and int(options["port"]) <= 65535):  # noqa: PLR2004
        return _WRONG_PORT
    return _SEVERAL_HOSTS if "," in options.get("host", "") else None


def _options(query: str) -> dict[str, str]:
    """The options of a URL. Unlike in a web form, a + is a plus: libpq reads it so."""
    return dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, errors="strict"))


def _is_option(name: str) -> bool:
    """Whether libpq knows a connection option of this name."""
    # Imported here: most URLs have no options, and reading them needs no driver.
    from psycopg import Error
    from psycopg.pq import Conninfo

    if name == "ssl" or not re.fullmatch(r"[a-z_]+", name):
        return name == "ssl"
    try:
        Conninfo.parse(f"{name}=''".encode())
    except Error:
        return False
    return True
