"""migrations/schema.sql: the schema that the revisions end with, as it is committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rag_factory.errors import NotReadyError
from rag_factory.migrate.schema_file import default_path, find_stale, schema_text
from tests.migrations.conftest import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.migrations.conftest import Database


def test_schema_file_is_what_the_revisions_end_with(database_at: Callable[[str], Database]) -> None:
    stale = find_stale(database_at("head").target, PROJECT, default_path(PROJECT))
    assert not stale, f"write it anew: invoke db.schema\n{stale}"


def test_file_of_another_version_is_compared_by_what_it_makes(
    database_at: Callable[[str], Database], tmp_path: Path
) -> None:
    target = database_at("head").target
    text = schema_text(target, PROJECT)
    first, _, rest = text.partition("\n")
    other = first.replace("PostgreSQL ", "PostgreSQL 1") + "\n"
    assert other != f"{first}\n"
    file = tmp_path / "schema.sql"
    respaced = rest.replace("CREATE TABLE public.tenants", "CREATE TABLE  public.tenants")
    file.write_bytes((other + respaced).encode())
    assert find_stale(target, PROJECT, file) == ""
    renamed = rest.replace("idx_chunks_created_at ", "idx_chunks_made_at ")
    file.write_bytes((other + renamed).encode())
    index = "CREATE INDEX {0} ON public.chunks USING btree (created_at)"
    assert find_stale(target, PROJECT, file).splitlines() == [
        "public.chunks:",
        *(
            f"  {change} index public.{name}: {index.format(name)}"
            for change, name in (("missing", "idx_chunks_created_at"), ("unexpected", "idx_chunks_made_at"))
        ),
    ]
    file.write_text(f"{other}CREATE NONSENSE;\n")
    with pytest.raises(NotReadyError, match="this server can't run it to compare: psql failed"):
        find_stale(target, PROJECT, file)


def test_restored_database_is_known_again(database_at: Callable[[str], Database]) -> None:
    from rag_factory.migrate.adopt import detect_revision
    from rag_factory.migrate.drift import find_drift
    from rag_factory.migrate.runner import Runner
    from rag_factory.migrate.scratch import loaded_scratch

    database = database_at("026")
    dump = schema_text(database.target, PROJECT).encode()
    with loaded_scratch(database.target, PROJECT, dump) as restored:
        found = detect_revision(restored, PROJECT, database.history)
        assert (found.exact, found.nearest, found.differences) == (("026",), "026", ())
        Runner(restored, PROJECT, database.history).stamp("026")
        assert find_drift(restored, PROJECT, database.history).differences == ()
