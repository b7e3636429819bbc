"""`db.*` on the database and its server as a whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rag_factory.errors import BehindError, UsageError
from rag_factory.tasks.command import command
from rag_factory.tasks.migration import apply_pending, describe_revision, name_revisions
from rag_factory.tasks.output import human_size, say, show, show_columns, show_json
from rag_factory.tasks.texts import DATABASE, JSON, YES

if TYPE_CHECKING:
    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.state import DatabaseState
    from rag_factory.tasks.workspace import Workspace


@command("create")
def create(work: Workspace) -> None:
    """Create the database and its extensions."""
    from rag_factory.migrate.creation import create_database

    created = create_database(work.target, work.project)
    for effect in created:
        say(f"created {effect}")
    if not created:
        say(f"{work.target.place} exists; nothing to do")


@command("drop", yes=YES, database=DATABASE)
def drop(work: Workspace, yes: bool = False, database: str | None = None) -> None:
    """Drop the database with all its data."""
    _drop(work, yes=yes, database=database)


@command("reset", yes=YES, database=DATABASE)
def reset(work: Workspace, yes: bool = False, database: str | None = None) -> None:
    """Drop the database, create it and migrate it anew."""
    from rag_factory.migrate.creation import check_server
    from rag_factory.migrate.environment import load_scripts

    goal = work.history.head
    # What the way back needs is looked at before anything is dropped.
    load_scripts(work.project.alembic_config(work.target.url))
    check_server(work.target, work.project)
    _drop(work, yes=yes, database=database)
    apply_pending(work, goal)


@command("status", json=JSON)
def status(work: Workspace, json: bool = False) -> None:
    """Show server, database, revision and what is pending."""
    head = work.history.head
    state = work.read_known_state()
    pending = work.history.pending(state.revisions, head)
    if json:
        show_json(_status_data(work, state, pending))
    else:
        show_columns(_status_rows(work, state, pending))
    if pending:
        count = f"{len(pending)} revision{'s' if len(pending) > 1 else ''} pending."
        raise BehindError(count, fix="Apply: invoke db.migrate")


@command("url", show_password="Show the password too.")  # noqa: S106 - a help text
def url(work: Workspace, show_password: bool = False) -> None:
    """Print the database's URL, its password masked."""
    show(work.target.url.plain if show_password else work.target.url.masked)


@command("shell", command="One statement to run instead of opening a prompt.")
def shell(work: Workspace, command: str | None = None) -> None:
    """Open psql on the database."""
    from rag_factory.migrate.programs import program, program_environment

    target = work.target
    psql = program("psql", target.config, target.server)
    statement = [] if command is None else ["-X", "-c", command]
    # psql takes this process's place, so that it has the terminal to itself and its exit code is ours.
    os.execve(  # noqa: S606
        psql,
        [str(psql), *statement, target.url.without_password().plain],
        program_environment(target.url),
    )


@command("start")
def start(work: Workspace) -> None:
    """Start the embedded server."""
    from rag_factory.migrate.target import embedded_server

    if work.config.url is not None:
        raise UsageError(
            f"DATABASE_URL leads to {work.config.url}: that server is not ours to start.",
            fix="Unset it to use the embedded server.",
        )
    server = embedded_server(work.config)
    server.ensure_running()
    found = server.status()
    say(f"PostgreSQL {found.version} is running, data in {found.data_folder}")


@command("stop")
def stop(work: Workspace) -> None:
    """Stop the embedded server."""
    from rag_factory.migrate.target import embedded_server

    # The launcher itself says what it stopped.
    if not embedded_server(work.config).stop():
        say("The embedded server was not running")


TASKS = (create, drop, reset, status, url, shell, start, stop)


def _drop(work: Workspace, *, yes: bool, database: str | None) -> None:
    from rag_factory.migrate.creation import drop_database

    work.confirm(f"This drops the database {work.target.place} with all its data", yes=yes, database=database)
    dropped = drop_database(work.target)
    say(f"dropped database {work.target.url.database}" if dropped else f"{work.target.place} does not exist")


def _status_rows(work: Workspace, state: DatabaseState, pending: list[Revision]) -> list[tuple[str, str]]:
    target = work.target
    where = f"at {target.url.server}"
    if target.server is not None:
        found = target.server.status()
        where = f"embedded, {found.state}, data in {found.data_folder}"
    pgvector = f"pgvector {state.pgvector}" if state.pgvector else "no pgvector"
    rows = [
        ("server", f"PostgreSQL {state.server_version} {where}"),
        ("database", f"{target.url.database}, {human_size(state.size_bytes)}, {pgvector}"),
        ("revision", name_revisions(state.revisions, work.history)),
    ]
    rows += [("pending", f"{revision.id} {revision.message}") for revision in pending]
    return rows if pending else [*rows, ("pending", "none")]


def _status_data(work: Workspace, state: DatabaseState, pending: list[Revision]) -> dict[str, Any]:
    target = work.target
    found = target.server.status() if target.server else None
    return {
        "server": {
            "version": state.server_version,
            "address": target.url.server,
            "read_only": state.read_only,
            "embedded": None
            if found is None
            else {
                "state": found.state,
                "pid": found.pid,
                "data_folder": str(found.data_folder),
                "log": str(found.log),
            },
        },
        "database": {
            "name": target.url.database,
            "url": target.url.masked,
            "size_bytes": state.size_bytes,
            "pgvector": state.pgvector,
        },
        "revision": list(state.revisions),
        "heads": list(work.history.heads),
        "pending": [describe_revision(revision, work.history) for revision in pending],
    }
