"""`db.*` on a database whose schema isn't what its revisions make: drift, schema.sql; and on branches."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from rag_factory.errors import DatabaseMissingError, DriftError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import say, show, show_json
from rag_factory.tasks.texts import JSON

if TYPE_CHECKING:
    from rag_factory.migrate.target import Target
    from rag_factory.tasks.workspace import Workspace


@command("drift", grants="Compare who may do what, too.", json=JSON)
def drift(work: Workspace, grants: bool = False, json: bool = False) -> None:
    """Hold the database against its applied revisions.

    db.check is another thing: it holds the models against the schema.
    """
    from rag_factory.migrate.differences import describe
    from rag_factory.migrate.drift import find_drift

    _ = work.read_known_state()
    found = find_drift(work.target, work.project, work.history, grants=grants)
    at = ", ".join(found.revisions) or "base"
    for column in found.reembedded:
        say(f"{column} is being re-embedded; what that has made is left out. See: invoke db.reembed --status")
    for words in found.backfills:
        say(
            f"a backfill was left half-way ({words}), and what its revision has made may differ. "
            "To go on: invoke db.migrate"
        )
    live, compared = found.versions
    if live != compared:
        say(
            f"warning: {work.target.place} is PostgreSQL {live}, and the revisions were run on {compared}: "
            "what only looks different may be spelled in another way"
        )
    if json:
        show_json([difference.data for difference in found.differences])
    elif found.differences:
        show(describe(found.differences))
    if found.differences:
        raise DriftError(
            f"{work.target.place} differs in {len(found.differences)} from {at}, where it claims to be.",
            fix="Write a revision of what shall stay, take back the rest by hand, or name it in drift_ignore "
            "in [tool.rag_factory]. Made by hand or by another tool: invoke db.stamp --detect",
        )
    say(f"{work.target.place} is what {at} makes")


@command(
    "schema",
    check="Write nothing; compare the file with the schema.",
    live="The database's own schema, instead of what the revisions make.",
    output="The file (schema.sql beside the revisions).",
)
def schema(work: Workspace, check: bool = False, live: bool = False, output: str | None = None) -> None:
    """Write the whole schema to schema.sql, or check it."""
    from contextlib import AbstractContextManager, nullcontext
    from pathlib import Path

    from rag_factory.migrate.schema_file import default_path, find_stale, write_schema_file
    from rag_factory.migrate.scratch import migrated_scratch

    path = Path(output) if output else default_path(work.project)
    made: AbstractContextManager[Target] = (
        nullcontext(work.target)
        if live
        else migrated_scratch(work.target, work.project, work.history, work.history.head)
    )
    with made as source:
        if not check:
            write_schema_file(source, work.project, path)
            say(f"wrote {path}")
            return
        stale = find_stale(source, work.project, path)
    if stale:
        show(stale)
        raise DriftError(
            f"{path} is not the schema of {'the database' if live else 'the revisions'}.",
            fix="Write it anew and commit it: invoke db.schema",
        )
    say(f"{path} is the schema")


@command(
    "rechain",
    revision="A revision of the branch to move: an id or a file name.",
    onto="The revision it is to follow (the other head).",
)
def rechain(work: Workspace, revision: str, onto: str | None = None) -> None:
    """Put your revisions after those of another branch."""
    from rag_factory.migrate.branches import rechain as put_after

    applied: tuple[str, ...] = ()
    if not work.database_is_absent:
        with suppress(DatabaseMissingError):
            applied = work.read_state().revisions
    moved = put_after(work.project, revision, onto, applied)
    for step in moved:
        was = "" if step.after.id == step.before.id else f" (was {step.before.id})"
        say(f"{step.after.path.name}: {step.after.id}{was} follows {step.after.parents[0]}")
    if not moved:
        say("it follows already; nothing to do")


TASKS = (drift, schema, rechain)
