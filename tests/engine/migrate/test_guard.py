"""A database's own mark as protected, where the role is its owner and no superuser."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rag_factory.migrate.guard import is_marked, mark

if TYPE_CHECKING:
    from tests.engine.migrate.conftest import Small


def test_owner_who_is_no_superuser_protects_by_the_comment(small: Small) -> None:
    role = f"owner_{small.target.url.database}"
    small.query(f"CREATE ROLE {role} LOGIN PASSWORD 'weak'")
    database = small.target.url.database
    try:
        small.query(f"COMMENT ON DATABASE {database} IS 'ours'")
        url = replace(small.target.url, user=role, password="weak")
        owner = replace(small.target, url=url)
        small.query(f"ALTER DATABASE {database} OWNER TO {role}")
        mark(owner, protected=True)
        assert is_marked(owner)
        comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
        assert small.query(comment, database) == [("ours [rag_factory.protected]",)]
        mark(owner, protected=False)
        assert not is_marked(owner)
        assert small.query(comment, database) == [("ours",)]
    finally:
        small.query(f"ALTER DATABASE {database} OWNER TO app")
        small.query(f"DROP ROLE {role}")
