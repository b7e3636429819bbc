"""What stands beside tables: functions, types, operators, and what a database has once."""

from __future__ import annotations

from rag_factory.migrate.catalogs.fragments import (
    FIRES,
    FIRST_USER_OID,
    FROM_FUNCTIONS,
    FROM_TABLES,
    FROM_TYPES,
    FUNCTION_NAME,
    RELATION_IS_OURS,
    TABLE_NAME,
    TYPE_NAME,
    masked_options,
    not_of_extension,
    ours,
)

FUNCTIONS = f"""
    SELECT CASE p.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, {FUNCTION_NAME}, '',
           pg_get_functiondef(p.oid)
    {FROM_FUNCTIONS} WHERE p.prokind <> 'a' AND {ours("pg_proc", "p.oid")}
    UNION ALL
    SELECT 'aggregate', {FUNCTION_NAME}, '', concat_ws(' ', pg_get_function_result(p.oid),
        'state ' || aggtranstype::regtype, 'by ' || aggtransfn, 'combined by ' || nullif(aggcombinefn, 0),
        'final ' || nullif(aggfinalfn, 0), 'from ' || quote_literal(agginitval), p.provolatile, p.proparallel)
    {FROM_FUNCTIONS} JOIN pg_aggregate ON aggfnoid = p.oid WHERE {ours("pg_proc", "p.oid")}
"""
TYPES = f"""
    SELECT 'enum', {TYPE_NAME}, '', (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder)
                                      FROM pg_enum WHERE enumtypid = t.oid)
    {FROM_TYPES} WHERE t.typtype = 'e' AND {ours("pg_type", "t.oid")}
    UNION ALL
    SELECT 'domain', {TYPE_NAME}, '', concat_ws(' ', format_type(t.typbasetype, t.typtypmod),
        CASE WHEN t.typcollation <> b.typcollation THEN 'collate ' || t.typcollation::regcollation END,
        CASE WHEN t.typnotnull THEN 'not null' END, 'default ' || t.typdefault,
        (SELECT string_agg(format('constraint %I %s', conname, pg_get_constraintdef(k.oid)), ' '
                           ORDER BY conname)
         FROM pg_constraint AS k WHERE k.contypid = t.oid AND contype = 'c'))
    {FROM_TYPES} JOIN pg_type AS b ON b.oid = t.typbasetype
    WHERE t.typtype = 'd' AND {ours("pg_type", "t.oid")}
    UNION ALL
    SELECT 'composite type', {TABLE_NAME}, '', (
        SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod))
                          || CASE WHEN attcollation = t.typcollation THEN ''
                                  ELSE ' collate ' || attcollation::regcollation END, ', ' ORDER BY attnum)
        FROM pg_attribute JOIN pg_type AS t ON t.oid = atttypid
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
    {FROM_TABLES} WHERE c.relkind = 'c' AND {RELATION_IS_OURS}
    UNION ALL
    SELECT 'range type', {TYPE_NAME}, '', concat_ws(' ', 'of ' || rngsubtype::regtype,
        'operator class ' || (SELECT opcname FROM pg_opclass WHERE oid = rngsubopc),
        'collation ' || nullif(rngcollation, 0)::regcollation, 'canonical ' || nullif(rngcanonical, 0),
        'difference ' || nullif(rngsubdiff, 0), 'multirange ' || rngmultitypid::regtype)
    {FROM_TYPES} JOIN pg_range ON rngtypid = t.oid WHERE {ours("pg_type", "t.oid")}
"""
DATABASE_OBJECTS = f"""
    SELECT 'schema', quote_ident(nspname), '', '' FROM pg_namespace AS n
    WHERE {ours("pg_namespace", "n.oid")}
    UNION ALL
    SELECT 'extension', quote_ident(extname), '', 'in ' || quote_ident(n.nspname)
    FROM pg_extension JOIN pg_namespace AS n ON n.oid = extnamespace
    UNION ALL
    SELECT 'extension version', quote_ident(extname), '', extversion FROM pg_extension
    UNION ALL
    SELECT 'event trigger', quote_ident(evtname), '', format('on %s%s execute %s%s', evtevent,
           ' when tag in ' || evttags::text, evtfoid::regprocedure, {FIRES.format("evtenabled")})
    FROM pg_event_trigger WHERE {not_of_extension("pg_event_trigger", "pg_event_trigger.oid")}
    UNION ALL
    SELECT 'publication', quote_ident(pubname), '', (to_jsonb(p) - '{{oid,pubname,pubowner}}'::text[])::text
           || coalesce(' of ' || (SELECT string_agg(prrelid::regclass::text, ', '
                                                    ORDER BY prrelid::regclass::text)
                                  FROM pg_publication_rel WHERE prpubid = p.oid), '')
    FROM pg_publication AS p
    UNION ALL
    SELECT 'foreign server', quote_ident(srvname), '', concat_ws(' ', 'wrapper ' || quote_ident(fdwname),
           'type ' || srvtype, 'version ' || srvversion, 'options ' || {masked_options("srvoptions")})
    FROM pg_foreign_server JOIN pg_foreign_data_wrapper AS w ON w.oid = srvfdw
    WHERE {not_of_extension("pg_foreign_server", "pg_foreign_server.oid")}
"""
OPERATORS = f"""
    SELECT 'operator', o.oid::regoperator::text, '', concat_ws(' ', 'by ' || oprcode,
        'commutator ' || nullif(oprcom, 0)::regoperator, 'negator ' || nullif(oprnegate, 0)::regoperator,
        'restrict ' || nullif(oprrest, 0), 'join ' || nullif(oprjoin, 0),
        CASE WHEN oprcanhash THEN 'hashes' END, CASE WHEN oprcanmerge THEN 'merges' END)
    FROM pg_operator AS o JOIN pg_namespace AS n ON n.oid = oprnamespace WHERE {ours("pg_operator", "o.oid")}
    UNION ALL
    SELECT 'operator class', format('%I.%I using %I', n.nspname, opcname, amname), '',
           concat_ws(' ', CASE WHEN opcdefault THEN 'default' END, 'for ' || opcintype::regtype,
                     'storage ' || nullif(opckeytype, 0)::regtype)
    FROM pg_opclass AS o JOIN pg_namespace AS n ON n.oid = opcnamespace JOIN pg_am AS a ON a.oid = opcmethod
    WHERE {ours("pg_opclass", "o.oid")}
    UNION ALL
    SELECT 'operator family', format('%I.%I using %I', n.nspname, opfname, amname), '', concat_ws(', ',
        (SELECT string_agg(format('%s %s', amopstrategy, amopopr::regoperator), ', '
                           ORDER BY amopstrategy, amopopr::regoperator::text)
         FROM pg_amop WHERE amopfamily = f.oid),
        (SELECT string_agg(format('%s %s', amprocnum, amproc::regprocedure), ', '
                           ORDER BY amprocnum, amproc::regprocedure::text)
         FROM pg_amproc WHERE amprocfamily = f.oid))
    FROM pg_opfamily AS f JOIN pg_namespace AS n ON n.oid = opfnamespace JOIN pg_am AS a ON a.oid = opfmethod
    WHERE {ours("pg_opfamily", "f.oid")}
    UNION ALL
    SELECT 'cast', format('(%s AS %s)', castsource::regtype, casttarget::regtype), '', concat_ws(' ',
        'by ' || nullif(castfunc, 0)::regprocedure,
        CASE castmethod WHEN 'b' THEN 'binary' WHEN 'i' THEN 'by text' END,
        CASE castcontext WHEN 'a' THEN 'in assignments' WHEN 'i' THEN 'implicit' ELSE 'explicit' END)
    FROM pg_cast AS k WHERE k.oid >= {FIRST_USER_OID} AND {not_of_extension("pg_cast", "k.oid")}
"""
LANGUAGES = f"""
    SELECT 'collation', format('%I.%I', n.nspname, collname), '',
           (to_jsonb(k) - '{{oid,collname,collnamespace,collowner,collversion}}'::text[])::text
    FROM pg_collation AS k JOIN pg_namespace AS n ON n.oid = collnamespace
    WHERE {ours("pg_collation", "k.oid")}
    UNION ALL
    SELECT 'text search configuration', format('%I.%I', n.nspname, cfgname), '', (
        SELECT string_agg(format('%s %s', maptokentype, mapdict::regdictionary), ', '
                          ORDER BY maptokentype, mapseqno) FROM pg_ts_config_map WHERE mapcfg = t.oid)
    FROM pg_ts_config AS t JOIN pg_namespace AS n ON n.oid = cfgnamespace
    WHERE {ours("pg_ts_config", "t.oid")}
    UNION ALL
    SELECT 'text search dictionary', format('%I.%I', n.nspname, dictname), '',
           concat_ws(' ', (SELECT tmplname FROM pg_ts_template WHERE oid = dicttemplate), dictinitoption)
    FROM pg_ts_dict AS t JOIN pg_namespace AS n ON n.oid = dictnamespace WHERE {ours("pg_ts_dict", "t.oid")}
"""
# Rare ones, of which it counts that they are there.
OTHERS = " UNION ALL ".join(
    f"""
    SELECT known.type, known.identity, '', ''
    FROM {catalog} AS o, pg_identify_object('{catalog}'::regclass, o.oid, 0) AS known
    WHERE o.oid >= {FIRST_USER_OID} AND {not_of_extension(catalog, "o.oid")}
    """
    for catalog in (
        "pg_am",
        "pg_conversion",
        "pg_foreign_data_wrapper",
        "pg_language",
        "pg_transform",
        "pg_ts_parser",
        "pg_ts_template",
    )
)
