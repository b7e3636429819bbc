"""`db.migrate-tenants`: the same revisions on many databases, or on many schemas of one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rag_factory.errors import LockedError, RagFactoryError, UsageError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import progress_bar, say, show_columns, show_json
from rag_factory.tasks.texts import DEFAULT_WAIT, JSON, WAIT, seconds, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.migrate.tenants import Outcome, StateFile, Tenant
    from rag_factory.tasks.workspace import Workspace

STATE_FOLDER = ".rag_factory"


@command(
    "migrate-tenants",
    tenant_urls="A file with the URL of a database a line.",
    tenant_query="SQL for the database that gives the names of the tenants' databases.",
    tenant_schemas="The query gives the names of schemas, each with a version table of its own.",
    to="The revision to go to (head).",
    parallel="How many at a time (4).",
    resume="Only those that have not got there in the last run.",
    wait=WAIT,
    json=JSON,
)
def migrate_tenants(
    work: Workspace,
    tenant_urls: str | None = None,
    tenant_query: str | None = None,
    tenant_schemas: bool = False,
    to: str = "head",
    parallel: str = "4",
    resume: bool = False,
    wait: str = DEFAULT_WAIT,
    json: bool = False,
) -> None:
    """Apply the pending revisions to many databases."""
    from rag_factory.migrate.many import migrate_tenants as migrate
    from rag_factory.migrate.tenants import StateFile

    at_a_time = whole_number(parallel, "--parallel")
    wait_seconds = seconds(wait, "--wait")
    goal = work.history.resolve(to)
    tenants, source = _tenants(work, tenant_urls, tenant_query, schemas=tenant_schemas)
    state = StateFile(work.root / STATE_FOLDER, source)
    todo = _begin(state, tenants, goal, resume=resume)
    outcomes: list[Outcome] = []
    try:
        with progress_bar("tenants", len(todo)) as done:

            def on_outcome(outcome: Outcome) -> None:
                outcomes.append(outcome)
                state.add(outcome)
                done(len(outcomes))

            migrate(
                work.root, todo, goal, parallel=at_a_time, wait_seconds=wait_seconds, on_outcome=on_outcome
            )
    finally:
        _report(outcomes, json=json)
    _judge(outcomes, total=len(todo))


TASKS = (migrate_tenants,)


def _tenants(
    work: Workspace, urls: str | None, query: str | None, *, schemas: bool
) -> tuple[list[Tenant], str]:
    """The tenants, and where their list comes from."""
    from rag_factory.migrate.tenants import query_tenants, read_urls

    if (urls is None) == (query is None):
        raise UsageError(
            "The tenants come from --tenant-urls FILE or from --tenant-query SQL.", fix="Give one of them."
        )
    if schemas and query is not None:
        from rag_factory.migrate.creation import create_database

        # What all schemas share, made once and before any of them looks for it.
        for effect in create_database(work.target, work.project):
            say(f"created {effect}")
    if query is not None:
        return query_tenants(work.target, query, schemas=schemas), f"{work.target.place}\n{schemas}\n{query}"
    if schemas:
        raise UsageError("--tenant-schemas goes with --tenant-query.", fix="Give one, or leave it out.")
    path = work.root / str(urls)
    tenants, exposed = read_urls(path)
    if exposed:
        say(f"warning: {urls} holds passwords and other accounts may read it: chmod 600 {urls}")
    return tenants, str(path.resolve())


def _begin(state: StateFile, tenants: Sequence[Tenant], goal: str | None, *, resume: bool) -> list[Tenant]:
    """Open the record of this run. Returns whom it is for."""
    if not resume:
        state.begin(goal)
        return list(tenants)
    there = state.read(goal)
    todo = [tenant for tenant in tenants if tenant.name not in there]
    say(f"{len(tenants) - len(todo)} of {len(tenants)} tenants got there before; {len(todo)} to do")
    return todo


def _report(outcomes: Sequence[Outcome], *, json: bool) -> None:
    if json:
        show_json([asdict(outcome) for outcome in outcomes])
        return
    show_columns(
        (
            "failed" if outcome.error else "done",
            outcome.tenant,
            _path(outcome),
            f"{outcome.milliseconds:.0f} ms",
            outcome.error or "",
        )
        for outcome in outcomes
    )


def _path(outcome: Outcome) -> str:
    """From where to where: `001 to 002`, or where it stayed."""
    if outcome.before is None:
        return "not read"
    before = ", ".join(outcome.before) or "base"
    after = "unknown" if outcome.after is None else ", ".join(outcome.after) or "base"
    return after if before == after else f"{before} to {after}"


def _judge(outcomes: Sequence[Outcome], *, total: int) -> None:
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(outcomes) == total and not failed:
        say("All tenants are there" if total else "Nothing to do")
        return
    only_locks = all(one.exit_code == LockedError.exit_code for one in failed)
    raise (LockedError if only_locks else RagFactoryError)(
        f"{len(failed)} of {total} tenants failed; the others are there.",
        fix="When what stopped them is mended, run it again with --resume",
    )
