"""`db.*` that keep a database safe: its protection, the migrator lock, edited revisions."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from rag_factory.errors import LockedError, UsageError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import say
from rag_factory.tasks.texts import DATABASE, DEFAULT_WAIT, WAIT, YES, seconds

if TYPE_CHECKING:
    from rag_factory.tasks.workspace import Workspace


@command("protect", off="Take the protection away.", yes=YES, database=DATABASE)
def protect(work: Workspace, off: bool = False, yes: bool = False, database: str | None = None) -> None:
    """Mark the database as protected, whatever APP_ENV is."""
    from rag_factory.migrate.guard import is_marked, mark

    place, name = work.target.place, quote(work.target.url.database)
    if is_marked(work.target) != off:
        say(f"{place} is {'not marked' if off else 'marked'} as protected; nothing to do")
        return
    if off:
        work.confirm(f"This lets destructive tasks work on {place}", yes=yes, database=database)
    mark(work.target, protected=not off)
    say(
        f"{place} is no longer protected"
        if off
        else f"{place} is protected: destructive tasks need --yes --database {name}"
    )


@command("unlock", yes=YES, database=DATABASE)
def unlock(work: Workspace, yes: bool = False, database: str | None = None) -> None:
    """Show who holds the migrator lock, and end it."""
    from rag_factory.database.driver import connect, translated
    from rag_factory.migrate.lock import end_holders, find_holders, read_keys

    place = work.target.place
    timeout = work.target.config.db_connect_timeout_seconds
    with (
        translated(work.target.url),
        connect(work.target.url, connect_timeout_seconds=timeout) as session,
    ):
        holders = find_holders(session, read_keys(session, work.project))
        if not holders:
            say(f"nobody holds the migrator lock of {place}")
            return
        for holder in holders:
            query = (holder.query.strip().splitlines() or [""])[0][:100]
            say(f"{holder}, {holder.state or 'state unknown'}: {query or 'no query'}")
        pids = ", ".join(str(holder.pid) for holder in holders)
        effect = f"This ends the migrator on {place} (pid {pids}); what it has not committed is rolled back"
        work.confirm(effect, yes=yes, database=database)
        if not end_holders(session, holders):
            raise LockedError(
                f"The migrator on {place} (pid {pids}) was told to end, but is still there.",
                fix="Look again: invoke db.unlock",
            )
        say(f"ended pid {pids}; the migrator lock of {place} is free")


@command("accept", revision="The applied revision whose file is right as it is now.", wait=WAIT)
def accept(work: Workspace, revision: str, wait: str = DEFAULT_WAIT) -> None:
    """Accept that an applied revision's file was edited."""
    from rag_factory.migrate.ledger import find_edited

    wait_seconds = seconds(wait, "--wait")
    id_ = work.history.resolve(revision)
    state = work.read_state()
    place = work.target.place
    work.history.check_known(state.revisions, where=place)
    if id_ is None or id_ not in work.history.lineage(state.revisions):
        raise UsageError(f"{id_ or 'base'} is not applied in {place}: there is nothing to accept.")
    found = work.history.revisions[id_]
    if found not in find_edited(work.history, state.revisions, state.marks):
        say(f"{found.path.name} is as it was applied to {place}; nothing to do")
        return
    work.runner(wait_seconds).accept(found)
    say(f"accepted {found.path.name} as what is applied to {place}")


TASKS = (protect, unlock, accept)
