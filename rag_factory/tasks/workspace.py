"""What a task works on, each part made when it is first asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from rag_factory.errors import DatabaseMissingError
from rag_factory.tasks.texts import DEFAULT_WAIT_SECONDS, seconds, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rag_factory.database.config import DatabaseConfig
    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.runner import Runner
    from rag_factory.migrate.state import DatabaseState
    from rag_factory.migrate.target import Target


class Workspace:
    """The project at `root`, its settings, revisions and database."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def config(self) -> DatabaseConfig:
        """The settings."""
        from rag_factory.database.config import DatabaseConfig

        return DatabaseConfig.load(self.root)

    @cached_property
    def test_config(self) -> DatabaseConfig:
        """The settings as tests see them."""
        from rag_factory.database.config import DatabaseConfig

        return DatabaseConfig.load(self.root, for_tests=True)

    @cached_property
    def project(self) -> Project:
        """The Alembic environment."""
        from rag_factory.migrate.project import Project

        return Project(self.root)

    @cached_property
    def history(self) -> History:
        """The revisions."""
        from rag_factory.migrate.history import History

        return History.read(self.project)

    @cached_property
    def target(self) -> Target:
        """The database; its embedded server is started if it is the one."""
        from rag_factory.migrate.target import reach

        return reach(self.config)

    @property
    def database_is_absent(self) -> bool:
        """Whether the embedded server is meant, but was never started."""
        from rag_factory.migrate.target import embedded_server

        return self.config.url is None and embedded_server(self.config).status().state == "absent"

    def read_state(self) -> DatabaseState:
        """The state of the database now."""
        from rag_factory.migrate.state import read_state

        return read_state(self.target, self.project)

    def read_known_state(self) -> DatabaseState:
        """The state of the database now, at a revision that this checkout has, unedited.

        Raises HistoryError: it isn't. Raises DatabaseMissingError: there is no database.
        """
        if self.database_is_absent:
            # Known without starting a server.
            raise DatabaseMissingError(
                "There is no database yet: the embedded server was never started.",
                fix="Begin: invoke db.migrate",
            )
        state = self.read_state()
        state.check_history(self.history, self.target.place)
        return state

    def set_limits(
        self, lock_timeout: str | None, statement_timeout: str | None, retries: str | None
    ) -> None:
        """Let options take the place of the settings, before the target is asked for.

        Raises UsageError: one is no number, or too small.
        """
        given: dict[str, float] = {}
        if lock_timeout is not None:
            given["db_lock_timeout_seconds"] = seconds(lock_timeout, "--lock-timeout", at_least=0.001)
        if statement_timeout is not None:
            given["db_statement_timeout_seconds"] = seconds(statement_timeout, "--statement-timeout")
        if retries is not None:
            given["db_lock_retries"] = whole_number(retries, "--retries", at_least=0)
        if given:
            self.config = self.config.model_copy(update=given)

    def confirm(self, effect: str, *, yes: bool, database: str | None) -> None:
        """Let a destructive task through, or refuse it."""
        from rag_factory.migrate.guard import confirm
        from rag_factory.tasks.output import asker

        confirm(self.target, effect, yes=yes, database=database, ask=asker())

    def runner(self, wait_seconds: float = DEFAULT_WAIT_SECONDS, *, backup: bool = False) -> Runner:
        """The runner on the database; it tells the user what it does.

        backup: back the database up under the lock, before anything is changed.
        """
        from rag_factory.migrate.runner import Runner
        from rag_factory.tasks.backup import make_backup
        from rag_factory.tasks.progress import Narrator

        def before_first(_: Sequence[Revision]) -> None:
            if backup:
                make_backup(self, wait_seconds=wait_seconds)

        narrator = Narrator()
        return Runner(
            self.target,
            self.project,
            self.history,
            on_applied=narrator.applied,
            on_wait=narrator.say,
            on_running=narrator.running,
            on_progress=narrator.progress,
            before_first=before_first,
            on_nothing=lambda: narrator.say("another migrator has applied it; nothing is left to do"),
            wait_seconds=wait_seconds,
        )
