"""What a migration would do, and what was done: shown, and nothing changed."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from rag_factory.errors import DatabaseMissingError, RagFactoryError
from rag_factory.tasks.output import say, show_columns, show_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.loss import Loss
    from rag_factory.tasks.workspace import Workspace


def show_ledger(work: Workspace, *, json: bool) -> None:
    """Show what was done to the database, newest first."""
    from rag_factory.database.driver import connect, translated
    from rag_factory.migrate.ledger import read_entries

    timeout = work.target.config.db_connect_timeout_seconds
    with (
        translated(work.target.url),
        connect(work.target.url, connect_timeout_seconds=timeout) as session,
    ):
        entries = read_entries(session, work.project)
    if json:
        show_json([entry.data for entry in entries])
        return
    show_columns(
        (
            f"{entry.started:%Y-%m-%d %H:%M:%S %Z}",
            entry.direction,
            entry.revision,
            entry.outcome or "at work",
            "" if entry.milliseconds is None else f"{entry.milliseconds:.0f} ms",
            entry.database_user,
            (entry.git_commit or "")[:12],
        )
        for entry in entries
    )


def try_pending(work: Workspace, goal: str | None, wait_seconds: float) -> None:
    """Execute what is pending up to `goal`, and keep nothing."""
    from rag_factory.migrate.dry_run import dry_run
    from rag_factory.tasks.migration import name_revisions
    from rag_factory.tasks.progress import Narrator

    place = work.target.place
    current: Sequence[str] = ()
    with suppress(DatabaseMissingError):
        current = work.read_known_state().revisions
    pending = work.history.pending(current, goal)
    if not pending:
        say(f"{place} is at {name_revisions(current, work.history)}; nothing to do")
        return
    narrator = Narrator()
    on_target = dry_run(
        work.target,
        work.project,
        work.history,
        goal,
        wait_seconds=wait_seconds,
        on_applied=narrator.applied,
        on_wait=narrator.say,
    )
    count = f"{len(pending)} revision{'s' if len(pending) > 1 else ''}"
    how = "in a transaction that is rolled back" if on_target else "on a scratch database that is dropped"
    say(f"dry run: {count} passed, {how}; {place} is as it was, at {name_revisions(current, work.history)}")


def tell_losses(work: Workspace, undone: Sequence[Revision], *, allowed: bool) -> list[Loss] | None:
    """Tell what taking these revisions back would lose. None: that can't be told, and it is allowed to."""
    from rag_factory.migrate.loss import find_losses

    try:
        losses = find_losses(work.target, work.project, work.history, undone)
    except RagFactoryError as problem:
        if allowed:
            say(f"what would be lost can't be told: {problem.what}")
            return None
        problem.what = (
            f"{problem.what} That was on a scratch database, to see what would be lost: "
            f"{work.target.place} is as it was."
        )
        raise
    for loss in losses:
        say(f"would be lost: {loss}")
    return losses
