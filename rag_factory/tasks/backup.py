"""`db.*` on backups: make them, list them, restore one, rehearse a migration on one."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rag_factory.errors import DriftError, RagFactoryError, UsageError
from rag_factory.tasks.command import command
from rag_factory.tasks.output import human_size, progress_bar, say, show, show_columns, show_json
from rag_factory.tasks.texts import (
    DATABASE,
    DEFAULT_WAIT,
    DEFAULT_WAIT_SECONDS,
    JSON,
    WAIT,
    YES,
    seconds,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rag_factory.migrate.backup.manifest import Backup, Manifest
    from rag_factory.migrate.backup.rehearsal import Rehearsal, RevisionTimes
    from rag_factory.migrate.backup.restore import Restoration
    from rag_factory.tasks.workspace import Workspace

BACKUP = "The backup's name (the newest one of the database)."
JOBS = "How many tables to {} at a time ({})."
# Where the machine has as many processors: more gain little, and leave the server none for others.
MOST_JOBS = 4


@command(
    "backup",
    jobs=JOBS.format("dump", 1),
    keep="How many backups of this database to keep; 0: all (BACKUPS_KEPT).",
    wait=f"Seconds to wait for tables that are locked ({DEFAULT_WAIT}).",
    json=JSON,
)
def backup(
    work: Workspace,
    jobs: str = "1",
    keep: str | None = None,
    wait: str = DEFAULT_WAIT,
    json: bool = False,
) -> None:
    """Back the database up, bound to its revision."""
    count, wait_seconds = whole_number(jobs, "--jobs"), seconds(wait, "--wait")
    kept = None if keep is None else 0 if keep == "0" else whole_number(keep, "--keep")
    made = make_backup(work, jobs=count, keep=kept, wait_seconds=wait_seconds)
    if json:
        show_json(_describe(made.path, made))
    else:
        show(made.name)


@command("backups", verify="Read them, and check their sums.", json=JSON)
def backups(work: Workspace, verify: bool = False, json: bool = False) -> None:
    """List the backups, newest first."""
    from rag_factory.migrate.backup.folder import list_backups
    from rag_factory.migrate.backup.manifest import open_backup

    folder = _folder(work)
    rows: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    problems: list[RagFactoryError] = []
    for path in list_backups(folder):
        try:
            found = open_backup(path)
            found.verify() if verify else found.check_files()
        except RagFactoryError as problem:
            problems.append(problem)
            data.append(_describe(path, None, str(problem), verified=False))
            rows.append((path.name, "", "", "", "", "damaged"))
            continue
        data.append(_describe(path, found, verified=verify))
        rows.append(_row(found, "verified" if verify else "complete"))
    if json:
        show_json(data)
    elif rows:
        show_columns([("backup", "revision", "age", "size", "rows", "state"), *rows])
    else:
        say(f"There is no backup in {folder}. Make one: invoke db.backup")
    for each in problems:
        say(each.what)
    if problems:
        count = f"{len(problems)} backup{' is' if len(problems) == 1 else 's are'} damaged."
        raise RagFactoryError(count, fix="Remove what can't be used any more, and make a new one.")


@command(
    "restore",
    backup=BACKUP,
    into="The database to restore into (the one of the settings).",
    no_owner="Leave owners and grants out: all belongs to the role that restores.",
    jobs=JOBS.format("restore", "one a processor, up to 4"),
    yes=YES,
    database=DATABASE,
    wait=WAIT,
)
def restore(
    work: Workspace,
    backup: str | None = None,
    into: str | None = None,
    no_owner: bool = False,
    jobs: str | None = None,
    yes: bool = False,
    database: str | None = None,
    wait: str = DEFAULT_WAIT,
) -> None:
    """Restore a backup, into the same or another database."""
    from rag_factory.migrate.backup.restore import prepare
    from rag_factory.migrate.guard import confirm
    from rag_factory.tasks.output import asker

    count, wait_seconds = _jobs(jobs), seconds(wait, "--wait")
    target = work.target
    found = _find(work, backup)
    if into is not None:
        target = replace(target, url=target.url.with_database(_checked_name(into)))
    plan = prepare(found, target, work.project, no_owner=no_owner)
    if plan.needs_confirmation:
        confirm(target, _effect(plan), yes=yes, database=database, ask=asker())
    say(f"restoring {found.name} into {target.place}")
    with _bar("restoring, %") as on_progress:
        done = plan.run(jobs=count, wait_seconds=wait_seconds, on_wait=say, on_progress=on_progress)
    say(f"restored {_describe_rows(found)}, as its manifest says, in {done.seconds:.1f} s")
    say(f"{target.place} is at {_revisions(found.manifest)}")
    for setting in done.refused:
        say(f"warning: a setting of the database could not be given to it: {setting}")
    if done.kept_as is not None:
        name = done.kept_as.replace('"', '""')
        say(f'the former database is kept as {done.kept_as}; drop it: DROP DATABASE "{name}"')


@command("rehearse", backup=BACKUP, jobs=JOBS.format("restore", "one a processor, up to 4"), json=JSON)
def rehearse(work: Workspace, backup: str | None = None, jobs: str | None = None, json: bool = False) -> None:
    """Try the pending revisions on a restored backup."""
    from rag_factory.migrate.backup.rehearsal import rehearse

    count = _jobs(jobs)
    found = _find(work, backup)
    say(f"restoring {found.name} into a scratch database")
    with _bar("restoring, %") as on_progress:
        done = rehearse(found, work.target, work.project, work.history, jobs=count, on_progress=on_progress)
    if json:
        show_json(_rehearsal_data(done))
    elif done.times:
        show_columns([("revision", "", "up", "down", "up again"), *map(_times_row, done.times)])
    say(f"restored {_describe_rows(found)} in {done.restore_seconds:.1f} s")
    if done.differences:
        for line in done.differences:
            say(line)
        raise DriftError(
            f"Going down and up again leaves {len(done.differences)} differences: they are above.",
            fix="Correct the downgrade that leaves them, or know that it can't bring everything back.",
        )
    same = "schema and rows are the same after going down, and after going up again"
    say(same if done.times else "nothing is pending: only the restore was rehearsed")


TASKS = (backup, backups, restore, rehearse)


def make_backup(
    work: Workspace, *, jobs: int = 1, keep: int | None = None, wait_seconds: float = DEFAULT_WAIT_SECONDS
) -> Backup:
    """Back the database up, then remove the backups beyond those to keep, telling the user.

    keep: how many of this database stay; 0: all; None: BACKUPS_KEPT.
    Raises BackupError: nothing was written.
    """
    from rag_factory.migrate.backup.dump import back_up
    from rag_factory.migrate.backup.folder import prune

    with _bar("backing up, %") as on_progress:
        made = back_up(
            work.target, work.project, jobs=jobs, wait_seconds=wait_seconds, on_progress=on_progress
        )
    size, took = human_size(made.manifest.size_bytes), made.manifest.seconds
    say(f"backed up {work.target.place}: {_describe_rows(made)}, {size}, {took:.1f} s")
    say(f"wrote {_shown(work, made.path)}")
    try:
        for name in prune(made, work.config.backups_kept if keep is None else keep):
            say(f"removed {name}")
    except OSError as error:
        # The backup itself is good, and what waits for it may go on.
        say(f"warning: old backups can't be removed: {error.filename}: {error.strerror}")
    return made


@contextmanager
def _bar(what: str) -> Iterator[Callable[[float], None]]:
    """A progress bar over 100 %, told the part that is done."""
    with progress_bar(what, 100) as tell:
        yield lambda part: tell(int(part * 100))


def _folder(work: Workspace) -> Path:
    from rag_factory.migrate.target import anchored

    return anchored(work.config, work.config.backup_folder)


def _find(work: Workspace, name: str | None) -> Backup:
    from rag_factory.migrate.backup.folder import find_backup

    return find_backup(_folder(work), name, work.target.url.database)


def _checked_name(name: str) -> str:
    """A database's name, if it can be one: PostgreSQL would cut it without a word."""
    from rag_factory.migrate.target import NAME_LIMIT_BYTES

    if not name or len(name.encode()) > NAME_LIMIT_BYTES:
        raise UsageError(f"--into is {name!r}, and must be a name of 1 to {NAME_LIMIT_BYTES} bytes.")
    return name


def _jobs(text: str | None) -> int:
    if text is not None:
        return whole_number(text, "--jobs")
    return min(MOST_JOBS, os.cpu_count() or 1)


def _effect(plan: Restoration) -> str:
    """What a restore does to the database that is there."""
    content = plan.content
    assert content is not None  # noqa: S101 - else nothing is to be confirmed
    effect = f"This replaces the database {plan.target.place}"
    if not content.empty:
        things = "table, view or sequence" if content.relations == 1 else "tables, views and sequences"
        effect += f" ({content.relations} {things}, {human_size(content.size_bytes)})"
    effect += f" by the backup {plan.backup.name}"
    if plan.sessions:
        effect += f", and ends {plan.sessions} session{'' if plan.sessions == 1 else 's'} on it"
    return effect


def _row(backup: Backup, state: str) -> tuple[str, ...]:
    manifest = backup.manifest
    age, size = _age(manifest.age_seconds), human_size(manifest.size_bytes)
    return (backup.name, _revisions(manifest), age, size, f"{manifest.row_count:,}", state)


def _revisions(manifest: Manifest) -> str:
    return ", ".join(manifest.revisions) or "base"


def _describe(path: Path, backup: Backup | None, problem: str | None = None, **more: Any) -> dict[str, Any]:
    """A backup for a machine. problem: why it can't be relied on."""
    described: dict[str, Any] = {"name": path.name, "path": str(path), "problem": problem, **more}
    if backup is not None:
        manifest = backup.manifest
        described |= {"size_bytes": manifest.size_bytes, "row_count": manifest.row_count, **manifest.data()}
        del described["settings"]  # some keep secrets there, and this may end in a log
    return described


def _describe_rows(backup: Backup) -> str:
    rows, tables = backup.manifest.row_count, backup.manifest.table_count
    return f"{rows:,} row{'' if rows == 1 else 's'} in {tables} table{'' if tables == 1 else 's'}"


def _times_row(times: RevisionTimes) -> tuple[str, ...]:
    milliseconds = (f"{way:.0f} ms" for way in (times.up, times.down, times.up_again))
    return (times.revision.id, times.revision.message, *milliseconds)


def _rehearsal_data(done: Rehearsal) -> dict[str, Any]:
    ways = ("up", "down", "up_again")
    return {
        "backup": done.backup.name,
        "restore_seconds": round(done.restore_seconds, 3),
        "row_count": done.backup.manifest.row_count,
        "revisions": [
            {"id": one.revision.id, "message": one.revision.message}
            | {f"{way}_ms": round(getattr(one, way), 1) for way in ways}
            for one in done.times
        ],
        "differences": list(done.differences),
    }


def _age(age_seconds: float) -> str:
    """How old something is, as people say it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_seconds >= length:
            return f"{age_seconds / length:.0f} {unit}"
    return f"{max(0, age_seconds):.0f} s"


def _shown(work: Workspace, path: Path) -> str:
    """A path as seen from the project."""
    return str(path.relative_to(work.root)) if path.is_relative_to(work.root) else str(path)
