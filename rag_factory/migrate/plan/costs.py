"""How long work takes on a table of a certain size: figures of a small server, on the slow side.

Measured on 2 cores, PostgreSQL 18.6 with default settings and fsync off, a million rows of 250 bytes, cached.
What a server reads from a disk or a cloud volume is slower, and so the rate of reading here is a disk's.
A bigger machine may be several times as fast: "about 4 minutes" is meant to tell a coffee from a night.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rag_factory.migrate.plan.live import Live, Size
    from rag_factory.migrate.plan.messages import Build, Work

READ_BYTES_PER_SECOND = 200_000_000  # measured 2,000 MB/s cached
REWRITE_BYTES_PER_SECOND = 50_000_000  # measured 73 MB/s, with its two indexes
# Rows into an index, by its method. Measured: btree 0.7 million (texts) to 4 million (integers), gin 7,500
# rows of 2 kB text.
INDEX_ROWS_PER_SECOND = {
    "btree": 700_000,
    "hash": 700_000,
    "brin": 5_000_000,
    "gist": 50_000,
    "spgist": 50_000,
    "gin": 10_000,
}
# Graphs and lists cost by dimension. Measured: hnsw (m 16, ef_construction 64) 2.2 to 2.8 million dimensions
# a second, ivfflat 14 million.
VECTOR_DIMENSIONS_PER_SECOND = {"hnsw": 2_000_000, "ivfflat": 10_000_000}
HNSW_GRAPH_BYTES_PER_ROW = 200  # beside the vector itself: neighbours of m = 16
FOREIGN_KEY_ROWS_PER_SECOND = 2_000_000  # measured 8.8 million cached
WRITE_ROWS_PER_SECOND = 50_000  # UPDATE with two indexes; measured 64,000
DELETE_ROWS_PER_SECOND = 250_000  # measured 300,000, no foreign key pointing at it


def work_seconds(work: Work, live: Live, names: dict[int, str]) -> float:
    """How long the live server is at this work. names: of the tables in the live database, by oid."""
    total = 0.0
    for oid in work.verified:
        total += live.size(names.get(oid, "")).heap_bytes / READ_BYTES_PER_SECOND
    for oid in work.rewritten:
        total += live.size(names.get(oid, "")).table_bytes / REWRITE_BYTES_PER_SECOND
    for build in work.built:
        total += build_seconds(build, live.size(names.get(build.table, "")))
    for table, other in work.checked:
        size = live.size(names.get(table, ""))
        both = size.heap_bytes + live.size(names.get(other, "")).heap_bytes
        total += both / READ_BYTES_PER_SECOND + size.rows / FOREIGN_KEY_ROWS_PER_SECOND
    return total


def build_seconds(build: Build, size: Size) -> float:
    """How long an index takes: the table is read once, and each row put in."""
    dimensions = max(build.dimensions, 1)
    if build.method in VECTOR_DIMENSIONS_PER_SECOND:
        rate = VECTOR_DIMENSIONS_PER_SECOND[build.method] / dimensions
        return size.table_bytes / READ_BYTES_PER_SECOND + size.rows / rate
    # A full-text or document index reads the long values too.
    read = size.table_bytes if build.method == "gin" else size.heap_bytes
    return read / READ_BYTES_PER_SECOND + size.rows / INDEX_ROWS_PER_SECOND.get(build.method, 50_000)


def written_seconds(rows: int, head: str) -> float:
    """How long it takes to write so many rows."""
    return rows / (DELETE_ROWS_PER_SECOND if head == "DELETE" else WRITE_ROWS_PER_SECOND)


def graph_bytes(rows: int, dimensions: int, bytes_per_dimension: int) -> int:
    """The memory that an HNSW graph needs to be built at full speed."""
    return rows * (dimensions * bytes_per_dimension + HNSW_GRAPH_BYTES_PER_ROW)
