"""How far an index is, read by a second session while the first one builds it."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from rag_factory.migrate.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from rag_factory.migrate.operations.steps import Steps

_POLL_SECONDS = 0.5
# Blocks where the table is read, tuples where they are sorted into the index.
_PROGRESS = text("""
    SELECT phase, CASE WHEN blocks_total > 0 THEN blocks_done ELSE tuples_done END,
           CASE WHEN blocks_total > 0 THEN blocks_total ELSE tuples_total END
    FROM pg_stat_progress_create_index WHERE pid = :pid
""")


@contextmanager
def index_progress(steps: Steps, name: str) -> Iterator[None]:
    """Tell how far the build in the body is, if anybody wants to know."""
    connection = steps.context.connection
    if steps.on_progress is None or connection is None or steps.offline:
        yield
        return
    pid = steps.session.one("SELECT pg_backend_pid()")
    done = Event()
    arguments = (connection.engine, pid, name, steps.on_progress, done)
    thread = Thread(target=_watch, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    steps.on_progress(Progress(f"index {name}", 1, 1))


def _watch(engine: Engine, pid: int, name: str, on_progress: Callable[[Progress], None], done: Event) -> None:
    try:
        # In autocommit: the build would wait for a transaction of ours.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as session:
            while not done.wait(_POLL_SECONDS):
                row = session.execute(_PROGRESS, {"pid": pid}).first()
                if row is not None:
                    phase, count, total = row
                    on_progress(Progress(f"index {name}: {phase}", count, total or None))
    except SQLAlchemyError:
        # It is only a picture of the work: no connection left, or a driver that can't have two threads.
        return
