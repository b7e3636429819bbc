"""The body of a project's migrations/env.py."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib.util import find_spec
from logging.config import fileConfig
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import context
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine, NullPool, Pool, create_engine, event
from sqlalchemy.exc import DBAPIError

from rag_factory.database.driver import APPLICATION_NAME, NO_ENVIRONMENT, translate
from rag_factory.database.url import DatabaseUrl, scrub
from rag_factory.errors import HistoryError, NotReadyError, RagFactoryError
from rag_factory.migrate.bookkeeping import OWN_SCHEMAS
from rag_factory.migrate.by_hand import is_migrating, locked_by_hand, recorder

# Importing it registers all that revisions have as op.…
from rag_factory.migrate.operations.enums import take_name
from rag_factory.migrate.project import Project
from rag_factory.migrate.rendering import import_type
from rag_factory.migrate.target import Target, reach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alembic.config import Config
    from sqlalchemy import Connection, MetaData

    from rag_factory.database.plain import Settings
    from rag_factory.migrate.ledger import Ledger

# Both wildcards are needed: a list replaces Alembic's own, and without ours functions, triggers and views
# are compared by nobody, in silence.
PLUGINS = ("alembic.autogenerate.*", "alembic.ext.checkconstraint_byname", "alembic_pg_autogen.*")
_IDENTITY = "SELECT current_database(), pg_postmaster_start_time()"
# Imported for their effect: each registers its comparators with Alembic.
_PLUGIN_PACKAGES = ("alembic_pg_autogen", "alembic_postgresql_enum")
_OPENED_HERE = "rag_factory.opened_here"
# A migrator that is killed leaves its statement running; the server looks this often whether it is gone.
# Servers on Windows can't.
_NOTICE_DEATH = """CASE WHEN version() !~* 'windows|visual c|msvc|mingw'
    THEN set_config('client_connection_check_interval', '2s', false) END"""


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
    of the settings. Each revision runs in a transaction of its own, with the settings' timeouts. Where a
    plain alembic command changes a database, the migrator lock is held, and the ledger kept.
    functions, triggers, views: the CREATE statements of all that the models need besides tables; autogenerate
    holds the database against them. options: passed on to `context.configure`, over the defaults here.
    """
    config = context.config
    by_hand = config.cmd_opts is not None
    if by_hand and config.config_file_name is not None:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    root = Path(config.config_file_name or config.toml_file_name or "").absolute().parent
    *schema, table = config.attributes.get("version_table") or Project(root).version_table
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
        "render_item": import_type,
    } | options
    configuration["include_name"] = _leave_ours_out(configuration.get("include_name"))
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
        with _connection(root, migrating=by_hand and is_migrating(config)) as (connection, ledger):
            if ledger is not None:
                configuration["on_version_apply"] = recorder(ledger, configuration.get("on_version_apply"))
            context.configure(connection=connection, **configuration)
            with context.begin_transaction():
                context.run_migrations()
    except RagFactoryError as error:
        if by_hand:
            # The alembic command shows its own kind of error in one line, and any other as a traceback.
            raise CommandError(str(error)) from error
        raise


@contextmanager
def open_connection(
    url: DatabaseUrl, config: Settings, *, work_key: int | None = None
) -> Iterator[Connection]:
    """Open one connection for migrations: no pool, and the settings' timeouts set on the session.

    work_key: an advisory lock that it shares, by which the migrator's sessions are known.
    They are set on every other session too that is opened meanwhile: an env.py may open its own.
    Raises NotReadyError: the database can't be reached.
    """
    given = {"application_name": APPLICATION_NAME, "connect_timeout": config.db_connect_timeout_seconds}
    engine = create_engine(
        "postgresql+psycopg://", poolclass=NullPool, connect_args=NO_ENVIRONMENT | given | url.libpq
    )
    with _timeouts(config, work_key):
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
def explained(
    what: str | Callable[[], str], url: DatabaseUrl, *let_through: type[Exception]
) -> Iterator[None]:
    """Turn whatever Alembic, an env.py or a revision raises in the body into an error of ours.

    what: what was tried, as the beginning of "… failed: reason", or who knows it then: which revision is at
    work, by which our own errors are told too. What they print goes to stderr: our stdout is for data.
    """

    def tried() -> str:
        return what if isinstance(what, str) else what()

    try:
        with redirect_stdout(sys.stderr):
            yield
    except (DBAPIError, psycopg.Error) as error:
        problem = translate(getattr(error, "orig", None) or error, url)
        said = f"{tried()} failed: {problem.what}{_statement(error)}"
        raise type(problem)(said, fix=problem.fix or _hint(error)) from error
    except (Exception, SystemExit) as error:
        # An env.py and a revision are anybody's code.
        if isinstance(error, RagFactoryError) and not isinstance(what, str):
            error.what = f"{what()} failed: {error.what}"
        if isinstance(error, (RagFactoryError, *let_through)):
            raise
        failure = f"{tried()} failed: {reason(error)}."
        if isinstance(error, CommandError) and "Did not locate plugins" in failure:
            raise NotReadyError(
                failure, fix="Install the extra: pip install 'rag-factory[autogenerate]'"
            ) from error
        raise RagFactoryError(failure) from error


def _statement(error: BaseException) -> str:
    """The beginning of the statement that failed; its parameters may hold anybody's data."""
    lines = (getattr(error, "statement", None) or "").strip().splitlines()
    if not lines:
        return ""
    return f" The statement: {lines[0][:200]}{' …' if len(lines) > 1 or len(lines[0]) > 200 else ''}."  # noqa: PLR2004


def _hint(error: BaseException) -> str | None:
    """What the server advises, or we do."""
    driver_error = getattr(error, "orig", None) or error
    if getattr(driver_error, "sqlstate", None) == "25001":
        return "Put it in `with op.get_context().autocommit_block():`, alone in its revision."
    hint: str | None = getattr(getattr(driver_error, "diag", None), "message_hint", None)
    return hint


def reason(error: BaseException) -> str:
    """Why somebody else's code failed: Alembic's own words, or the error with its place in their file."""
    text = scrub(" ".join(str(error).split()).rstrip("."))
    if isinstance(error, CommandError):
        return text
    frames = [frame for frame in extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def target_environment(
    config: Config, scripts: ScriptDirectory, target: Target, **options: Any
) -> EnvironmentContext:
    """Alembic's environment, which runs nothing on another database than the target.

    An env.py that takes its address from elsewhere would migrate, or compare, another one than was named and
    confirmed. Raises NotReadyError where Alembic would begin: it does; nothing was changed.
    """
    environment = EnvironmentContext(config, scripts, **options)
    run = environment.run_migrations

    def look_and_run(**given: Any) -> None:
        used, ours = environment.get_context().connection, config.attributes["connection"]
        if used is not None and used is not ours:
            found, wanted = _identity(used), _identity(ours)
            if found != wanted:
                raise NotReadyError(
                    f"env.py connects to the database {found[0]}, not to {target.place}. "
                    "Nothing was changed.",
                    fix="Let it prefer config.attributes['connection'], or sqlalchemy.url, to its own "
                    "settings.",
                )
        run(**given)

    # What env.py calls is found on the object; a class of ours Alembic would not hand to it.
    environment.run_migrations = look_and_run  # type: ignore[method-assign]
    return environment


def _identity(connection: Connection) -> tuple[Any, ...]:
    """What tells one database from another; leaves no transaction open that was not."""
    was_open = connection.in_transaction()
    row = connection.exec_driver_sql(_IDENTITY).one()
    if not was_open:
        connection.rollback()
    return tuple(row)


def require_target(config: Config, scripts: ScriptDirectory, connection: Connection, target: Target) -> None:
    """Run env.py without a revision, to see that it works on the target.

    Raises NotReadyError: it does not; nothing was changed.
    """
    try:
        with (
            explained("Running env.py", target.url),
            target_environment(config, scripts, target, fn=lambda *_: (), dont_mutate=True),
        ):
            scripts.run_env()
    finally:
        # A transaction that is left open would be taken for one around all revisions.
        connection.rollback()


@contextmanager
def _timeouts(config: Settings, work_key: int | None) -> Iterator[None]:
    """Set the settings' timeouts on each connection that SQLAlchemy opens in the body.

    The server's own limit on idle sessions is lifted: ours is idle while env.py works on one of its own.
    Each is closed when it is given back: in the pool of an env.py it would go on as a migrator's session, and
    the next task of this process would wait for it.
    """
    timeouts = {
        "lock_timeout": round(config.db_lock_timeout_seconds * 1000),
        "statement_timeout": round(config.db_statement_timeout_seconds * 1000),
        "idle_session_timeout": 0,
    }
    calls = ", ".join(f"set_config('{name}', '{value}ms', false)" for name, value in timeouts.items())
    calls += f", {_NOTICE_DEATH}"
    if work_key is not None:
        calls += f", pg_advisory_lock_shared({work_key})"

    def set_timeouts(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SELECT {calls}")
        cursor.close()
        connection.commit()
        record.info[_OPENED_HERE] = True

    def close(_: Any, record: Any) -> None:
        if record.info.get(_OPENED_HERE):
            record.invalidate()

    event.listen(Engine, "connect", set_timeouts)
    event.listen(Pool, "checkin", close)
    try:
        yield
    finally:
        event.remove(Pool, "checkin", close)
        event.remove(Engine, "connect", set_timeouts)


@contextmanager
def _connection(root: Path, *, migrating: bool) -> Iterator[tuple[Connection, Ledger | None]]:
    """Take the caller's connection, or open one to the caller's URL or to the settings' database.

    migrating: nobody else has taken the migrator lock: hold it, and keep the ledger.
    """
    given = context.config.attributes.get("connection")
    if given is not None:
        yield given, None
        return
    # Imported here: whoever hands over a connection has read the settings, or needs none.
    from rag_factory.database.config import DatabaseConfig

    settings = DatabaseConfig.load(root)
    text = context.config.get_main_option("sqlalchemy.url")
    target = Target(DatabaseUrl.parse(text, name="sqlalchemy.url"), settings) if text else reach(settings)
    with ExitStack() as stack:
        ledger, work_key = None, None
        if migrating:
            work_key, ledger = stack.enter_context(locked_by_hand(target, Project(root)))
        yield stack.enter_context(open_connection(target.url, settings, work_key=work_key)), ledger


def _leave_ours_out(others: Any) -> Callable[[str | None, str, Any], bool]:
    """Let autogenerate not see the engine's own schema, where it compares all of them."""

    def include(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema" and name in OWN_SCHEMAS:
            return False
        return True if others is None else bool(others(name, kind, parents))

    return include


def _plugins() -> list[str]:
    """Load the autogenerate plug-ins that are installed; a production image has none."""
    for package in _PLUGIN_PACKAGES:
        if find_spec(package) is not None:
            __import__(package)
    take_name()
    return list(PLUGINS)
