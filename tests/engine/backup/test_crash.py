"""db.backup and db.restore killed (SIGKILL) on the way: nothing half-made is left, and the next one works."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.migrate.backup.dump import back_up
from rag_factory.migrate.backup.folder import list_backups
from rag_factory.migrate.backup.manifest import DUMP, FILE, open_backup
from rag_factory.migrate.backup.restore import prepare
from rag_factory.migrate.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rag_factory.migrate.target import Target
    from tests.conftest import CommandLine

    Query = Callable[..., list[tuple[Any, ...]]]
    Session = psycopg.Connection[tuple[Any, ...]]

# Random, so that it can't be compressed: its dump takes some hundred milliseconds.
FILL = """
    CREATE TABLE kept AS SELECT n AS id, 'old' AS text, (
        SELECT string_agg(md5(n::text || m::text), '') FROM generate_series(1, 20) AS m) AS filling
    FROM generate_series(1, 10000) AS n;
    ALTER TABLE kept ADD PRIMARY KEY (id)
"""
WHOLE = "SELECT text, count(*), sum(length(filling)) FROM kept GROUP BY 1"
OURS = "SELECT FROM pg_stat_activity WHERE application_name LIKE 'rag-factory%'"
SCRATCH = "FROM pg_database WHERE datname LIKE 'rag_factory_scratch%'"


@contextlib.contextmanager
def _started(cli: CommandLine, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-m", "invoke", *arguments],
        cwd=cli.root,
        env={**kept, **cli.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until it is so, or the process has ended."""
    deadline = time.monotonic() + 60
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < deadline


def test_killed_backups_leave_nothing_under_a_good_name(
    cli: CommandLine, target: Target, project: Path, query: Query, server: Session
) -> None:
    query(FILL)
    folder = project / "backups"

    def unfinished(name: str = "") -> list[Path]:
        return [path / name for path in folder.glob(".unfinished-*") if (path / name).exists()]

    def dumping() -> bool:
        return any(path.stat().st_size > 100_000 for path in unfinished(DUMP))

    moments: tuple[Callable[[], object], ...] = (unfinished, dumping, lambda: unfinished(FILE))
    for moment in moments:
        with _started(cli, "db.backup") as process:
            _wait(moment, process)
            if moment is dumping:
                # One that is at work is left alone by another.
                (alive,) = unfinished()
                second = back_up(target, Project(project))
                assert alive.exists() or process.wait() == 0
                assert second.path.exists()
        for path in list_backups(folder):
            open_backup(path).verify()
        # pg_dump ends when nobody listens to it any more.
        _wait(lambda: not server.execute(OURS).fetchall())
    made = back_up(target, Project(project))
    assert unfinished() == []
    made.verify()


def test_backups_at_once_don_t_meet(cli: CommandLine, target: Target, project: Path, query: Query) -> None:
    query("CREATE TABLE kept (id int)")
    with _started(cli, "db.backup") as first, _started(cli, "db.backup") as second:
        assert (first.wait(60), second.wait(60)) == (0, 0)
    paths = list_backups(project / "backups")
    assert len(paths) == 2
    for path in paths:
        open_backup(path).verify()
    assert len(list((project / "backups").iterdir())) == 2
    assert target.url.database in paths[0].name


@pytest.mark.parametrize(
    "moment",
    [
        f"SELECT {SCRATCH}",
        "SELECT FROM pg_stat_progress_copy WHERE command = 'COPY FROM' AND tuples_processed > 0",
        "SELECT FROM pg_stat_activity WHERE query = 'ANALYZE' AND state = 'active'",
        "SELECT FROM pg_stat_activity WHERE query LIKE 'ALTER DATABASE % RENAME TO %'",
    ],
    ids=["created", "loading", "analyzing", "swapping"],
)
def test_killed_restores_leave_the_target_whole(
    cli: CommandLine, target: Target, project: Path, query: Query, server: Session, moment: str
) -> None:
    query(FILL)
    old = query(WHOLE)
    made = back_up(target, Project(project))
    query("UPDATE kept SET text = 'new'")
    new = query(WHOLE)
    with psycopg.connect(target.url.with_database("postgres").plain, autocommit=True) as watcher:
        with _started(cli, "db.restore", "--yes") as process:
            _wait(lambda: watcher.execute(moment.encode()).fetchall(), process)
        # Copying doesn't end with the process at once; the server ends the sessions of a database it drops.
        _wait(lambda: not server.execute(f"{OURS} AND datname = 'postgres'".encode()).fetchall())
    assert query(WHOLE) in (new, old)
    prepare(made, target, Project(project), no_owner=False).run(jobs=1, wait_seconds=10)
    assert query(WHOLE) == old
    assert server.execute(f"SELECT {SCRATCH}".encode()).fetchall() == []
