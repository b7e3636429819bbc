"""The objects of a test database: all that its catalogs hold, summed up in one text.

What isn't rows of a table is told by it: tables, functions, rights, comments, settings and everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Where the functions are that prove and restore a test database.
SCHEMA = "rag_factory_testing"
# Every change but one of rows is written into one of these by a new transaction: all that a database has, but
# those that ANALYZE writes.
CATALOGS = (
    "pg_aggregate", "pg_am", "pg_amop", "pg_amproc", "pg_attrdef", "pg_attribute", "pg_cast", "pg_class",
    "pg_collation", "pg_constraint", "pg_conversion", "pg_default_acl", "pg_depend", "pg_description",
    "pg_enum", "pg_event_trigger", "pg_extension", "pg_foreign_data_wrapper", "pg_foreign_server",
    "pg_foreign_table", "pg_index", "pg_inherits", "pg_init_privs", "pg_language", "pg_largeobject",
    "pg_largeobject_metadata", "pg_namespace", "pg_opclass", "pg_operator", "pg_opfamily",
    "pg_partitioned_table", "pg_policy", "pg_proc", "pg_publication", "pg_publication_namespace",
    "pg_publication_rel", "pg_range", "pg_rewrite", "pg_seclabel", "pg_sequence", "pg_statistic_ext",
    "pg_subscription_rel", "pg_transform", "pg_trigger", "pg_ts_config", "pg_ts_config_map", "pg_ts_dict",
    "pg_ts_parser", "pg_ts_template", "pg_type", "pg_user_mapping",
)  # fmt: skip
# Where a row is written anew though nothing changes for a reader, its content counts: TRUNCATE gives a table
# a new file, RESTART writes a sequence, and triggers are turned off and on again.
_CONTENTS = {
    "pg_class": "(relname, relnamespace, relowner, relam, reltablespace, relpersistence, relkind, relnatts, "
    "relrowsecurity, relforcerowsecurity, relispopulated, relreplident, relispartition, relacl, reloptions, "
    "relpartbound)",
    "pg_sequence": "pg_sequence",
    # tgargs as text would follow the session's bytea_output.
    "pg_trigger": "(tgrelid, tgparentid, tgname, tgfoid, tgtype, tgenabled, tgisinternal, tgconstrrelid, "
    "tgconstrindid, tgconstraint, tgdeferrable, tginitdeferred, tgattr, md5(tgargs), tgqual, tgoldtable, "
    "tgnewtable)",
}
# What doesn't count: first of all what belongs to a temporary table, which goes with its session, perhaps a
# little later.
_NOT_COUNTED = {
    "pg_class": "relnamespace = ANY (spaces)", "pg_type": "typnamespace = ANY (spaces)",
    # What keeps the sum is made after it was taken.
    "pg_proc": "pronamespace = ANY (spaces) OR coalesce(oid = keeps, false)",
    "pg_constraint": "connamespace = ANY (spaces)",
    "pg_namespace": "oid = ANY (spaces)", "pg_attribute": "attrelid = ANY (tables)",
    "pg_trigger": "tgrelid = ANY (tables)", "pg_rewrite": "ev_class = ANY (tables)",
    "pg_attrdef": "adrelid = ANY (tables)", "pg_index": "indrelid = ANY (tables)",
    "pg_sequence": "seqrelid = ANY (tables)", "pg_inherits": "inhrelid = ANY (tables)",
    "pg_partitioned_table": "partrelid = ANY (tables)", "pg_policy": "polrelid = ANY (tables)",
    "pg_statistic_ext": "stxrelid = ANY (tables)", "pg_description": "objoid = ANY (tables)",
    # What belongs to what is told by the others too, but for an extension's members.
    "pg_depend": "deptype NOT IN ('e', 'x')",
}  # fmt: skip
# As ALTER DATABASE … SET has set them, and ALTER ROLE … IN DATABASE … SET, of which the role's name comes
# first, as far as this role may set them and they don't make another role of it. They are no part of what a
# clone copies.
SETTINGS = """
    SELECT ARRAY[coalesce((SELECT rolname FROM pg_roles WHERE oid = setrole), ''), setting]
    FROM pg_db_role_setting, unnest(setconfig) AS setting, pg_roles AS me
    WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND me.rolname = session_user AND (setrole IN (0, me.oid) OR me.rolsuper)
      AND setting !~ '^(role|session_authorization)='
"""
# Every clone begins without rights of its own, a limit and subscriptions.
DATABASE_CHANGED = """EXISTS (
    SELECT FROM pg_database AS d WHERE datname = current_database()
    AND (datacl IS NOT NULL OR datconnlimit <> -1
         OR EXISTS (SELECT FROM pg_subscription WHERE subdbid = d.oid))
)"""
# Nor does one begin with these. They have changed nothing yet.
PREPARED = "EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database())"
OBJECTS_CHANGED = f"({SCHEMA}.objects() <> {SCHEMA}.expected() OR {DATABASE_CHANGED})"
# A role that isn't a superuser may not read them all.
READABLE = f"""
    array_to_string(ARRAY(
        SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
          AND relname IN ('{"', '".join(CATALOGS)}') AND has_table_privilege(oid, 'SELECT')
        ORDER BY relname), ' ')
"""
# Keeps the fingerprint where no test that empties tables can lose it.
EXPECT = f"""
    DO $expect$ BEGIN
        EXECUTE format('CREATE FUNCTION {SCHEMA}.expected() RETURNS text LANGUAGE sql AS %L',
                       format('SELECT %L', {SCHEMA}.objects()));
    END $expect$
"""
_SESSIONS = "pg_stat_get_db_numbackends((SELECT oid FROM pg_database WHERE datname = current_database()))"
# Those of the asking session that the server has not added to the others yet are counted apart.
_COUNTED = ", ".join((*CATALOGS, "pg_db_role_setting", "pg_database"))
_WRITES = " + ".join(
    f"pg_stat_get_{scope}tuples_{what}(each)"
    for what in ("inserted", "updated", "deleted")
    for scope in ("", "xact_")
)
# Who changed objects is still there or has been counted. Sessions first: one may end between the two looks.
# A loop, as the server would prepare a sum of all of them anew each time.
ACTIVITY = f"""
    CREATE FUNCTION {SCHEMA}.activity() RETURNS text LANGUAGE plpgsql AS $activity$
    DECLARE
        sessions integer := {_SESSIONS};
        writes bigint := 0;
        each oid;
    BEGIN
        FOREACH each IN ARRAY '{{{_COUNTED}}}'::regclass[] LOOP
            writes := writes + {_WRITES};
        END LOOP;
        RETURN sessions || ' ' || writes;
    END;
    $activity$
"""


def sum_up(catalogs: Sequence[str]) -> str:
    """The function that sums up these catalogs and the database's settings.

    Where a row was written by another transaction, it has changed; those that the server began with, all by
    transaction 1, are only counted, and there are thousands of them.
    """
    parts = [
        f"(SELECT count(*) || ' ' || coalesce(sum(hashtextextended({_CONTENTS.get(catalog, 'xmin')}::text, "
        f"0)) FILTER (WHERE xmin <> '1'), 0) FROM pg_catalog.{catalog} "
        f"WHERE xmin = '1' OR NOT ({_NOT_COUNTED.get(catalog, 'false')}))"
        for catalog in catalogs
    ]
    settings = f"SELECT string_agg(each::text, ' ' ORDER BY each) FROM ({SETTINGS}) AS settings (each)"
    return f"""
        CREATE FUNCTION {SCHEMA}.objects() RETURNS text LANGUAGE plpgsql AS $objects$
        DECLARE
            spaces oid[] := ARRAY(SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_');
            tables oid[];
            keeps oid := to_regprocedure('{SCHEMA}.expected()');
        BEGIN
            IF spaces <> '{{}}' THEN
                tables := ARRAY(SELECT oid FROM pg_class WHERE relnamespace = ANY (spaces));
            ELSE
                tables := spaces;
            END IF;
            RETURN md5(ARRAY[{", ".join(parts)}]::text || coalesce(({settings}), ''));
        END;
        $objects$
    """
