"""The body of a project's migrations/env.py."""

from __future__ import annotations

import sys
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from logging.config import fileConfig
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import context
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.connection import APPLICATION_NAME, NO_ENVIRONMENT, translate
from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import HistoryError, NotReadyError, RagFactoryError
from rag_factory.migrate.project import Project
from rag_factory.migrate.target import reach

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alembic.config import Config
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

    They are set on every other session too that is opened meanwhile: an env.py may open its own.
    Raises NotReadyError: the database can't be reached.
    """
    given = {"application_name": APPLICATION_NAME, "connect_timeout": config.db_connect_timeout_seconds}
    engine = create_engine(
        "postgresql+psycopg://", poolclass=NullPool, connect_args=NO_ENVIRONMENT | given | url.libpq
    )
    with _timeouts(config):
        try:
            connection = engine.connect()
        except DBAPIError as error:
            raise translate(error.orig or error, url) from error
        with connection:
            yield connection


def load_scripts(config: Config) -> ScriptDirectory:
    """Load the project's revisions, running their files.

    Raises HistoryError: one can't be loaded. Raises NotReadyError: their folder isn't there.
    """
    try:
        scripts = ScriptDirectory.from_config(config)
    except CommandError as error:
        raise NotReadyError(f"The Alembic environment can't be used: {reason(error)}.") from error
    try:
        with redirect_stdout(sys.stderr):
            scripts.get_heads()
    except (Exception, SystemExit) as error:
        raise HistoryError(f"The revisions can't be loaded: {reason(error)}.", fix="Correct them.") from error
    return scripts


@contextmanager
def explained(what: str, url: DatabaseUrl, *let_through: type[Exception]) -> Iterator[None]:
    """Turn whatever Alembic, an env.py or a revision raises in the body into an error of ours.

    what: what was tried, as the beginning of "… failed: reason". What they print goes to stderr: our stdout
    is for data.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (DBAPIError, psycopg.Error) as error:
        problem = translate(getattr(error, "orig", None) or error, url)
        raise type(problem)(f"{what} failed: {problem.what}", fix=problem.fix) from error
    except (Exception, SystemExit) as error:
        # An env.py and a revision are anybody's code.
        if isinstance(error, (RagFactoryError, *let_through)):
            raise
        failure = f"{what} failed: {reason(error)}."
        if isinstance(error, CommandError) and "Did not locate plugins" in failure:
            raise NotReadyError(
                failure, fix="Install the extra: pip install 'rag-factory[autogenerate]'"
            ) from error
        raise RagFactoryError(failure) from error


def reason(error: BaseException) -> str:
    """Why somebody else's code failed: Alembic's own words, or the error with its place in their file."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, CommandError):
        return text
    frames = [frame for frame in extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


@contextmanager
def _timeouts(config: DatabaseConfig) -> Iterator[None]:
    """Set the settings' timeouts on each connection that SQLAlchemy opens in the body."""
    lock, statement = (
        f"{round(seconds * 1000)}ms"
        for seconds in (config.db_lock_timeout_seconds, config.db_statement_timeout_seconds)
    )

    def set_timeouts(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(
            f"SELECT set_config('lock_timeout', '{lock}', false),"
            f" set_config('statement_timeout', '{statement}', false)"
        )
        cursor.close()
        connection.commit()

    event.listen(Engine, "connect", set_timeouts)
    try:
        yield
    finally:
        event.remove(Engine, "connect", set_timeouts)


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
