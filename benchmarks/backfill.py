"""Race a backfill against one UPDATE over all rows and against LIMIT/OFFSET batches.

Works on an embedded server in a temporary folder. Run it: uv run python benchmarks/backfill.py
"""

from __future__ import annotations

import time
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks.places import temporary_folder
from benchmarks.spine import database_url
from benchmarks.timing import Comparison, Figure, describe_machine, parse_arguments, progress, report
from rag_factory.migrate.backfill import Backfill
from rag_factory.migrate.session import Session
from rag_factory.server import EmbeddedServer, find_binaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGES = ("psycopg", "sqlalchemy")
FEW, MANY = 100_000, 1_000_000
KEYS = {"bigint": ("bigint", "g"), "uuid": ("uuid", "gen_random_uuid()")}
OFFSET_ROWS = 10_000
CHANGE = "filled = body"
Connection = psycopg.Connection[Any]


def main() -> None:
    arguments = parse_arguments(__doc__, tuple(KEYS))
    with database() as connection:
        figures = [measure(connection, key, arguments.repeat) for key in arguments.only]
    machine = describe_machine(PACKAGES, PostgreSQL=find_binaries().version)
    report(machine, figures, as_json=arguments.json)


def measure(connection: Connection, key: str, rounds: int) -> Figure:
    """Time each way of filling a column of a million rows, and ours on a tenth of them."""
    one, ours, few = "one UPDATE", "backfill", f"backfill of {FEW:,} rows, 10 times"
    offset = f"LIMIT/OFFSET by {OFFSET_ROWS:,}"
    milliseconds: dict[str, list[float]] = {one: [], ours: [], few: [], offset: []}
    for number in range(rounds + 1):
        progress(f"{key}: round {number} of {rounds}")
        seconds = {
            one: timed(connection, key, MANY, update_at_once),
            ours: timed(connection, key, MANY, backfill),
            few: 10 * timed(connection, key, FEW, backfill),
        }
        if number in {0, 1}:
            # It takes minutes, and far more than the difference between two runs of it.
            seconds[offset] = timed(connection, key, MANY, update_by_offset) if number else 0.0
        for rival, value in seconds.items():
            if number:
                milliseconds[rival].append(value * 1000)
    comparisons = [Comparison(ours, one, 1 / 0.7), Comparison(ours, few, 1.5), Comparison(ours, offset, 0.2)]
    return Figure(f"A million rows, key {key}", milliseconds, comparisons)


def timed(connection: Connection, key: str, rows: int, work: Callable[[Connection], None]) -> float:
    """Make the table anew and time the work on it, from a checkpoint on."""
    type_, value = KEYS[key]
    connection.execute("DROP TABLE IF EXISTS documents")
    connection.execute(f"CREATE TABLE documents (id {type_}, body text, filled text)")
    connection.execute(
        f"INSERT INTO documents (id, body) SELECT {value}, md5(g::text) FROM generate_series(1, {rows}) AS g"
    )
    connection.execute("ALTER TABLE documents ADD PRIMARY KEY (id)")
    connection.execute("VACUUM (ANALYZE, FREEZE) documents")
    connection.execute("CHECKPOINT")
    began = time.perf_counter()
    work(connection)
    seconds = time.perf_counter() - began
    left = connection.execute("SELECT count(*) FROM documents WHERE filled IS DISTINCT FROM body").fetchone()
    if left != (0,):
        raise RuntimeError(f"{left} rows are left")
    return seconds


def update_at_once(connection: Connection) -> None:
    """What nobody should do to a table in use."""
    connection.execute(f"UPDATE documents SET {CHANGE}")


def backfill(connection: Connection) -> None:
    """What op.backfill does; its own memory may not grow with the table."""
    work = Backfill("benchmark", "documents", CHANGE, where="filled IS NULL")
    session = Session.of_driver(connection)
    tracemalloc.start()
    work.run(session)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if most > 10 * 2**20:
        raise RuntimeError(f"The backfill took {most} bytes")
    work.forget(session)


def update_by_offset(connection: Connection) -> None:
    """The batches that are found most often."""
    for first in range(0, MANY, OFFSET_ROWS):
        connection.execute(
            f"UPDATE documents SET {CHANGE} WHERE id IN "
            f"(SELECT id FROM documents ORDER BY id LIMIT {OFFSET_ROWS} OFFSET {first})"
        )


@contextmanager
def database() -> Iterator[Connection]:
    """A database on a server of its own."""
    with temporary_folder() as folder:
        server = EmbeddedServer(folder / "server")
        address = server.ensure_running()
        try:
            with psycopg.connect(database_url(address, "postgres").plain, autocommit=True) as connection:
                connection.execute("SET max_parallel_workers_per_gather = 0")
                yield connection
        finally:
            server.stop()


if __name__ == "__main__":
    main()
