"""Checks of what goes on: transactions, replication, and what vacuum and analyze have left undone."""

from __future__ import annotations

from rag_factory.migrate.inspection.finding import OURS, Check

TRANSACTIONS = Check(
    "long transaction",
    "warning",
    "its locks are held, and nothing that died since can be vacuumed",
    """
    SELECT 'pid ' || pid, format('%%s for %%s s, user %%s, %%s: %%s', state,
               extract(epoch FROM clock_timestamp() - xact_start)::int, usename,
               coalesce(nullif(application_name, ''), 'unnamed'),
               left(split_part(ltrim(query, E' \\n\\t'), E'\\n', 1), 80)),
           format('invoke db.locks --%%s %%s',
                  CASE state WHEN 'active' THEN 'cancel' ELSE 'terminate' END, pid),
           false
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
      AND xact_start IS NOT NULL
      AND (extract(epoch FROM clock_timestamp() - xact_start) >= %(transaction_seconds)s
           OR state LIKE 'idle in transaction%%' AND
              extract(epoch FROM clock_timestamp() - state_change) >= %(idle_in_transaction_seconds)s)
    ORDER BY xact_start
    """,
)

PREPARED_TRANSACTIONS = Check(
    "prepared transaction",
    "warning",
    "it outlives its session and a restart, with all its locks",
    """
    SELECT gid, format('by %%s, %%s s ago', owner, extract(epoch FROM clock_timestamp() - prepared)::int),
           format('ROLLBACK PREPARED %%L, or COMMIT PREPARED', gid), false
    FROM pg_prepared_xacts
    WHERE database = current_database()
      AND extract(epoch FROM clock_timestamp() - prepared) >= %(prepared_seconds)s
    ORDER BY prepared
    """,
)

REPLICATION_SLOTS = Check(
    "inactive replication slot",
    "warning",
    "the server keeps all WAL since, until its disk is full",
    """
    SELECT slot_name, format('holds %%s of WAL for nobody', pg_size_pretty(held)),
           format('SELECT pg_drop_replication_slot(%%L), if its reader will not come back', slot_name), false
    FROM (
        SELECT slot_name, pg_wal_lsn_diff(
            CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
            restart_lsn) AS held
        FROM pg_replication_slots WHERE NOT active
    ) AS slots
    WHERE held >= %(slot_bytes)s ORDER BY held DESC
    """,
)

WRAPAROUND = Check(
    "transaction ids run out",
    "warning",
    "at the end the server refuses every write until it is vacuumed",
    f"""
    WITH ages AS (
        SELECT kind, used FROM pg_database,
            LATERAL (VALUES ('transaction ids', age(datfrozenxid)), ('multixact ids', mxid_age(datminmxid)))
                AS ids (kind, used)
        WHERE datname = current_database()
    ), oldest AS (
        SELECT format('%%I.%%I', n.nspname, c.relname) AS name
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'm') AND {OURS} ORDER BY age(c.relfrozenxid) DESC LIMIT 1
    )
    SELECT current_database()::text, format('%%s million of 2147 million %%s in use', used / 1000000, kind),
           'VACUUM (FREEZE), first ' || coalesce((SELECT name FROM oldest), 'the system tables'), false
    FROM ages WHERE used >= %(wraparound_share)s::float * 2147483647
    """,
)

# reltuples stays -1 until the first ANALYZE or VACUUM, also through a crash that loses the statistics.
UNANALYZED = Check(
    "table never analyzed",
    "warning",
    "the planner guesses, and may read all of it for a few rows",
    f"""
    SELECT format('%%I.%%I', n.nspname, c.relname), format('about %%s rows', s.n_live_tup),
           format('ANALYZE %%I.%%I', n.nspname, c.relname), true
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_stat_all_tables AS s ON s.relid = c.oid
    WHERE c.relkind IN ('r', 'm') AND c.reltuples = -1 AND s.n_live_tup >= %(unanalyzed_rows)s AND {OURS}
    ORDER BY s.n_live_tup DESC
    """,
)

AUTOVACUUM = Check(
    "autovacuum off",
    "warning",
    "dead rows stay, and the planner's figures age",
    f"""
    SELECT 'the server', 'autovacuum is off', 'ALTER SYSTEM SET autovacuum = on, then reload', false
    WHERE current_setting('autovacuum') = 'off'
    UNION ALL
    SELECT format('%%I.%%I', n.nspname, c.relname), 'autovacuum_enabled is ' || o.option_value,
           format('ALTER TABLE %%I.%%I RESET (autovacuum_enabled)', n.nspname, c.relname), false
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace,
         pg_options_to_table(c.reloptions) AS o
    WHERE o.option_name = 'autovacuum_enabled' AND NOT o.option_value::boolean AND {OURS}
    ORDER BY 1
    """,
)

CHECKS = (TRANSACTIONS, PREPARED_TRANSACTIONS, REPLICATION_SLOTS, WRAPAROUND, UNANALYZED, AUTOVACUUM)
