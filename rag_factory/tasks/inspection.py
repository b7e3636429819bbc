"""`db.*` to look inside: who waits for whom, what is wrong, and how the schema looks."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rag_factory.errors import DriftError, LeftOversError, UsageError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import say, show, show_json
from rag_factory.tasks.texts import DATABASE, DEFAULT_WAIT, JSON, WAIT, YES, seconds, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rag_factory.migrate.inspection.doctor import Examination
    from rag_factory.migrate.inspection.finding import Finding
    from rag_factory.migrate.inspection.locks import Place, Session
    from rag_factory.tasks.workspace import Workspace

WATCH_SECONDS = 1.0
DIAGRAM_FILE = "docs/database/SCHEMA.md"
_QUERY_LENGTH = 100


@command(
    "locks",
    watch="Show them until Ctrl-C; off a terminal, each time they change.",
    cancel="Cancel the statement of the session with this pid.",
    terminate="End the session with this pid.",
    yes=YES,
    database=DATABASE,
    json=JSON,
)
def locks(
    work: Workspace,
    watch: bool = False,
    cancel: str | None = None,
    terminate: str | None = None,
    yes: bool = False,
    database: str | None = None,
    json: bool = False,
) -> None:
    """Show who waits for whose lock, as a tree."""
    if sum((watch, cancel is not None, terminate is not None)) > 1:
        raise UsageError("--watch, --cancel and --terminate exclude each other.", fix="Give one of them.")
    if cancel is not None:
        _end(work, whole_number(cancel, "--cancel"), terminate=False, yes=yes, database=database)
    elif terminate is not None:
        _end(work, whole_number(terminate, "--terminate"), terminate=True, yes=yes, database=database)
    elif watch:
        try:
            _watch(work, json=json)
        except KeyboardInterrupt:
            return  # the way to end it
    else:
        sessions = next(_read_again_and_again(work))
        if json:
            show_json(_locks_data(work, sessions))
        elif sessions:
            show("\n".join(_tree(sessions)))
        else:
            say(_nobody_waits(work))


@command(
    "doctor",
    fix="Run the fixes that are safe on tables in use.",
    yes=YES,
    database=DATABASE,
    wait=WAIT,
    json=JSON,
)
def doctor(
    work: Workspace,
    fix: bool = False,
    yes: bool = False,
    database: str | None = None,
    wait: str = DEFAULT_WAIT,
    json: bool = False,
) -> None:
    """Find what is wrong with the database, and fixes."""
    from rag_factory.migrate.guard import find_protection
    from rag_factory.migrate.inspection.doctor import examine, mend
    from rag_factory.migrate.inspection.finding import Limits

    wait_seconds = seconds(wait, "--wait")
    limits = Limits(minimum_pgvector=work.project.minimum_pgvector)
    found = examine(work.target, limits)
    fixes = [finding for finding in found.findings if finding.safe]
    failed: dict[Finding, str] = {}
    if fix and fixes:
        # What is safe needs no confirmation, except where nothing happens without one.
        effect = f"This runs on {work.target.place}: {'; '.join(finding.fix for finding in fixes)}"
        work.confirm(effect, yes=yes or not find_protection(work.target), database=database)
        problems = mend(work.target, work.project, fixes, wait_seconds=wait_seconds, tell=say)
        failed = {finding: str(problem) for finding, problem in problems.items()}
        found = examine(work.target, limits)
    if json:
        show_json(_doctor_data(work, found, failed))
    else:
        _show_findings(found)
    if found.left_overs:
        count = len(found.left_overs)
        raise LeftOversError(
            f"{work.target.place} has {count} left-over{'s' if count > 1 else ''} of an earlier run.",
            fix="Run the fixes above" if fix else "Mend what can be mended: invoke db.doctor --fix",
        )
    if not found.findings:
        say(f"Nothing is wrong with {work.target.place}")


@command(
    "diagram",
    file=f"The file that keeps it ({DIAGRAM_FILE}).",
    check="Write nothing; fail when the file is not up to date.",
    revisions="Print the revisions instead, each after what it stands on.",
)
def diagram(work: Workspace, file: str = DIAGRAM_FILE, check: bool = False, revisions: bool = False) -> None:
    """Draw the models' tables into the documentation."""
    from rag_factory.migrate.inspection.diagram import draw_revisions, draw_tables, place_diagram

    if revisions:
        show(draw_revisions(work.history))
        return
    path = work.root / file
    before, after = place_diagram(path, draw_tables(work.project))
    if before == after:
        say(f"{file} is up to date")
    elif check:
        from difflib import unified_diff

        lines = unified_diff(before.splitlines(), after.splitlines(), file, "the models", lineterm="", n=1)
        show("\n".join(lines))
        raise DriftError(f"{file} is not up to date with the models.", fix="Draw it anew: invoke db.diagram")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(after, encoding="utf-8")
        say(f"wrote {file}")


TASKS = (locks, doctor, diagram)


def _end(work: Workspace, pid: int, *, terminate: bool, yes: bool, database: str | None) -> None:
    from rag_factory.database.driver import connect
    from rag_factory.migrate.guard import find_protection
    from rag_factory.migrate.inspection.locks import end_session, find_session

    with connect(
        work.target.url, connect_timeout_seconds=work.config.db_connect_timeout_seconds
    ) as connection:
        found = find_session(connection, pid, work.target)
        what = "ends the session" if terminate else "cancels the statement of the session"
        who = f"user {found.user}, {found.application}, {found.state}"
        effect = f"This {what} {pid} on {work.target.place} ({who})"
        # Who names a pid has chosen; only where nothing happens without the database's name is it asked for.
        work.confirm(effect, yes=yes or not find_protection(work.target), database=database)
        say(end_session(connection, found, work.target, terminate=terminate))


def _read_again_and_again(work: Workspace) -> Iterator[list[Session]]:
    """Read the waits, over one connection, whenever they are asked for."""
    import psycopg

    from rag_factory.database.driver import connect, translate
    from rag_factory.migrate.inspection.locks import read_waits

    timeout = work.config.db_connect_timeout_seconds
    with connect(work.target.url, connect_timeout_seconds=timeout) as connection:
        while True:
            try:
                yield read_waits(connection)
            except psycopg.Error as error:
                raise translate(error, work.target.url) from error


def _watch(work: Workspace, *, json: bool) -> None:
    if sys.stdout.isatty() and not json:
        _watch_on_terminal(work)
    before: Any = None
    for sessions in _read_again_and_again(work):
        # Times always change.
        now = [(one.pid, one.state, one.query, one.waits_for, one.blocked_by) for one in sessions]
        if now != before:
            if json:
                show_json(_locks_data(work, sessions))
            else:
                show("\n".join(_tree(sessions)) or _nobody_waits(work))
        before = now
        time.sleep(WATCH_SECONDS)


def _watch_on_terminal(work: Workspace) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=True) as live:
        for sessions in _read_again_and_again(work):
            lines = _tree(sessions) or [_nobody_waits(work)]
            live.update(Text("\n".join([*lines, "", "Ctrl-C ends"]), no_wrap=True), refresh=True)
            time.sleep(WATCH_SECONDS)


def _nobody_waits(work: Workspace) -> str:
    return f"No session waits for a lock on {work.target.place}"


def _tree(sessions: list[Session]) -> list[str]:
    from rag_factory.migrate.inspection.locks import arrange

    return [_line(place) for place in arrange(sessions)]


def _line(place: Place) -> str:
    """One session, further to the right the more others it waits for."""
    from rag_factory.migrate.inspection.locks import PREPARED

    one = place.session
    indent = "   " * (place.depth - 1) + "└─ " if place.depth else ""
    if place.again:
        return f"{indent}{one.pid}, as above"
    if one.pid == PREPARED:
        return f"{indent}prepared transactions {one.state} of {one.user}, {_age(one.transaction_seconds)} old"
    parts = [str(one.pid), one.user, one.application, one.state]
    if one.transaction_seconds is not None:
        parts.append(f"transaction {_age(one.transaction_seconds)}")
    if one.waits_for:
        parts.append(f"waits {_age(one.waiting_seconds or 0)} for {one.waits_for}")
    query = one.query.strip().partition("\n")[0][:_QUERY_LENGTH]
    return f"{indent}{'  '.join(part for part in parts if part)}" + (f"  | {query}" if query else "")


def _age(age_seconds: float | None) -> str:
    whole = round(age_seconds or 0)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _locks_data(work: Workspace, sessions: list[Session]) -> dict[str, Any]:
    """The sessions in the order of the tree, each once."""
    from rag_factory.migrate.inspection.locks import arrange

    places = [place for place in arrange(sessions) if not place.again]
    return {
        "database": work.target.url.database,
        "sessions": [asdict(place.session) | {"depth": place.depth} for place in places],
    }


def _show_findings(found: Examination) -> None:
    for finding in found.findings:
        show(f"{finding.severity}: {finding.check}: {finding.where}: {finding.value}")
        show(f"    {finding.why}")
        show(f"    fix: {finding.fix}")
    for check, reason in found.unseen:
        say(f"warning: could not look for {check}: {reason}")


def _doctor_data(work: Workspace, found: Examination, failed: dict[Finding, str]) -> dict[str, Any]:
    return {
        "database": work.target.url.database,
        "findings": [asdict(finding) for finding in found.findings],
        "left_overs": len(found.left_overs),
        "failed_fixes": [{"fix": finding.fix, "error": error} for finding, error in failed.items()],
        "unseen": [{"check": check, "reason": reason} for check, reason in found.unseen],
    }
