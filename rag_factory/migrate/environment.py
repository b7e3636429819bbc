"""The body of a project's migrations/env.py."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from logging.config import fileConfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.connection import APPLICATION_NAME, translate
from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import RagFactoryError
from rag_factory.migrate.project import Project
from rag_factory.migrate.target import reach

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection, MetaData

# Both wildcards are needed: a list replaces Alembic's own, and without ours functions, triggers and views
# are compared by nobody, in silence.
PLUGINS = ("alembic.autogenerate.*", "alembic.ext.checkconstraint_byname", "alembic_pg_autogen.*")
# Imported for their effect: each registers its comparators with Alembic.
_PLUGIN_PACKAGES = ("alembic_pg_autogen", "alembic_postgresql_enum")


def run_environment(
    metadata: MetaData,
    *,
    functions: Sequence[str] = (),
    triggers: Sequence[str] = (),
    views: Sequence[str] = (),
    **options: Any,
) -> None:
    """Run what Alembic was asked for, online or offline.

    The database is the caller's `config.attributes["connection"]`, else its `sqlalchemy.url`, else the one
    of the settings. Each revision runs in a transaction of its own, with the settings' timeouts.
    functions, triggers, views: the CREATE statements of all that the models need besides tables; autogenerate
    holds the database against them. options: passed on to `context.configure`, over the defaults here.
    """
    config = context.config
    by_hand = config.cmd_opts is not None
    if by_hand and config.config_file_name is not None:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    root = Path(config.config_file_name or config.toml_file_name or "").absolute().parent
    *schema, table = Project(root).version_table
    configuration: dict[str, Any] = {
        "target_metadata": metadata,
        "transaction_per_migration": True,
        "compare_type": True,
        "compare_server_default": True,
        "version_table": table,
        "version_table_schema": schema[0] if schema else None,
        "autogenerate_plugins": _plugins(),
        "pg_functions": functions,
        "pg_triggers": triggers,
        "pg_views": views,
    } | options
    if context.is_offline_mode():
        context.configure(
            dialect_name="postgresql",
            literal_binds=True,
            dialect_opts={"paramstyle": "named"},
            **configuration,
        )
        with context.begin_transaction():
            context.run_migrations()
        return
    try:
        with _connection(root) as connection:
            context.configure(connection=connection, **configuration)
            with context.begin_transaction():
                context.run_migrations()
    except RagFactoryError as error:
        if by_hand:
            # The alembic command shows its own kind of error in one line, and any other as a traceback.
            raise CommandError(str(error)) from error
        raise


@contextmanager
def open_connection(url: DatabaseUrl, config: DatabaseConfig) -> Iterator[Connection]:
    """Open one connection for migrations: no pool, and the settings' timeouts set on the session.

    Raises NotReadyError: the database can't be reached.
    """
    arguments = {
        "application_name": APPLICATION_NAME,
        "connect_timeout": config.db_connect_timeout_seconds,
    }
    engine = create_engine(
        url.sqlalchemy,
        poolclass=NullPool,
        connect_args={name: value for name, value in arguments.items() if name not in url.options},
    )
    try:
        connection = engine.connect()
    except DBAPIError as error:
        raise translate(error.orig or error, url) from error
    with connection:
        for name, seconds in (
            ("lock_timeout", config.db_lock_timeout_seconds),
            ("statement_timeout", config.db_statement_timeout_seconds),
        ):
            connection.exec_driver_sql(f"SET {name} = '{round(seconds * 1000)}ms'")
        connection.commit()
        yield connection


@contextmanager
def _connection(root: Path) -> Iterator[Connection]:
    """Take the caller's connection, or open one to the caller's URL or to the settings' database."""
    given = context.config.attributes.get("connection")
    if given is not None:
        yield given
        return
    settings = DatabaseConfig.load(root)
    text = context.config.get_main_option("sqlalchemy.url")
    url = DatabaseUrl.parse(text, name="sqlalchemy.url") if text else reach(settings).url
    with open_connection(url, settings) as connection:
        yield connection


def _plugins() -> list[str]:
    """Load the autogenerate plug-ins that are installed; a production image has none."""
    for package in _PLUGIN_PACKAGES:
        if find_spec(package) is not None:
            __import__(package)
    return list(PLUGINS)
