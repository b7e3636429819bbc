"""What several queries on the catalogs have in common. Each is SQL."""

from __future__ import annotations

from rag_factory.migrate.bookkeeping import OWN_SCHEMAS

OWN = ", ".join(f"'{name}'" for name in OWN_SCHEMAS)
# Objects with smaller ids come with the server.
FIRST_USER_OID = 16384


def not_of_extension(catalog: str, oid: str) -> str:
    """Whether no extension brought the object."""
    return (
        f"NOT EXISTS (SELECT FROM pg_depend AS part WHERE part.classid = '{catalog}'::regclass "
        f"AND part.objid = {oid} AND part.deptype = 'e')"
    )


def ours(catalog: str, oid: str) -> str:
    """Whether an object in the schema `n` is the user's."""
    return (
        f"n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', {OWN}) "
        f"AND {not_of_extension(catalog, oid)}"
    )


def masked_options(options: str) -> str:
    """Options of a foreign server or table, without secrets."""
    return f"""
        (SELECT string_agg(CASE WHEN option ~* '^[^=]*(pass|secret|token|key)'
                           THEN split_part(option, '=', 1) || '=…' ELSE option END, ', ' ORDER BY option)
         FROM unnest({options}) AS option)
    """


RELATION_IS_OURS = ours("pg_class", "c.oid")
TABLE_NAME = "format('%I.%I', n.nspname, c.relname)"
FROM_TABLES = "FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
PART_NAME = "format('%I.%I.%I', n.nspname, c.relname, {})"
TABLE_KIND = """
    CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view'
                   WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' ELSE 'foreign table' END
"""
FIRES = "CASE {} WHEN 'O' THEN '' WHEN 'D' THEN ' DISABLED' WHEN 'R' THEN ' ON REPLICAS' ELSE ' ALWAYS' END"
FUNCTION_NAME = "format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))"
FROM_FUNCTIONS = "FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace"
FROM_TYPES = "FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace"
TYPE_NAME = "format('%I.%I', n.nspname, t.typname)"
