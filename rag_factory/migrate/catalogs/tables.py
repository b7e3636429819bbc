"""Tables, views and sequences, and what belongs to a table."""

from __future__ import annotations

from rag_factory.migrate.catalogs.fragments import (
    FIRES,
    FROM_TABLES,
    PART_NAME,
    RELATION_IS_OURS,
    TABLE_KIND,
    TABLE_NAME,
    masked_options,
)

RELATIONS = f"""
    SELECT {TABLE_KIND}, {TABLE_NAME}, '', concat_ws(' ',
        CASE WHEN c.relpersistence = 'u' THEN 'unlogged' END,
        'of ' || nullif(c.reloftype, 0)::regtype,
        'partition by ' || CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
        CASE WHEN c.relispartition THEN 'partition of ' ELSE 'inherits ' END
            || (SELECT string_agg(inhparent::regclass::text, ', ' ORDER BY inhseqno) FROM pg_inherits
                WHERE inhrelid = c.oid),
        pg_get_expr(c.relpartbound, c.oid),
        'using ' || (SELECT amname FROM pg_am WHERE pg_am.oid = c.relam AND amname <> 'heap'),
        'tablespace ' || (SELECT spcname FROM pg_tablespace AS s WHERE s.oid = c.reltablespace),
        CASE WHEN c.relrowsecurity THEN 'row security' END,
        CASE WHEN c.relforcerowsecurity THEN 'forced' END,
        CASE WHEN c.relkind IN ('r', 'p') THEN
            CASE c.relreplident WHEN 'f' THEN 'replica identity full' WHEN 'i' THEN 'replica identity index'
                                WHEN 'n' THEN 'replica identity nothing' END
        END,
        'options ' || c.reloptions::text,
        'toast options ' || (SELECT t.reloptions::text FROM pg_class AS t WHERE t.oid = c.reltoastrelid),
        (SELECT format('server %I options %s', srvname, {masked_options("ftoptions")}) FROM pg_foreign_table
         JOIN pg_foreign_server AS s ON s.oid = ftserver WHERE ftrelid = c.oid),
        CASE WHEN c.relkind IN ('v', 'm') THEN 'as' || E'\\n' || pg_get_viewdef(c.oid) END)
    {FROM_TABLES} WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {RELATION_IS_OURS}
"""
SEQUENCES = f"""
    SELECT 'sequence', {TABLE_NAME}, owner.name,
           format('%s start %s increment %s minimum %s maximum %s cache %s', format_type(seqtypid, NULL),
                  seqstart, seqincrement, seqmin, seqmax, seqcache)
           || CASE WHEN seqcycle THEN ' cycle' ELSE '' END
           || CASE WHEN c.relpersistence = 'u' THEN ' unlogged' ELSE '' END
           || coalesce(' owned by ' || owner.name || '.' || owner.attname, '')
    {FROM_TABLES} JOIN pg_sequence ON seqrelid = c.oid
    LEFT JOIN LATERAL (
        SELECT format('%I.%I', tn.nspname, t.relname) AS name, quote_ident(attname) AS attname
        FROM pg_depend AS d JOIN pg_class AS t ON t.oid = d.refobjid
        JOIN pg_namespace AS tn ON tn.oid = t.relnamespace
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
    ) AS owner ON true
    WHERE {RELATION_IS_OURS}
"""
COLUMNS = f"""
    SELECT 'column', {PART_NAME.format("a.attname")}, {TABLE_NAME}, concat_ws(' ',
        format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attcollation <> t.typcollation THEN 'collate ' || a.attcollation::regcollation END,
        CASE WHEN a.attnotnull THEN 'not null' END,
        CASE a.attgenerated WHEN 's' THEN 'generated stored ' WHEN 'v' THEN 'generated virtual '
                            ELSE 'default ' END || pg_get_expr(d.adbin, d.adrelid),
        CASE a.attidentity WHEN 'a' THEN 'identity always' WHEN 'd' THEN 'identity by default' END,
        CASE WHEN a.attstorage <> t.typstorage THEN 'storage ' ||
            CASE a.attstorage WHEN 'p' THEN 'plain' WHEN 'e' THEN 'external' WHEN 'm' THEN 'main'
                              ELSE 'extended' END END,
        CASE a.attcompression WHEN 'p' THEN 'compression pglz' WHEN 'l' THEN 'compression lz4' END,
        CASE WHEN coalesce(a.attstattarget, -1) >= 0 THEN 'statistics ' || a.attstattarget END,
        'options ' || a.attoptions::text,
        'foreign options ' || {masked_options("a.attfdwoptions")})
    {FROM_TABLES} JOIN pg_attribute AS a ON a.attrelid = c.oid JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped AND {RELATION_IS_OURS}
"""
_INDEX = """
    pg_get_indexdef(i.indexrelid)
    || CASE WHEN i.indisclustered THEN ' CLUSTER' ELSE '' END
    || CASE WHEN i.indisreplident THEN ' REPLICA IDENTITY' ELSE '' END
    || coalesce(' TABLESPACE ' || (SELECT quote_ident(spcname) FROM pg_class AS x
                                   JOIN pg_tablespace AS s ON s.oid = x.reltablespace
                                   WHERE x.oid = i.indexrelid), '')
    || CASE WHEN i.indisvalid AND i.indisready THEN '' ELSE ' INVALID' END
"""
# A NOT NULL says nothing that its column doesn't, unless it isn't validated or isn't inherited.
CONSTRAINTS = f"""
    SELECT 'constraint', {PART_NAME.format("k.conname")}, {TABLE_NAME}, pg_get_constraintdef(k.oid)
           || coalesce(E'\\n' || (SELECT {_INDEX} FROM pg_index AS i WHERE i.indexrelid = k.conindid
                                  AND k.contype IN ('p', 'u', 'x')), '')
    {FROM_TABLES} JOIN pg_constraint AS k ON k.conrelid = c.oid
    WHERE k.contype <> 't' AND (k.contype <> 'n' OR NOT k.convalidated OR k.connoinherit)
      AND {RELATION_IS_OURS}
"""
INDEXES = f"""
    SELECT 'index', (SELECT format('%I.%I', n.nspname, x.relname) FROM pg_class AS x
                     WHERE x.oid = i.indexrelid), {TABLE_NAME}, {_INDEX}
    {FROM_TABLES} JOIN pg_index AS i ON i.indrelid = c.oid
    WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u', 'x'))
    AND {RELATION_IS_OURS}
"""
TRIGGERS = f"""
    SELECT 'trigger', {PART_NAME.format("t.tgname")}, {TABLE_NAME},
           pg_get_triggerdef(t.oid) || {FIRES.format("t.tgenabled")}
    {FROM_TABLES} JOIN pg_trigger AS t ON t.tgrelid = c.oid WHERE NOT t.tgisinternal AND {RELATION_IS_OURS}
"""
RULES = f"""
    SELECT 'rule', {PART_NAME.format("r.rulename")}, {TABLE_NAME},
           pg_get_ruledef(r.oid) || {FIRES.format("r.ev_enabled")}
    {FROM_TABLES} JOIN pg_rewrite AS r ON r.ev_class = c.oid
    WHERE r.rulename <> '_RETURN' AND {RELATION_IS_OURS}
"""
POLICIES = f"""
    SELECT 'policy', {PART_NAME.format("polname")}, {TABLE_NAME}, concat_ws(' ',
        CASE WHEN polpermissive THEN 'permissive' ELSE 'restrictive' END,
        'for ' || CASE polcmd WHEN 'r' THEN 'select' WHEN 'a' THEN 'insert' WHEN 'w' THEN 'update'
                              WHEN 'd' THEN 'delete' ELSE 'all' END,
        'to ' || (SELECT string_agg(CASE WHEN role = 0 THEN 'public' ELSE role::regrole::text END, ', '
                                    ORDER BY role::regrole::text) FROM unnest(polroles) AS role),
        'using (' || pg_get_expr(polqual, polrelid) || ')',
        'with check (' || pg_get_expr(polwithcheck, polrelid) || ')')
    {FROM_TABLES} JOIN pg_policy ON polrelid = c.oid WHERE {RELATION_IS_OURS}
"""
STATISTICS = f"""
    SELECT 'statistics', format('%I.%I', n.nspname, s.stxname), {TABLE_NAME},
           pg_get_statisticsobjdef(s.oid)
           || CASE WHEN coalesce(s.stxstattarget, -1) >= 0 THEN ' statistics ' || s.stxstattarget ELSE '' END
    {FROM_TABLES} JOIN pg_statistic_ext AS s ON s.stxrelid = c.oid WHERE {RELATION_IS_OURS}
"""
