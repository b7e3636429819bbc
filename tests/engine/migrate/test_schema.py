"""The schema as text: a change of any kind of object is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from rag_factory.migrate.schema import read_schema

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

CHANGES = {
    "schema": "CREATE SCHEMA extra",
    "table": "CREATE TABLE extra ()",
    "column": "ALTER TABLE documents ADD extra int",
    "type": "ALTER TABLE documents ALTER total_chunks TYPE bigint",
    "not null": "ALTER TABLE documents ALTER filename DROP NOT NULL",
    "default": "ALTER TABLE documents ALTER status SET DEFAULT 'failed'",
    "identity": "ALTER TABLE documents ADD extra int GENERATED ALWAYS AS IDENTITY",
    "generated": "ALTER TABLE documents ADD extra text GENERATED ALWAYS AS (filename || '') STORED",
    "check": "ALTER TABLE documents ADD CHECK (total_chunks >= 0)",
    "not validated": "ALTER TABLE documents ADD CHECK (total_chunks >= 0) NOT VALID",
    "foreign key": "ALTER TABLE chunks DROP CONSTRAINT fk_chunks_parent_chunk_id_chunks",
    "index": "DROP INDEX idx_chunks_created_at",
    "index method": "CREATE INDEX extra ON chunks USING hnsw (embedding vector_l2_ops)",
    "view": "CREATE VIEW extra AS SELECT 1 AS one",
    "view text": "CREATE OR REPLACE VIEW chunk_hierarchy_validation AS SELECT chunk_id, document_id, "
    "parent_chunk_id, ''::text AS problem FROM chunks",
    "function": "CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql "
    "AS 'BEGIN RETURN NEW; END'",
    "trigger": "DROP TRIGGER update_chunks_updated_at ON chunks",
    "trigger state": "ALTER TABLE chunks DISABLE TRIGGER update_chunks_updated_at",
    "enum": "CREATE TYPE extra AS ENUM ('a', 'b')",
    "row security": "ALTER TABLE documents DISABLE ROW LEVEL SECURITY",
    "policy": "CREATE POLICY extra ON documents USING (status = 'failed')",
    "grant": "GRANT SELECT ON documents TO PUBLIC",
    "sequence": "CREATE SEQUENCE extra",
    "comment": "COMMENT ON COLUMN documents.status IS 'how far'",
    "options": "ALTER TABLE documents SET (fillfactor = 70)",
}


def driver(session: Session) -> Any:
    return session.connection().connection.driver_connection


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_is_seen(db_connection: Session, change: str) -> None:
    before = read_schema(driver(db_connection))
    db_connection.execute(text(change))
    assert read_schema(driver(db_connection)) != before


def test_rows_and_statistics_are_not_schema(db_connection: Session) -> None:
    before = read_schema(driver(db_connection))
    db_connection.execute(text("INSERT INTO documents (filename) VALUES ('a.md')"))
    db_connection.execute(text("ANALYZE documents"))
    assert read_schema(driver(db_connection)) == before


def test_extension_is_one_line(db_connection: Session) -> None:
    lines = [line for line in read_schema(driver(db_connection)) if line.startswith("extension vector")]
    assert lines == ["extension vector in public"]
