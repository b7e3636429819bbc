"""Operations for large tables in use, reached as `op.…` in a revision.

Importing this module registers them with Alembic; `migrate.environment` does. An env.py that doesn't use
that, run by plain Alembic, has them by one line: `import rag_factory.migrate.operations`.

Each commits between its steps, takes strong locks for moments only, and tries again when it doesn't get them.
Each can be repeated after any crash. `alembic upgrade --sql` writes SQL that does the same.
"""

from rag_factory.migrate.operations import columns, constraints, enums, hnsw, indexes, rows, unique

__all__ = ["columns", "constraints", "enums", "hnsw", "indexes", "rows", "unique"]
