"""What the rows of older revisions become, what is refused, and that they come back."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from rag_factory.errors import RagFactoryError
from rag_factory.migrate.history import History
from tests.migrations.conftest import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.migrations.conftest import Database

    Make = Callable[[str], Database]

TENANT = UUID(int=7)  # [tenancy]


def test_empty_descriptions_are_filled_and_others_kept(database_at: Make) -> None:
    database = database_at("005")
    given = {"null": "NULL", "empty": "''", "spaces": "'  '", "others": r"E' \t\r\n\f'", "text": "' kept '"}
    for name, description in given.items():
        database.execute(f"INSERT INTO collections (name, description) VALUES ('{name}', {description})")
    # The smallest key there is.
    database.execute(f"INSERT INTO collections (collection_id, name) VALUES ('{UUID(int=0)}', 'first')")
    database.runner.upgrade("006")
    found = dict(database.execute("SELECT name, description FROM collections"))
    assert found.pop("text") == " kept "
    assert set(found.values()) == {"No description"}
    assert len(found) == 5


# [tenancy
def test_what_is_there_belongs_to_no_tenant(database_at: Make) -> None:
    database = database_at("007")
    # Even where the migrator's own sessions have a tenant.
    database.execute(
        f"ALTER DATABASE \"{database.target.url.database}\" SET app.current_tenant_id = '{TENANT}'"
    )
    database.execute("INSERT INTO documents (filename) VALUES ('old.md')")
    database.execute(f"INSERT INTO tenants (tenant_id, name) VALUES ('{TENANT}', 'a tenant')")
    database.runner.upgrade("008")
    database.execute("INSERT INTO documents (filename) VALUES ('new.md')")
    assert dict(database.execute("SELECT filename, tenant_id FROM documents")) == {
        "old.md": None,
        "new.md": TENANT,
    }


# tenancy]


def test_old_roles_become_new_ones_and_come_back(database_at: Make) -> None:
    database = database_at("013")
    database.execute("INSERT INTO users (email, role) VALUES ('root@x', 'admin'), ('lone@x', 'client')")
    # [tenancy
    database.execute(f"INSERT INTO tenants (tenant_id, name) VALUES ('{TENANT}', 'a tenant')")
    database.execute(
        "INSERT INTO users (email, role, tenant_id) "
        f"VALUES ('boss@x', 'admin', '{TENANT}'), ('anna@x', 'client', '{TENANT}')"
    )
    # tenancy]
    query = "SELECT to_jsonb(users) FROM users ORDER BY email"
    before = database.execute(query)
    database.runner.upgrade("016")
    assert dict(database.execute("SELECT email, role::text FROM users")) == {
        "root@x": "superadmin",
        "lone@x": "user",
        "boss@x": "tenant_admin",  # [tenancy]
        "anna@x": "user",  # [tenancy]
    }
    database.go_down("013")
    assert database.execute(query) == before


def test_running_application_may_write_old_roles_meanwhile(database_at: Make) -> None:
    database = database_at("013")
    database.execute("INSERT INTO users (email) VALUES ('before@x'), ('changed@x')")
    database.runner.upgrade("014")
    database.execute("INSERT INTO users (email, role) VALUES ('between@x', 'admin')")
    database.execute("UPDATE users SET role = 'admin' WHERE email = 'changed@x'")
    database.runner.upgrade("015")
    database.execute("INSERT INTO users (email) VALUES ('after@x')")
    database.runner.upgrade("016")
    assert dict(database.execute("SELECT email, role::text FROM users")) == {
        "before@x": "user",
        "changed@x": "superadmin",
        "between@x": "superadmin",
        "after@x": "user",
    }


def test_statuses_become_an_enum_and_come_back(database_at: Make) -> None:
    database = database_at("016")
    statuses = ["pending", "processing", "completed", "failed"]
    for status in statuses:
        database.execute(f"INSERT INTO documents (filename, status) VALUES ('{status}', '{status}')")
    query = "SELECT to_jsonb(documents) FROM documents ORDER BY filename"
    before = database.execute(query)
    database.runner.upgrade("017")
    database.execute("INSERT INTO documents (filename, status) VALUES ('between', 'failed')")
    database.runner.upgrade("019")
    assert dict(database.execute("SELECT filename, status::text FROM documents")) == {
        **{status: status for status in statuses},
        "between": "failed",
    }
    database.execute("DELETE FROM documents WHERE filename = 'between'")
    database.go_down("016")
    assert database.execute(query) == before


def test_unknown_status_is_refused_before_anything_is_changed(database_at: Make) -> None:
    database = database_at("016")
    database.execute("INSERT INTO documents (filename, status) VALUES ('a', 'done'), ('b', 'failed')")
    before = database.schema()
    with pytest.raises(
        RagFactoryError, match=r"documents\.status holds 'done', and .* migrate again.*at 016"
    ):
        database.runner.upgrade("019")
    assert database.schema() == before
    database.execute("UPDATE documents SET status = 'completed' WHERE status = 'done'")
    database.runner.upgrade("019")


def test_duplicate_sources_are_refused_before_the_index_is_built(database_at: Make) -> None:
    [below] = History.read(PROJECT).revisions["022"].parents
    database = database_at(below)
    database.execute("INSERT INTO documents (filename, source_path) VALUES ('a', '/a'), ('b', '/a')")
    database.execute("INSERT INTO documents (filename) VALUES ('no path'), ('no path')")
    before = database.schema()
    with pytest.raises(RagFactoryError, match=r"1 paths .* such as /a\. Delete the older ones"):
        database.runner.upgrade("022")
    assert database.schema() == before
    database.execute("DELETE FROM documents WHERE filename = 'b'")
    database.runner.upgrade("022")


def test_chunk_of_an_old_document_is_found_by_its_words(database_at: Make) -> None:
    database = database_at("022")
    database.execute(
        "WITH document AS (INSERT INTO documents (filename) VALUES ('a.md') RETURNING document_id) "
        "INSERT INTO chunks (document_id, chunk_index, text) SELECT document_id, 0, 'Running foxes' "
        "FROM document",
    )
    database.runner.upgrade("026")
    found = "SELECT count(*) FROM chunks WHERE search_vector @@ to_tsquery('english', %s)"
    assert database.execute(found, "fox & run") == [(1,)]
    database.execute("UPDATE chunks SET text = 'sleeping dogs'")
    assert database.execute(found, "fox") == [(0,)]
    assert database.execute(found, "dog") == [(1,)]
