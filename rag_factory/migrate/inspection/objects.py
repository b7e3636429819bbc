"""Checks of indexes, constraints and sequences."""

from __future__ import annotations

from rag_factory.migrate.inspection.finding import OURS, Check

_NAME = "format('%%I.%%I', n.nspname, c.relname)"
# What an operation needs besides the names, where they are not in the first schema of the search path.
_SCHEMA_OPTION = """
    CASE WHEN n.nspname = current_schema() THEN '' ELSE format(', schema="%%s"', n.nspname) END
"""
_INDEXES = """
    pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_class AS t ON t.oid = i.indrelid
"""


def _expression(column: str) -> str:
    """An expression without where it stood in its statement; pg_get_expr would lock the table."""
    return f"regexp_replace({column}::text, ':(stmt_)?(location|len) -?[0-9]+', '', 'g')"


# One that is being built right now is INVALID too, and so is its table's any other by all that can be seen:
# without the right to see others' work, its columns are NULL.
INVALID_INDEXES = Check(
    "invalid index",
    "left-over",
    "no query uses it, each write pays for it, and IF NOT EXISTS takes it for done",
    f"""
    SELECT {_NAME}, 'on ' || t.relname,
           CASE WHEN c.relkind = 'I' THEN 'ALTER INDEX … ATTACH PARTITION, for each partition that lacks it'
                WHEN c.relname ~ '_cc(new|old)[0-9]*$' THEN 'DROP INDEX CONCURRENTLY ' || {_NAME}
                WHEN i.indisexclusion THEN 'REINDEX INDEX ' || {_NAME} || ', which locks the table'
                ELSE 'REINDEX INDEX CONCURRENTLY ' || {_NAME} END,
           c.relkind = 'i' AND (NOT i.indisexclusion OR c.relname ~ '_cc(new|old)[0-9]*$')
    FROM {_INDEXES}
    WHERE NOT i.indisvalid AND {OURS} AND NOT EXISTS (
        SELECT FROM pg_stat_progress_create_index AS build
        WHERE build.datname = current_database() AND coalesce(build.relid, i.indrelid) = i.indrelid
    )
    ORDER BY 1
    """,
)

# NOT ENFORCED, new in PostgreSQL 18, is a decision.
UNVALIDATED_CONSTRAINTS = Check(
    "constraint not validated",
    "left-over",
    "rows from before it may break it, and the planner doesn't rely on it",
    f"""
    SELECT {_NAME}, format('%%I, a %%s', k.conname, CASE k.contype WHEN 'f' THEN 'foreign key'
                           WHEN 'c' THEN 'check' ELSE 'not-null constraint' END),
           format('ALTER TABLE %%I.%%I VALIDATE CONSTRAINT %%I', n.nspname, c.relname, k.conname), true
    FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE NOT k.convalidated AND k.conparentid = 0 AND k.coninhcount = 0 AND {OURS}
      AND coalesce(to_jsonb(k) ->> 'conenforced', 'true') = 'true'
    ORDER BY 1, 2
    """,
)

# An index will do whose first columns, in any order, are those of the key, or those of them that already
# make the referenced row unique; also one that leaves out rows that refer to nothing.
UNINDEXED_FOREIGN_KEYS = Check(
    "foreign key without index",
    "warning",
    "each delete of a referenced row reads the whole table",
    f"""
    WITH keys AS (
        SELECT k.oid, k.conrelid, k.conkey AS columns FROM pg_constraint AS k
        WHERE k.contype = 'f' AND k.conparentid = 0
        UNION ALL
        SELECT k.oid, k.conrelid, ARRAY(
            SELECT k.conkey[place] FROM generate_subscripts(k.conkey, 1) AS place
            WHERE k.confkey[place] = ANY (u.indkey::int2[]))
        FROM pg_constraint AS k JOIN pg_index AS u ON u.indrelid = k.confrelid
        WHERE k.contype = 'f' AND k.conparentid = 0 AND u.indisunique AND u.indisvalid
          AND u.indpred IS NULL AND u.indnkeyatts = u.indnatts AND u.indkey::int2[] <@ k.confkey
    ), uncovered AS (
        SELECT keys.oid FROM keys GROUP BY keys.oid
        HAVING NOT bool_or(EXISTS (
            SELECT FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
            JOIN pg_am AS am ON am.oid = x.relam AND am.amname IN ('btree', 'hash')
            WHERE i.indrelid = keys.conrelid AND i.indisvalid
              AND (i.indpred IS NULL OR EXISTS (
                  SELECT FROM pg_attribute AS a
                  WHERE a.attrelid = i.indrelid AND a.attnum = ANY (keys.columns)
                    AND pg_get_expr(i.indpred, i.indrelid) = format('(%%I IS NOT NULL)', a.attname)))
              AND i.indnkeyatts >= cardinality(keys.columns)
              AND (i.indkey::int2[])[0:cardinality(keys.columns) - 1] @> keys.columns
        ))
    )
    SELECT {_NAME}, format('%%I: %%s; about %%s rows', k.conname, pg_get_constraintdef(k.oid),
                           greatest(c.reltuples, 0)::bigint),
           format('op.create_index_online("idx_%%s_%%s", "%%s", [%%s]%%s), in a revision',
                  c.relname, named.joined, c.relname, named.quoted,
                  {_SCHEMA_OPTION}),
           false
    FROM uncovered JOIN pg_constraint AS k USING (oid) JOIN pg_class AS c ON c.oid = k.conrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT string_agg(a.attname, '_' ORDER BY place) AS joined,
               string_agg(format('"%%s"', a.attname), ', ' ORDER BY place) AS quoted
        FROM unnest(k.conkey) WITH ORDINALITY AS key (attnum, place)
        JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = key.attnum
    ) AS named
    WHERE {OURS}
    ORDER BY 1, 2
    """,
)

# Of two, the one that a constraint stands on stays, then the unique one, then the older.
DUPLICATE_INDEXES = Check(
    "duplicate index",
    "note",
    "each write keeps up both, and one serves every query",
    f"""
    WITH known AS (
        SELECT {_NAME} AS name, c.relname, {_SCHEMA_OPTION} AS schema_option,
               i.indexrelid, i.indrelid, i.indisunique,
               c.relpages::bigint * current_setting('block_size')::int AS size,
               EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = i.indexrelid) AS needed,
               (c.relam, i.indnkeyatts, i.indkey::text, i.indclass::text, i.indcollation::text,
                i.indoption::text, {_expression("i.indexprs")}, {_expression("i.indpred")},
                c.reloptions::text)::text AS same
        FROM {_INDEXES} WHERE {OURS} AND i.indisvalid AND c.relkind = 'i' AND NOT c.relispartition
    )
    SELECT b.name, format('the same as %%s, %%s', a.name, pg_size_pretty(b.size)),
           format('op.drop_index_online("%%s"%%s), in a revision', b.relname,
                  b.schema_option),
           false
    FROM known AS b JOIN LATERAL (
        SELECT a.name FROM known AS a
        WHERE a.indrelid = b.indrelid AND a.same = b.same AND NOT b.needed
          AND (a.indisunique OR NOT b.indisunique)
          AND (a.needed, a.indisunique, -a.indexrelid::bigint)
            > (b.needed, b.indisunique, -b.indexrelid::bigint)
        ORDER BY a.needed DESC, a.indisunique DESC, a.indexrelid LIMIT 1
    ) AS a ON true
    ORDER BY 1
    """,
)

UNUSED_INDEXES = Check(
    "unused index",
    "note",
    "each write keeps it up; look on the read replicas too before it goes",
    f"""
    SELECT {_NAME}, format('%%s, no scan since %%s', pg_size_pretty(c.relpages::bigint * block.size),
                           coalesce(d.stats_reset::date::text, 'counting began')),
           format('op.drop_index_online("%%s"%%s), in a revision', c.relname,
                  {_SCHEMA_OPTION}),
           false
    FROM {_INDEXES}
    JOIN pg_stat_all_indexes AS s ON s.indexrelid = i.indexrelid
    JOIN pg_stat_database AS d ON d.datname = current_database()
    CROSS JOIN (SELECT current_setting('block_size')::int AS size) AS block
    WHERE s.idx_scan = 0 AND i.indisvalid AND NOT i.indisunique AND NOT i.indisexclusion AND {OURS}
      AND c.relpages::bigint * block.size >= %(index_bytes)s
      AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = i.indexrelid)
    ORDER BY c.relpages DESC
    """,
)

# A sequence may be made for more than its column holds: the smaller of the two is the end.
SEQUENCES = Check(
    "sequence near its end",
    "warning",
    "at the end every insert fails",
    """
    WITH used AS (
        SELECT d.objid AS sequence, d.refobjid AS relation, d.refobjsubid AS attnum FROM pg_depend AS d
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
          AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
        UNION
        SELECT d.refobjid, v.adrelid, v.adnum FROM pg_depend AS d JOIN pg_attrdef AS v ON v.oid = d.objid
        WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
    ), measured AS (
        SELECT s.*, t.relname, a.attname, tn.nspname,
               least(s.max_value, CASE a.atttypid WHEN 'int2'::regtype THEN 32767
                     WHEN 'int4'::regtype THEN 2147483647 ELSE s.max_value END) AS top,
               greatest(s.min_value, CASE a.atttypid WHEN 'int2'::regtype THEN -32768
                        WHEN 'int4'::regtype THEN -2147483648 ELSE s.min_value END) AS bottom,
               a.atttypid IN ('int2'::regtype, 'int4'::regtype) AS narrow,
               format_type(a.atttypid, NULL) AS type
        FROM pg_sequences AS s JOIN pg_namespace AS n ON n.nspname = s.schemaname
        JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = s.sequencename AND c.relkind = 'S'
        LEFT JOIN used ON used.sequence = c.oid LEFT JOIN pg_class AS t ON t.oid = used.relation
        LEFT JOIN pg_namespace AS tn ON tn.oid = t.relnamespace
        LEFT JOIN pg_attribute AS a ON a.attrelid = used.relation AND a.attnum = used.attnum
        WHERE NOT s.cycle AND s.last_value IS NOT NULL
    ), shares AS (
        SELECT *, CASE WHEN increment_by > 0 THEN (last_value - bottom::numeric) / (top - bottom::numeric)
                  ELSE (top - last_value::numeric) / (top - bottom::numeric) END AS share
        FROM measured WHERE top > bottom
    )
    SELECT format('%%I.%%I', schemaname, sequencename),
           format('at %%s of %%s%%s', last_value, CASE WHEN increment_by > 0 THEN top ELSE bottom END,
                  ', for ' || format('%%I.%%I.%%I', nspname, relname, attname) || ' ' || type),
           CASE WHEN narrow THEN 'a bigint column beside it, filled in batches, then swapped, in revisions'
                ELSE format('ALTER SEQUENCE %%I.%%I AS bigint MAXVALUE 9223372036854775807',
                            schemaname, sequencename) END,
           false
    FROM shares WHERE share >= %(sequence_share)s ORDER BY share DESC
    """,
)

CHECKS = (
    INVALID_INDEXES,
    UNVALIDATED_CONSTRAINTS,
    UNINDEXED_FOREIGN_KEYS,
    SEQUENCES,
    DUPLICATE_INDEXES,
    UNUSED_INDEXES,
)
