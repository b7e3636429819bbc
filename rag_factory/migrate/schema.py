"""The schema of a database as text, the same for the same schema: to compare two, or one at two times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rag_factory.migrate.bookkeeping import OWN_SCHEMAS

if TYPE_CHECKING:
    import psycopg

_OWN = ", ".join(f"'{name}'" for name in OWN_SCHEMAS)

# Objects that belong to an extension come and go with it: it is one line.
_OURS = """
    {schema} NOT IN ('pg_catalog', 'information_schema', 'pg_toast', {own})
    AND NOT EXISTS (SELECT FROM pg_depend AS part WHERE part.classid = '{catalog}'::regclass
                    AND part.objid = {oid} AND part.deptype = 'e')
"""


def _ours(catalog: str, oid: str) -> str:
    return _OURS.format(own=_OWN, schema="n.nspname", catalog=catalog, oid=oid)


_IS_OURS = _ours("pg_class", "c.oid")
_NAME = "format('%I.%I', n.nspname, c.relname)"
_TABLES = "FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
_QUERY = f"""
    SELECT 'schema ' || nspname FROM pg_namespace AS n
    WHERE {_ours("pg_namespace", "n.oid")} AND nspname !~ '^pg_'
    UNION ALL
    SELECT format('extension %I in %I', extname, n.nspname)
    FROM pg_extension JOIN pg_namespace AS n ON n.oid = extnamespace
    UNION ALL
    SELECT format('%s %s owner %s%s%s', CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table'
                  WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
                  ELSE c.relkind::text END, {_NAME}, pg_get_userbyid(c.relowner),
                  CASE WHEN c.relrowsecurity THEN ' row security' END,
                  CASE WHEN c.relforcerowsecurity THEN ' forced' END)
           || coalesce(' options ' || c.reloptions::text, '')
           || CASE WHEN c.relkind IN ('v', 'm') THEN E'\\n' || pg_get_viewdef(c.oid) ELSE '' END
    {_TABLES} WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND {_IS_OURS}
    UNION ALL
    SELECT format('column %s.%I %s%s', {_NAME}, a.attname, format_type(a.atttypid, a.atttypmod),
                  CASE WHEN a.attnotnull THEN ' not null' END)
           || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
           || CASE a.attidentity WHEN '' THEN '' ELSE ' identity ' || a.attidentity::text END
           || CASE a.attgenerated WHEN '' THEN '' ELSE ' generated ' || a.attgenerated::text END
    {_TABLES} JOIN pg_attribute AS a ON a.attrelid = c.oid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped AND {_IS_OURS}
    UNION ALL
    SELECT format('constraint %I on %s %s', conname, {_NAME}, pg_get_constraintdef(k.oid))
    {_TABLES} JOIN pg_constraint AS k ON k.conrelid = c.oid WHERE contype <> 'n' AND {_IS_OURS}
    UNION ALL
    SELECT pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END
    {_TABLES} JOIN pg_index AS i ON i.indrelid = c.oid WHERE {_IS_OURS}
    UNION ALL
    SELECT pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text
    {_TABLES} JOIN pg_trigger AS t ON t.tgrelid = c.oid
    WHERE NOT t.tgisinternal AND {_IS_OURS}
    UNION ALL
    SELECT format('policy %I on %s %s %s %s using %s check %s', polname, {_NAME}, polcmd, polpermissive,
                  polroles::regrole[]::text, pg_get_expr(polqual, polrelid),
                  pg_get_expr(polwithcheck, polrelid))
    {_TABLES} JOIN pg_policy ON polrelid = c.oid WHERE {_IS_OURS}
    UNION ALL
    SELECT 'grant on ' || {_NAME} || ' ' || c.relacl::text
    {_TABLES} WHERE c.relacl IS NOT NULL AND {_IS_OURS}
    UNION ALL
    SELECT pg_get_functiondef(p.oid) || coalesce(' ' || p.proacl::text, '')
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE p.prokind IN ('f', 'p') AND {_ours("pg_proc", "p.oid")}
    UNION ALL
    SELECT format('enum %I.%I %s', n.nspname, t.typname,
                  (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder)
                   FROM pg_enum WHERE enumtypid = t.oid))
    FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
    WHERE t.typtype = 'e' AND {_ours("pg_type", "t.oid")}
    UNION ALL
    SELECT 'comment on ' || pg_describe_object(classoid, objoid, objsubid) || ': ' || description
    FROM pg_description WHERE objoid >= 16384 AND classoid <> 'pg_extension'::regclass
      AND NOT EXISTS (SELECT FROM pg_depend AS part
                      WHERE part.classid = classoid AND part.objid = objoid AND part.deptype = 'e')
"""


def read_schema(connection: psycopg.Connection[Any]) -> tuple[str, ...]:
    """Read the schema: an object an item, sorted. The order of columns doesn't count: it can't be mended."""
    return tuple(sorted(line for (line,) in connection.execute(_QUERY.encode()) if line))
