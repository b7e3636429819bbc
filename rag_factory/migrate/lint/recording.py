"""What a revision would run: its statements, each with the line of the revision's file that asks for it."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep

from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import RagFactoryError
from rag_factory.migrate.environment import explained, load_scripts, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.project import Project

_ENGINE = "rag_factory.migrate."


@dataclass(frozen=True)
class Statement:
    """SQL that a revision runs, as one text; it may hold several statements.

    line: in the revision's file. transactional: whether it runs inside of the revision's transaction.
    online: whether an operation of the engine made it, which is safe as it is.
    """

    text: str
    line: int
    transactional: bool
    online: bool = False


@dataclass
class Recording:
    """What one revision runs on the way up. failure: why the rest is unknown; None when all is here."""

    revision: Revision
    statements: list[Statement] = field(default_factory=list)
    failure: str | None = None


class _Recorder(io.StringIO):
    """Takes the place of the file that Alembic writes SQL to, and looks who is writing."""

    def __init__(self) -> None:
        super().__init__()
        self.recording: Recording | None = None
        self.file = ""
        self._in_transaction = False

    def write(self, text: str, /) -> int:
        statement = text.strip()
        if statement in {"BEGIN;", "COMMIT;"}:
            self._in_transaction = statement == "BEGIN;"
        elif self.recording is not None:
            line, online = _asked_for_by(self.file, sys._getframe(1))
            if line:
                self.recording.statements.append(Statement(statement, line, self._in_transaction, online))
        return len(text)


def record(project: Project, history: History) -> list[Recording]:
    """Write the SQL of every revision, in order, and take it apart. Needs no database, and changes nothing.

    Raises RagFactoryError: env.py fails, or the revisions can't be loaded.
    """
    nominal = DatabaseUrl(host="localhost", database="offline")
    config = project.alembic_config(nominal)
    recorder = _Recorder()
    config.output_buffer = recorder
    scripts = load_scripts(config)
    recordings: list[Recording] = []

    def steps(_: Any, __: Any) -> Iterator[MigrationStep]:
        for revision in history.revisions.values():
            script = scripts.get_revision(revision.id)
            step: Any = MigrationStep.upgrade_from_script(scripts.revision_map, script)
            recorder.file = str(script.module.__file__)
            recorder.recording = Recording(revision)
            recordings.append(recorder.recording)
            # A revision that can't do without a database must not keep the others from being looked at.
            step.migration_fn = _guarded(step.migration_fn, recorder.recording)
            yield step
            recorder.recording = None

    with (
        explained("Writing the SQL", nominal),
        EnvironmentContext(config, scripts, fn=steps, as_sql=True, starting_rev="base"),
    ):
        scripts.run_env()
    if len(recordings) != len(history.revisions):
        raise RagFactoryError(
            "env.py did not run the revisions in offline mode.",
            fix="Let it call context.run_migrations() there too: `alembic upgrade head --sql` must work.",
        )
    return recordings


def _guarded(upgrade: Callable[..., None], recording: Recording) -> Callable[..., None]:
    def run(**options: Any) -> None:
        try:
            upgrade(**options)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a revision is anybody's code
            recording.failure = reason(error)

    return run


def _asked_for_by(path: str, frame: FrameType | None) -> tuple[int, bool]:
    """The innermost line of the revision's file on the stack, 0 for none; and whether the engine is above."""
    online = False
    while frame is not None:
        if frame.f_code.co_filename == path:
            return frame.f_lineno, online
        online = online or frame.f_globals.get("__name__", "").startswith(_ENGINE)
        frame = frame.f_back
    return 0, False
