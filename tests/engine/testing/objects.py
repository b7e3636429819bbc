"""Statements that change something of a database beside its tables and their rows."""

from __future__ import annotations


def of_database(action: str) -> str:
    """A statement about the database that it runs in, which SQL would have named."""
    return f"DO $$ BEGIN EXECUTE format('{action}', current_database()); END $$"


# What the statements need.
OBJECTS_SCHEMA = """
CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS one WITH NO DATA;
CREATE PUBLICATION told;
CREATE TABLE published (id int PRIMARY KEY);
SELECT lo_create(4242);
"""
OBJECTS = {
    "a right on the public schema": "GRANT CREATE ON SCHEMA public TO PUBLIC",
    "a comment on it": "COMMENT ON SCHEMA public IS 'changed'",
    "a right on a function of the server": "REVOKE EXECUTE ON FUNCTION pg_catalog.md5(text) FROM PUBLIC",
    "a right on a view of the server": "GRANT SELECT ON pg_catalog.pg_authid TO PUBLIC",
    "how texts are searched": "ALTER TEXT SEARCH CONFIGURATION pg_catalog.english "
    "ALTER MAPPING FOR asciiword WITH pg_catalog.simple",
    "what is published": "ALTER PUBLICATION told ADD TABLE published",
    "a view filled": "REFRESH MATERIALIZED VIEW unfilled",
    "an operator family": "CREATE OPERATOR FAMILY family USING btree",
    "a language": "CREATE LANGUAGE other HANDLER pg_catalog.plpgsql_call_handler",
    "a wrapper": "CREATE FOREIGN DATA WRAPPER wrapper",
    "a member of an extension": "ALTER EXTENSION plpgsql ADD TABLE published",
    "a subscription": "CREATE SUBSCRIPTION made CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)",
    "a large object": "SELECT lo_put(4242, 0, 'changed')",
    "a setting": of_database("ALTER DATABASE %I SET work_mem = ''77MB''"),
    "a setting of a role": of_database("ALTER ROLE CURRENT_USER IN DATABASE %I SET work_mem = ''77MB''"),
    "who may connect": of_database("REVOKE CONNECT ON DATABASE %I FROM PUBLIC"),
    "how many may connect": of_database("ALTER DATABASE %I CONNECTION LIMIT 77"),
}
