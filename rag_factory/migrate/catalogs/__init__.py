"""What is asked of the catalogs to know a schema: kind, name, table and definition of each thing in it."""

from __future__ import annotations

from rag_factory.migrate.catalogs import objects, rights, tables

_PARTS = (
    tables.RELATIONS,
    tables.SEQUENCES,
    tables.COLUMNS,
    tables.CONSTRAINTS,
    tables.INDEXES,
    tables.TRIGGERS,
    tables.RULES,
    tables.POLICIES,
    tables.STATISTICS,
    objects.FUNCTIONS,
    objects.TYPES,
    objects.DATABASE_OBJECTS,
    objects.OPERATORS,
    objects.LANGUAGES,
    objects.OTHERS,
    rights.COMMENTS,
)
QUERY = " UNION ALL ".join(_PARTS)
RIGHTS_QUERY = rights.OWNERS_AND_GRANTS
