"""What a database has besides its content, which no dump holds: owner, locale, settings, grants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

# These are kept as they would be written, quotes and commas included.
_LISTS = frozenset(
    {"search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"}
    | {"shared_preload_libraries", "unix_socket_directories"}
)
# As JSON, since each major version has columns of its own.
_PROPERTIES = """
    SELECT to_jsonb(d), pg_get_userbyid(datdba), pg_encoding_to_char(encoding), spcname,
           shobj_description(d.oid, 'pg_database'), datacl IS NOT NULL
    FROM pg_database AS d JOIN pg_tablespace AS t ON t.oid = dattablespace WHERE datname = %s
"""
_SETTINGS = """
    SELECT r.rolname, unnest(setconfig)
    FROM pg_db_role_setting JOIN pg_database AS d ON d.oid = setdatabase
    LEFT JOIN pg_roles AS r ON r.oid = setrole
    WHERE datname = %s ORDER BY 1 NULLS FIRST, 2
"""
_GRANTS = """
    SELECT g.rolname, privilege_type, is_grantable
    FROM pg_database, aclexplode(datacl) AS grants LEFT JOIN pg_roles AS g ON g.oid = grants.grantee
    WHERE datname = %s
"""
_DEFAULT_TABLESPACE = "pg_default"
_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}


@dataclass(frozen=True)
class Properties:
    """Of one database. settings: role or None, name and value; grants: role or None, privilege, grantable."""

    owner: str
    encoding: str
    tablespace: str
    locale: dict[str, str]
    connection_limit: int
    comment: str | None
    settings: tuple[tuple[str | None, str, str], ...]
    grants: tuple[tuple[str | None, str, bool], ...] | None


def read_properties(server: psycopg.Connection[Any], name: str) -> Properties | None:
    """Read a database's properties in a session on its server; None: it doesn't exist."""
    row = server.execute(_PROPERTIES, (name,)).fetchone()
    if row is None:
        return None
    columns, owner, encoding, tablespace, comment, has_grants = row
    settings = server.execute(_SETTINGS, (name,)).fetchall()
    return Properties(
        owner=owner,
        encoding=encoding,
        tablespace=tablespace,
        locale=_locale(columns),
        connection_limit=columns["datconnlimit"],
        comment=comment,
        settings=tuple((role, *_split(text)) for role, text in settings),
        grants=tuple(server.execute(_GRANTS, (name,)).fetchall()) if has_grants else None,
    )


def create_empty(server: psycopg.Connection[Any], name: str, like: Properties | None) -> None:
    """Create a database without anything in it, not even what the server's template has.

    like: another one, whose owner, encoding, locale and tablespace it gets; None: the server's own, in UTF-8.
    """
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
    if like is None:
        statement += sql.SQL(" ENCODING 'UTF8'")
        row = server.execute("SELECT current_setting('server_encoding') = 'UTF8'").fetchone()
        if row and not row[0]:
            # The server's own locale is for another encoding.
            statement += sql.SQL(" LC_COLLATE 'C' LC_CTYPE 'C'")
    else:
        statement += sql.SQL(" OWNER {} ENCODING {}").format(
            sql.Identifier(like.owner), sql.Literal(like.encoding)
        )
        if like.tablespace != _DEFAULT_TABLESPACE:
            # To name even the default one takes a right of its own.
            statement += sql.SQL(" TABLESPACE {}").format(sql.Identifier(like.tablespace))
        for option, value in like.locale.items():
            statement += sql.SQL(f" {option} ") + sql.Literal(value)
    server.execute(statement)


def give_properties(
    server: psycopg.Connection[Any], name: str, like: Properties | None, settings: Sequence[str]
) -> list[str]:
    """Give a database the other properties of `like`, and the settings of a manifest.

    Those that `like` sets itself win. The engine's own settings, such as a mark of protection, stay with the
    database that has them and never come from a manifest: a copy of it is another database.
    Returns why settings could not be given: one that a superuser gave may need a superuser again.
    """
    chosen: dict[tuple[str | None, str], str] = {}
    for setting in settings:
        setting_name, value = _split(setting)
        if not setting_name.startswith("rag_factory."):
            chosen[None, setting_name] = value
    for role, setting_name, value in like.settings if like else ():
        chosen[role, setting_name] = value
    database = sql.Identifier(name)
    refused = []
    for (role, setting_name), value in chosen.items():
        try:
            server.execute(setting_statement(database, role, setting_name, value))
        except psycopg.Error as error:
            # Its value may be anybody's secret.
            whose = "" if role is None else f" of role {role}"
            refused.append(f"{setting_name}{whose}: {error.diag.message_primary}")
    if like is None:
        return refused
    limit = sql.Literal(like.connection_limit)
    server.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(database, limit))
    if like.comment is not None:
        comment = sql.Literal(like.comment)
        server.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(database, comment))
    if like.grants is not None:
        _grant(server, database, like)
    return refused


def setting_statement(database: sql.Identifier, role: str | None, name: str, value: str) -> sql.Composed:
    """The statement that gives a database a setting of its own, or one for a role in it."""
    whom = sql.SQL("DATABASE {}").format(database)
    if role is not None:
        whom = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), database)
    parts = sql.SQL(".").join(map(sql.Identifier, name.split(".")))
    written = sql.SQL(value) if name.lower() in _LISTS and value else sql.Literal(value)
    return sql.SQL("ALTER {} SET {} TO {}").format(whom, parts, written)


def _grant(server: psycopg.Connection[Any], database: sql.Identifier, like: Properties) -> None:
    """Grant what is granted there, and nothing else."""
    owner = sql.Identifier(like.owner)
    server.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(database, owner))
    for role, privilege, grantable in like.grants or ():
        server.execute(
            sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                sql.SQL(privilege),
                database,
                sql.SQL("PUBLIC") if role is None else sql.Identifier(role),
                sql.SQL(" WITH GRANT OPTION" if grantable else ""),
            )
        )


def _locale(columns: dict[str, Any]) -> dict[str, str]:
    """The options of CREATE DATABASE for a locale; PostgreSQL 15, 16 and 17 each have other columns."""
    provider = _PROVIDERS[columns.get("datlocprovider", "c")]
    name = columns.get("datlocale") or columns.get("daticulocale")
    options = {
        "LOCALE_PROVIDER": provider,
        "LC_COLLATE": columns["datcollate"],
        "LC_CTYPE": columns["datctype"],
    }
    if name and provider != "libc":
        options["BUILTIN_LOCALE" if provider == "builtin" else "ICU_LOCALE"] = name
    if columns.get("daticurules"):
        options["ICU_RULES"] = columns["daticurules"]
    return options


def _split(setting: str) -> tuple[str, str]:
    name, _, value = setting.partition("=")
    return name, value
