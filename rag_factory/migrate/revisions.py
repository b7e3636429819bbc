"""Write new revision files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from rag_factory.database.connection import translate
from rag_factory.errors import HistoryError, RagFactoryError
from rag_factory.migrate.environment import open_connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alembic.script import Script

    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target


def write_revision(target: Target, project: Project, message: str) -> Path | None:
    """Write a revision with what the models have and the database lacks. None: they agree, nothing written.

    The database must be at the head: what it lacks of earlier revisions would be found again.
    """
    found: list[bool] = []

    def keep_if_needed(_: Any, __: Any, directives: list[Any]) -> None:
        if directives[0].upgrade_ops.is_empty():
            directives.clear()
        found.extend(bool(directive) for directive in directives)

    config = project.alembic_config(target.url)
    try:
        with open_connection(target.url, target.config) as connection:
            config.attributes["connection"] = connection
            script = command.revision(
                config, message, autogenerate=True, process_revision_directives=keep_if_needed
            )
    except DBAPIError as error:
        raise translate(error.orig or error, target.url) from error
    except (CommandError, OSError) as error:
        raise _not_written(error) from error
    return _path(script) if found else None


def write_empty_revision(project: Project, message: str) -> Path:
    """Write a revision to be filled in by hand. Needs no database."""
    try:
        script = command.revision(project.alembic_config(None), message)
    except (CommandError, OSError) as error:
        raise _not_written(error) from error
    return _path(script)


def write_merge(project: Project, heads: Sequence[str], message: str) -> Path:
    """Write a revision that joins several heads into one. Needs no database."""
    try:
        script = command.merge(project.alembic_config(None), list(heads), message)
    except (CommandError, OSError) as error:
        raise _not_written(error) from error
    return _path(script)


def _path(script: Script | Sequence[Script | None] | None) -> Path:
    one = script[0] if isinstance(script, (list, tuple)) else script
    return Path(one.path)  # type: ignore[union-attr]


def _not_written(error: Exception) -> RagFactoryError:
    if isinstance(error, OSError):
        return RagFactoryError(
            f"The revision can't be written: {error.filename or ''}: {error.strerror}.",
            fix="Give this user the right to write there.",
        )
    return HistoryError(f"The revision can't be written: {error}.")
