"""Write new revision files."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command

from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import NotReadyError, RagFactoryError, UsageError
from rag_factory.migrate.branches import note_head
from rag_factory.migrate.environment import explained, load_scripts, open_connection
from rag_factory.migrate.kinds import fill_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alembic.config import Config

    from rag_factory.migrate.kinds import Kind
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target


class _NothingToWriteError(Exception):
    """The comparison found no difference."""


def write_revision(target: Target, project: Project, message: str) -> Path | None:
    """Write a revision with what the models have and the database lacks. None: they agree, nothing written.

    The database must be at the head: what it lacks of earlier revisions would be found again.
    Raises as `write_empty_revision`.
    """

    def stop_if_empty(_: Any, __: Any, directives: list[Any]) -> None:
        # By an exception, not by clearing the list: an env.py may have a hook of its own that comes next.
        if directives[0].upgrade_ops.is_empty():
            raise _NothingToWriteError

    config = project.alembic_config(target.url)
    try:
        with (
            _writing(config, target.url),
            open_connection(target.url, target.config) as connection,
        ):
            config.attributes["connection"] = connection
            script = command.revision(
                config, _checked(message), autogenerate=True, process_revision_directives=stop_if_empty
            )
            return _finish(project, config, script)
    except _NothingToWriteError:
        return None


def write_empty_revision(project: Project, message: str, kind: Kind | None = None) -> Path:
    """Write a revision to be filled in by hand, with what one of that kind has. Needs no database.

    Raises UsageError: the message can't stand in a docstring. Raises NotReadyError: the folder is read-only.
    """
    config = project.alembic_config(None)
    with _writing(config):
        return _finish(project, config, command.revision(config, _checked(message)), kind)


def write_merge(project: Project, heads: Sequence[str], message: str) -> Path:
    """Write a revision that joins several heads into one. Needs no database. Raises as above."""
    config = project.alembic_config(None)
    with _writing(config):
        return _finish(project, config, command.merge(config, list(heads), _checked(message)))


@contextmanager
def _writing(config: Config, url: DatabaseUrl | None = None) -> Iterator[None]:
    load_scripts(config)
    with explained("Writing the revision", url or DatabaseUrl(), _NothingToWriteError):
        try:
            yield
        except OSError as error:
            raise NotReadyError(
                f"{error.filename or 'The revision'} can't be written: {error.strerror}.",
                fix="Give this user the right to write there.",
            ) from error


def _checked(message: str) -> str:
    """The message in one line. It becomes the docstring of the file."""
    line = " ".join(message.split())
    if not line or "\\" in line or '"""' in line:
        raise UsageError(
            f"{message!r} can't head a revision: it is blank, or has a backslash or three quotes.",
            fix='Say in plain words what the revision does: -m "add source language"',
        )
    return line


def _finish(project: Project, config: Config, script: Any, kind: Kind | None = None) -> Path:
    """Finish what Alembic wrote, one script or a list with one: noted as the newest, filled in, formatted."""
    one = script[0] if isinstance(script, (list, tuple)) else script
    note_head(project, one.revision)
    path = Path(one.path)
    if kind is not None:
        fill_in(path, kind)
    # A project with hooks of its own for what Alembic writes has chosen another way.
    if "ruff" in project.pyproject and find_spec("ruff") and not config.get_hooks_list():
        _format(path)
    return path


def _format(path: Path) -> None:
    """Format as the project has it: Alembic writes single quotes, and lines of any length."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--quiet", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RagFactoryError(
            f"{path} is written, but ruff can't format it: {done.stderr.strip()}",
            fix=f"Mend what it names, then: ruff format {path}",
        )
