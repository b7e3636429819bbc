"""Checks of pgvector and its HNSW indexes."""

from __future__ import annotations

from rag_factory.migrate.inspection.finding import OURS, Check

# What a graph takes on disk, after pgvector's page layout: for each row an element (72 bytes and the vector)
# and its neighbours (4 bytes and 6 for each of 2m), both aligned to 8 with a line pointer of 4, on pages with
# 8,160 usable bytes. A row has further neighbours with a probability of 1/m, which is left out.
_GRAPHS = f"""
    WITH graphs AS (
        SELECT format('%%I.%%I', n.nspname, c.relname) AS name,
               format('%%I.%%I', n.nspname, t.relname) AS of_table,
               c.relpages::bigint * current_setting('block_size')::int AS size, c.reltuples AS rows, t.oid,
               (72 + 8 + CASE y.typname WHEN 'vector' THEN 4 * a.atttypmod WHEN 'halfvec' THEN 2 * a.atttypmod
                         WHEN 'bit' THEN a.atttypmod / 8 END + 12) & ~7 AS element,
               (4 + 12 * coalesce((SELECT option_value::int FROM pg_options_to_table(c.reloptions)
                                   WHERE option_name = 'm'), 16) + 12) & ~7 AS neighbours
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_am AS am ON am.oid = c.relam AND am.amname = 'hnsw'
        JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_class AS t ON t.oid = i.indrelid
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = 1
        JOIN pg_type AS y ON y.oid = a.atttypid
        WHERE i.indisvalid AND c.relkind = 'i' AND {OURS}
    ), measured AS (
        SELECT *, rows * CASE WHEN element + neighbours > 8160 THEN 8192 + neighbours
                         ELSE 8192 / (8160 / (element + neighbours)) END AS expected
        FROM graphs
    )
"""

BEYOND_MEMORY = Check(
    "HNSW larger than memory",
    "warning",
    "searches read it from disk, in no order",
    f"""{_GRAPHS}
    SELECT name, format('%%s, shared_buffers %%s', pg_size_pretty(size), current_setting('shared_buffers')),
           'raise shared_buffers, or index it as halfvec, in half the room', false
    FROM measured WHERE size > pg_size_bytes(current_setting('shared_buffers')) ORDER BY size DESC
    """,
)

BEYOND_BUILD_MEMORY = Check(
    "HNSW larger than its build's memory",
    "note",
    "built anew, it gets many times slower once the graph outgrows that",
    f"""{_GRAPHS}
    SELECT name, format('%%s, maintenance_work_mem %%s', pg_size_pretty(size),
                        current_setting('maintenance_work_mem')),
           format('SET maintenance_work_mem = ''%%sMB'' before it is built anew',
                  ceil(size * 1.2 / 1024 / 1024)), false
    FROM measured WHERE size > pg_size_bytes(current_setting('maintenance_work_mem')) ORDER BY size DESC
    """,
)

BLOATED = Check(
    "HNSW bloated",
    "warning",
    "deleted entries keep their room, and searches walk through it",
    f"""{_GRAPHS}
    SELECT name, format('%%s for %%s rows, %%s would do', pg_size_pretty(size), rows::bigint,
                        pg_size_pretty(expected::bigint)),
           'REINDEX INDEX CONCURRENTLY ' || name, false
    FROM measured WHERE rows >= 0 AND size >= %(index_bytes)s AND size > expected * %(bloat_factor)s
    ORDER BY size DESC
    """,
)

DEAD_ROWS = Check(
    "HNSW with dead rows",
    "warning",
    "a search spends its candidates on them and finds fewer rows",
    f"""{_GRAPHS}
    SELECT name, format('%%s of %%s rows are dead', s.n_dead_tup, s.n_live_tup + s.n_dead_tup),
           'VACUUM ' || of_table, false
    FROM measured JOIN pg_stat_all_tables AS s ON s.relid = measured.oid
    WHERE s.n_dead_tup >= %(dead_rows)s
      AND s.n_dead_tup > (s.n_live_tup + s.n_dead_tup) * %(dead_share)s::float
    ORDER BY s.n_dead_tup DESC
    """,
)

VERSION = Check(
    "pgvector out of date",
    "warning",
    "the server's library is newer than what the database says of it",
    """
    WITH found AS (
        SELECT e.extversion, a.default_version, string_to_array(e.extversion, '.')::int[] AS installed,
               string_to_array(a.default_version, '.')::int[] AS available,
               string_to_array(%(minimum_pgvector)s, '.')::int[] AS minimum
        FROM pg_extension AS e LEFT JOIN pg_available_extensions AS a ON a.name = e.extname
        WHERE e.extname = 'vector' AND e.extversion ~ '^[0-9.]+$'
    )
    SELECT 'extension vector', format('%%s; the server has %%s, the project asks for %%s', extversion,
                                      default_version, %(minimum_pgvector)s::text),
           CASE WHEN available > installed THEN 'ALTER EXTENSION vector UPDATE'
                ELSE 'upgrade pgvector on the server' END,
           available > installed
    FROM found WHERE installed < available OR installed < minimum
    """,
)

CHECKS = (VERSION, BEYOND_MEMORY, BEYOND_BUILD_MEMORY, BLOATED, DEAD_ROWS)
