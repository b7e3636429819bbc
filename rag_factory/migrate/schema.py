"""The schema of a database as data, the same for the same schema: to compare two, or one at two times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rag_factory.migrate.catalogs import QUERY, RIGHTS_QUERY

if TYPE_CHECKING:
    import psycopg

# Kinds that differ between two databases with the same schema: they belong to the server, or to its roles.
OWNER, GRANT, EXTENSION_VERSION = "owner", "grant", "extension version"


class SchemaItem(NamedTuple):
    """One thing that a schema has.

    name: qualified by its schema, and by its table where it is a table's. of: that table; empty for none.
    definition: all else there is to say of it, as SQL where the server gives SQL.
    """

    kind: str
    name: str
    of: str
    definition: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.definition}".rstrip()


def read_items(connection: psycopg.Connection[Any], *, rights: bool = True) -> tuple[SchemaItem, ...]:
    """Read the schema, sorted. The order of columns doesn't count: it can't be mended.

    Objects that belong to an extension come and go with it: it is one item. What the engine keeps for itself
    is left out. Names are written with their schema whatever the session's search_path is.
    rights: owners and grants too.
    """
    # Rolled back for the settings: they are for this query only, in whatever transaction we are. Compiling
    # it takes longer than running it.
    with connection.transaction(force_rollback=True):
        connection.execute("SELECT set_config('search_path', '', true), set_config('jit', 'off', true)")
        rows = connection.execute(QUERY.encode()).fetchall()
        if rights:
            rows += connection.execute(RIGHTS_QUERY.encode()).fetchall()
    return tuple(sorted(SchemaItem(kind, name, of or "", text or "") for kind, name, of, text in rows))


def read_schema(connection: psycopg.Connection[Any]) -> tuple[str, ...]:
    """Read the schema as text, a thing an item, sorted; owners and grants as well."""
    return tuple(str(item) for item in read_items(connection))
