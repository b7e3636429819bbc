"""`db.*` on revisions: apply them, take them back, look at them, write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rag_factory.errors import BehindError, DatabaseMissingError, DriftError, RefusedError, UsageError
from rag_factory.tasks.command import command
from rag_factory.tasks.forecast import show_ledger, tell_losses, try_pending
from rag_factory.tasks.output import say, show, show_columns, show_json
from rag_factory.tasks.texts import (
    DATABASE,
    DEFAULT_WAIT,
    DEFAULT_WAIT_SECONDS,
    JSON,
    LOCK_TIMEOUT,
    RETRIES,
    SQL,
    STATEMENT_TIMEOUT,
    WAIT,
    YES,
    seconds,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.migrate.history import History, Revision
    from rag_factory.tasks.workspace import Workspace


@command(
    "migrate",
    to="The revision to go to (head).",
    sql=SQL,
    dry_run="Execute all and roll it back; where that can't be, on a scratch database.",
    backup="Back the database up first, when something is pending.",
    wait=WAIT,
    lock_timeout=LOCK_TIMEOUT,
    statement_timeout=STATEMENT_TIMEOUT,
    retries=RETRIES,
)
def migrate(
    work: Workspace,
    to: str = "head",
    sql: bool = False,
    dry_run: bool = False,
    backup: bool = False,
    wait: str = DEFAULT_WAIT,
    lock_timeout: str | None = None,
    statement_timeout: str | None = None,
    retries: str | None = None,
) -> None:
    """Apply the pending revisions; create what is missing."""
    wait_seconds = seconds(wait, "--wait")
    work.set_limits(lock_timeout, statement_timeout, retries)
    goal = work.history.resolve(to)
    if sql and dry_run:
        raise UsageError("--sql and --dry-run exclude each other.", fix="Give one of them.")
    if sql:
        _show_upgrade_sql(work, goal)
    elif dry_run:
        try_pending(work, goal, wait_seconds)
    else:
        apply_pending(work, goal, wait_seconds, backup=backup)


@command(
    "rollback",
    steps="How many revisions to take back (1).",
    to="The revision to go back to.",
    all="Take back all.",
    sql=SQL,
    yes=YES,
    database=DATABASE,
    allow_data_loss="Go on where rows are lost.",
    backup="Back the database up first where rows are lost (it does).",
    wait=WAIT,
    lock_timeout=LOCK_TIMEOUT,
    statement_timeout=STATEMENT_TIMEOUT,
    retries=RETRIES,
)
def rollback(
    work: Workspace,
    steps: str | None = None,
    to: str | None = None,
    all: bool = False,
    sql: bool = False,
    yes: bool = False,
    database: str | None = None,
    allow_data_loss: bool = False,
    backup: bool = True,
    wait: str = DEFAULT_WAIT,
    lock_timeout: str | None = None,
    statement_timeout: str | None = None,
    retries: str | None = None,
) -> None:
    """Take revisions back, the last one or more."""
    if sum((steps is not None, to is not None, all)) > 1:
        raise UsageError("--steps, --to and --all exclude each other.", fix="Give one of them.")
    count = whole_number("1" if steps is None else steps, "--steps")
    wait_seconds = seconds(wait, "--wait")
    work.set_limits(lock_timeout, statement_timeout, retries)
    goal = work.history.resolve(to) if to is not None else None
    current = work.read_known_state().revisions
    if all or to is not None:
        undone = work.history.undone(current, goal)
    else:
        undone = work.history.newest(current)[:count]
        if steps is not None and len(undone) < count:
            raise UsageError(
                f"--steps is {count}, but only {len(undone)} {'is' if len(undone) == 1 else 'are'} applied.",
                fix="To take all back: invoke db.rollback --all",
            )
    place = work.target.place
    if not undone:
        say(f"{place} is at {name_revisions(current, work.history)}; nothing to do")
        return
    if sql:
        from rag_factory.migrate.runner import migration_sql

        show(migration_sql(work.project, current, undone, "down").rstrip())
        return
    losses = tell_losses(work, undone, allowed=allow_data_loss)
    named_all = ", ".join(f"{revision.id} ({revision.message})" for revision in undone)
    if losses and any(loss.holds_rows for loss in losses) and not allow_data_loss:
        raise RefusedError(
            f"Taking back {named_all} from {place} would lose {'; '.join(map(str, losses))}. "
            "Nothing was changed.",
            fix="If that is what you want, add: --allow-data-loss",
        )
    effect = f"This takes back {named_all} from {place}, with the data in what they made"
    work.confirm(effect, yes=yes, database=database)
    # What can't be told may be lost as well: it is backed up.
    rows_go = losses is None or any(loss.holds_rows for loss in losses)
    _say_at(work, work.runner(wait_seconds, backup=backup and rows_go).downgrade(undone))


@command(
    "stamp",
    revision="The revision the schema is at: an id, head or base.",
    detect="Find the revision by the schema.",
    purge="Empty the version table first, also of unknown revisions.",
    yes=YES,
    database=DATABASE,
)
def stamp(
    work: Workspace,
    revision: str,
    detect: bool = False,
    purge: bool = False,
    yes: bool = False,
    database: str | None = None,
) -> None:
    """Set the recorded revision without running anything."""
    from rag_factory.migrate.guard import find_protection

    if detect and revision:
        raise UsageError(
            f"--detect finds the revision, and {revision} is given.", fix="Leave one of them out."
        )
    goal = _detect(work) if detect else work.history.resolve(revision)
    before = (work.read_state() if purge else work.read_known_state()).revisions
    if detect and before == ((goal,) if goal else ()):
        say(f"{work.target.place} is at {name_revisions(before, work.history)} already; nothing to do")
        return
    if detect or purge or database is not None or find_protection(work.target):
        at = ", ".join(before) or "base"
        effect = f"This makes {work.target.place} claim to be at {goal or 'base'} instead of {at}"
        work.confirm(effect, yes=yes, database=database)
    _say_at(work, work.runner().stamp(goal, purge=purge))


@command("history", ledger="List what was done to the database instead: when, by whom.", json=JSON)
def history(work: Workspace, ledger: bool = False, json: bool = False) -> None:
    """List the revisions, newest first."""
    if ledger:
        show_ledger(work, json=json)
        return
    newest_first = list(reversed(work.history.revisions.values()))
    if json:
        show_json([describe_revision(revision, work.history) for revision in newest_first])
    else:
        show_columns(
            (revision.id, _title(revision, work.history), revision.path.name) for revision in newest_first
        )


@command("heads")
def heads(work: Workspace) -> None:
    """List the newest revisions; several are an error."""
    for id_ in work.history.heads:
        show(id_)
    _ = work.history.head


@command("show", revision="An id, the beginning of one, or head.")
def show_revision(work: Workspace, revision: str) -> None:
    """Show one revision: what it is and what it does."""
    id_ = work.history.resolve(revision)
    if id_ is None:
        raise UsageError(f"There is no revision to show at {revision}: it is the empty database.")
    found = work.history.revisions[id_]
    show(f"{found.id} {_title(found, work.history)}, after {', '.join(found.parents) or 'nothing'}")
    show(f"{found.path}\n")
    show(found.path.read_text(encoding="utf-8").rstrip())


@command(
    "revision",
    message="What the revision does, in a few words.",
    empty="Compare nothing; write an empty one to fill in.",
    kind="Write one to fill in: index, hnsw, constraint, not-null or backfill.",
)
def revision(work: Workspace, message: str, empty: bool = False, kind: str | None = None) -> None:
    """Write a revision of what the models have changed."""
    from rag_factory.migrate import kinds, revisions
    from rag_factory.migrate.check import allowed_or_on_copy
    from rag_factory.migrate.reembed.traces import find_traces

    chosen = kinds.find_kind(kind) if kind is not None else None
    head = work.history.head
    if chosen is not None:
        show(str(revisions.write_empty_revision(work.project, message, chosen)))
        say("Fill in what stands in capitals, then apply it: invoke db.migrate")
        return
    if empty:
        show(str(revisions.write_empty_revision(work.project, message)))
        return
    if work.history.pending(work.read_known_state().revisions, head):
        raise BehindError(
            f"{work.target.place} is behind.", fix="First apply what is pending: invoke db.migrate"
        )
    if columns := find_traces(work.target)[0]:
        raise RefusedError(
            f"{', '.join(columns)} is being re-embedded, and a revision of what the models have changed "
            "would drop what that has made. Nothing was written.",
            fix="Write an empty one and fill it in (--empty), or end it first: invoke db.reembed --status",
        )
    path = allowed_or_on_copy(
        work.target, work.project, lambda target: revisions.write_revision(target, work.project, message)
    )
    if path is None:
        say("The models and the database agree; nothing to write. To write one all the same: --empty")
    else:
        show(str(path))
        say("Read it, then apply it: invoke db.migrate")


@command("merge", message="What the merge is called.")
def merge(work: Workspace, message: str = "merge heads") -> None:
    """Write a revision that joins several heads."""
    from rag_factory.migrate.revisions import write_merge

    if len(work.history.heads) > 1:
        show(str(write_merge(work.project, work.history.heads, message)))
    else:
        say("There is one head; nothing to merge")


@command("check")
def check(work: Workspace) -> None:
    """Hold the models against the database's schema.

    db.drift is another thing: it holds the database against its applied revisions.
    """
    from rag_factory.migrate.check import allowed_or_on_copy, find_differences
    from rag_factory.migrate.reembed.traces import find_traces
    from rag_factory.migrate.scratch import migrated_scratch

    head = work.history.head
    if work.history.pending(work.read_known_state().revisions, head):
        say(f"{work.target.place} is behind; comparing with a scratch database at {head}")
        with migrated_scratch(work.target, work.project, work.history, head) as scratch:
            differences = find_differences(scratch, work.project)
    else:
        differences = allowed_or_on_copy(
            work.target, work.project, lambda target: find_differences(target, work.project)
        )
    if differences:
        show("\n".join(differences))
        columns = find_traces(work.target)[0]
        raise DriftError(
            f"The models and the schema differ in {len(differences)}: above is what would mend the schema.",
            fix=f"{', '.join(columns)} is being re-embedded, and what that has made is among them: leave it. "
            "See: invoke db.reembed --status"
            if columns
            else 'Write it as a revision: invoke db.revision -m "…"',
        )
    say("The models and the schema agree")


TASKS = (migrate, rollback, stamp, history, heads, show_revision, revision, merge, check)


def apply_pending(
    work: Workspace, goal: str | None, wait_seconds: float = DEFAULT_WAIT_SECONDS, *, backup: bool = False
) -> None:
    """Create what is missing, then apply what is pending up to `goal`; back up before, if anything is."""
    try:
        state = work.read_state()
        complete = state.pgvector is not None or "vector" not in work.project.extensions
    except DatabaseMissingError:
        complete = False
    if not complete:
        from rag_factory.migrate.creation import create_database

        for effect in create_database(work.target, work.project):
            say(f"created {effect}")
        state = work.read_state()
    state.check(work.project, work.target.place)
    state.check_history(work.history, work.target.place)
    if work.history.pending(state.revisions, goal):
        _say_at(work, work.runner(wait_seconds, backup=backup).upgrade(goal))
    else:
        say(f"{work.target.place} is at {name_revisions(state.revisions, work.history)}; nothing to do")


def describe_revision(revision: Revision, known: History) -> dict[str, Any]:
    """A revision for a machine."""
    return {
        "id": revision.id,
        "message": revision.message,
        "parents": list(revision.parents),
        "head": revision.id in known.heads,
        "file": revision.path.name,
    }


def name_revisions(current: Sequence[str], known: History) -> str:
    """Where a database is, for people: `002 (head)`."""
    mark = " (head)" if current and set(current) == set(known.heads) else ""
    return (", ".join(current) or "base") + mark


def _title(revision: Revision, known: History) -> str:
    return revision.message + (" (head)" if revision.id in known.heads else "")


def _detect(work: Workspace) -> str | None:
    """The revision that the database's schema is at."""
    from rag_factory.migrate.adopt import detect_revision
    from rag_factory.migrate.differences import describe

    found = detect_revision(work.target, work.project, work.history)
    for table in found.foreign:
        say(
            f"warning: {table.name} is of {table.tool}: two tools must not change one schema. To move over, "
            f"{table.advice}, then drop the table"
        )
    if not found.exact:
        show(describe(found.differences))
        raise DriftError(
            f"{work.target.place} is at no revision. Nearest is {found.nearest or 'base'}, with the "
            f"{len(found.differences)} differences above. Nothing was changed.",
            fix="Mend them, or name what may stay in drift_ignore in [tool.rag_factory]; then try again.",
        )
    if len(found.exact) > 1:
        names = [revision or "base" for revision in found.exact]
        raise RefusedError(
            f"The schema of {work.target.place} is that of {' and of '.join(names)}, which differ in rows "
            "only. Nothing was changed.",
            fix=f"Look which rows are there, then say it: invoke db.stamp {names[0]}",
        )
    return found.exact[0]


def _say_at(work: Workspace, current: Sequence[str]) -> None:
    say(f"{work.target.place} is at {name_revisions(current, work.history)}")


def _show_upgrade_sql(work: Workspace, goal: str | None) -> None:
    """Print what an upgrade would run; from the beginning where there is no database yet."""
    from rag_factory.migrate.runner import migration_sql

    current: Sequence[str] = ()
    try:
        current = work.read_known_state().revisions
    except DatabaseMissingError:
        say("The database does not exist yet: this is all from the beginning")
    pending = work.history.pending(current, goal)
    if pending:
        show(migration_sql(work.project, current, pending, "up").rstrip())
