"""Comments, owners and grants."""

from __future__ import annotations

from rag_factory.migrate.bookkeeping import OWN_SCHEMAS
from rag_factory.migrate.catalogs.fragments import (
    FIRST_USER_OID,
    FROM_FUNCTIONS,
    FROM_TABLES,
    FROM_TYPES,
    FUNCTION_NAME,
    OWN,
    PART_NAME,
    RELATION_IS_OURS,
    TABLE_KIND,
    TABLE_NAME,
    TYPE_NAME,
    not_of_extension,
    ours,
)

COMMENTS = f"""
    SELECT 'comment', known.type || ' ' || known.identity,
           (SELECT {TABLE_NAME} {FROM_TABLES} WHERE classoid = 'pg_class'::regclass AND c.oid = objoid),
           description
    FROM pg_description, pg_identify_object(classoid, objoid, objsubid) AS known
    WHERE objoid >= {FIRST_USER_OID} AND classoid <> 'pg_extension'::regclass
      AND coalesce(known.schema, '') NOT IN ({OWN})
      AND known.identity !~ ' on ({"|".join(OWN_SCHEMAS)})\\.'
      AND {not_of_extension("classoid", "objoid").replace("'classoid'::regclass", "classoid")}
"""
# Whose each object is, and its rights: objects that were never granted have the default ones, written out.
_RIGHTS = f"""
    SELECT {TABLE_KIND} AS kind, {TABLE_NAME} AS name, {TABLE_NAME} AS part_of, relowner AS owner,
           coalesce(relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
               AS acl
    {FROM_TABLES} WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND {RELATION_IS_OURS}
    UNION ALL
    SELECT 'function', {FUNCTION_NAME}, '', proowner, coalesce(proacl, acldefault('f', proowner))
    {FROM_FUNCTIONS} WHERE {ours("pg_proc", "p.oid")}
    UNION ALL
    SELECT 'type', {TYPE_NAME}, '', typowner, coalesce(typacl, acldefault('T', typowner))
    {FROM_TYPES} WHERE t.typtype IN ('e', 'd', 'r') AND {ours("pg_type", "t.oid")}
    UNION ALL
    SELECT 'schema', quote_ident(nspname), '', nspowner, coalesce(nspacl, acldefault('n', nspowner))
    FROM pg_namespace AS n WHERE {ours("pg_namespace", "n.oid")}
    UNION ALL
    SELECT 'column', {PART_NAME.format("attname")}, {TABLE_NAME}, relowner, attacl
    {FROM_TABLES} JOIN pg_attribute ON attrelid = c.oid WHERE attacl IS NOT NULL AND {RELATION_IS_OURS}
    UNION ALL
    SELECT 'what ' || defaclrole::regrole || ' creates as', defaclobjtype::text
           || coalesce(' in ' || nullif(defaclnamespace, 0)::regnamespace, ''), '', defaclrole, defaclacl
    FROM pg_default_acl LEFT JOIN pg_namespace AS n ON n.oid = defaclnamespace
    WHERE n.nspname IS NULL OR n.nspname NOT IN ({OWN})
"""
OWNERS_AND_GRANTS = f"""
    SELECT 'owner', kind || ' ' || name, part_of, pg_get_userbyid(owner) FROM ({_RIGHTS}) AS rights
    WHERE kind !~ '^(column|what) '
    UNION ALL
    SELECT 'grant', format('on %s %s to %s', kind, name, grantee), part_of,
           string_agg(privilege, ', ' ORDER BY privilege)
    FROM ({_RIGHTS}) AS rights, LATERAL (
        SELECT CASE entry.grantee WHEN 0 THEN 'public' WHEN owner THEN 'its owner'
                                  ELSE pg_get_userbyid(entry.grantee)::text END AS grantee,
               lower(privilege_type) || CASE WHEN is_grantable THEN ' with grant option' ELSE '' END
                   AS privilege
        FROM aclexplode(acl) AS entry
    ) AS granted GROUP BY kind, name, part_of, grantee
    UNION ALL
    SELECT 'grant', format('on server %I as %s', srvname, coalesce(usename, 'public')), '', ''
    FROM pg_user_mappings
"""
