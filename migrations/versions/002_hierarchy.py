"""hierarchy

Revision ID: 002
Revises: 001

The technique: grow a large table in use. The columns come with constant defaults, which PostgreSQL
keeps beside the table instead of writing them into each row. The foreign key comes with its column:
a new column holds only NULL, so nothing is scanned, as it would be by a constraint added
afterwards. The indexes are built CONCURRENTLY, outside a transaction, while others write. That ends
the revision's transaction early, so every step can be repeated: should one fail, the next run
starts over and meets no half-made thing.
"""

from alembic import op

revision = "002"
down_revision = "001"
branch_labels = None
depends_on = None

# lint: ignore autocommit-not-alone: every step before and in the block can be repeated, as said above

ADD_COLUMNS = """
ALTER TABLE chunks
    ADD COLUMN IF NOT EXISTS parent_chunk_id uuid
        CONSTRAINT fk_chunks_parent_chunk_id_chunks REFERENCES chunks (chunk_id) ON DELETE CASCADE,
    ADD COLUMN IF NOT EXISTS hierarchy_level smallint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS hierarchy_metadata jsonb NOT NULL DEFAULT '{}'::jsonb
"""

GET_CHUNK_ANCESTORS = """
CREATE OR REPLACE FUNCTION get_chunk_ancestors(chunk_id uuid, max_depth integer DEFAULT 32)
RETURNS TABLE (ancestor_id uuid, hierarchy_level smallint, depth integer)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH RECURSIVE walk AS (
        SELECT start.chunk_id AS id, start.parent_chunk_id, start.hierarchy_level, 0 AS depth
        FROM chunks AS start
        WHERE start.chunk_id = get_chunk_ancestors.chunk_id
        UNION ALL
        SELECT parent.chunk_id, parent.parent_chunk_id, parent.hierarchy_level, walk.depth + 1
        FROM walk JOIN chunks AS parent ON parent.chunk_id = walk.parent_chunk_id
        WHERE walk.depth < max_depth
    ) CYCLE id SET seen_before USING path
    SELECT walk.id, walk.hierarchy_level, walk.depth
    FROM walk
    WHERE walk.depth > 0 AND NOT walk.seen_before
    ORDER BY walk.depth
$$
"""

GET_CHUNK_DESCENDANTS = """
CREATE OR REPLACE FUNCTION get_chunk_descendants(chunk_id uuid, max_depth integer DEFAULT 32)
RETURNS TABLE (descendant_id uuid, hierarchy_level smallint, depth integer)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH RECURSIVE walk AS (
        SELECT start.chunk_id AS id, start.hierarchy_level, start.chunk_index, 0 AS depth
        FROM chunks AS start
        WHERE start.chunk_id = get_chunk_descendants.chunk_id
        UNION ALL
        SELECT child.chunk_id, child.hierarchy_level, child.chunk_index, walk.depth + 1
        FROM walk JOIN chunks AS child ON child.parent_chunk_id = walk.id
        WHERE walk.depth < max_depth
    ) CYCLE id SET seen_before USING path
    SELECT walk.id, walk.hierarchy_level, walk.depth
    FROM walk
    WHERE walk.depth > 0 AND NOT walk.seen_before
    ORDER BY walk.depth, walk.chunk_index
$$
"""

CHUNK_HIERARCHY_VALIDATION = """
CREATE OR REPLACE VIEW chunk_hierarchy_validation AS
WITH RECURSIVE walk AS (
    SELECT chunks.chunk_id AS start_id, chunks.parent_chunk_id AS id
    FROM chunks
    WHERE chunks.parent_chunk_id IS NOT NULL
    UNION ALL
    SELECT walk.start_id, chunks.parent_chunk_id
    FROM walk JOIN chunks ON chunks.chunk_id = walk.id
    WHERE chunks.parent_chunk_id IS NOT NULL
) CYCLE id SET seen_before USING path
SELECT DISTINCT chunks.chunk_id, chunks.document_id, chunks.parent_chunk_id,
       'circular_reference'::text AS problem
FROM walk JOIN chunks ON chunks.chunk_id = walk.start_id
WHERE walk.id = walk.start_id
UNION ALL
SELECT child.chunk_id, child.document_id, child.parent_chunk_id, 'parent_in_another_document'::text
FROM chunks AS child JOIN chunks AS parent ON parent.chunk_id = child.parent_chunk_id
WHERE parent.document_id <> child.document_id
UNION ALL
SELECT child.chunk_id, child.document_id, child.parent_chunk_id, 'invalid_level'::text
FROM chunks AS child LEFT JOIN chunks AS parent ON parent.chunk_id = child.parent_chunk_id
WHERE child.hierarchy_level NOT BETWEEN 0 AND 3 OR child.hierarchy_level <= parent.hierarchy_level
"""

# A lock timeout also ends the wait of CREATE INDEX CONCURRENTLY for older transactions, which holds up
# nobody.
LIFT_TIMEOUT = """
SELECT set_config('rag_factory.lock_timeout', current_setting('lock_timeout'), false),
       set_config('lock_timeout', '0', false)
"""
RESTORE_TIMEOUT = "SELECT set_config('lock_timeout', current_setting('rag_factory.lock_timeout'), false)"

INDEXES = {
    "idx_chunks_parent_chunk_id": ["parent_chunk_id"],
    "idx_chunks_hierarchy": ["document_id", "hierarchy_level", "chunk_index"],
}


def upgrade() -> None:
    op.execute(ADD_COLUMNS)
    op.execute(GET_CHUNK_ANCESTORS)
    op.execute(GET_CHUNK_DESCENDANTS)
    op.execute(CHUNK_HIERARCHY_VALIDATION)
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        for name, columns in INDEXES.items():
            # A build that failed leaves an INVALID index, which IF NOT EXISTS would take for a good one.
            op.drop_index(name, "chunks", if_exists=True, postgresql_concurrently=True)
            op.create_index(name, "chunks", columns, postgresql_concurrently=True)
        op.execute(RESTORE_TIMEOUT)


def downgrade() -> None:
    op.execute("DROP VIEW chunk_hierarchy_validation")
    op.execute("DROP FUNCTION get_chunk_descendants(uuid, integer)")
    op.execute("DROP FUNCTION get_chunk_ancestors(uuid, integer)")
    # The indexes go with their columns.
    op.drop_column("chunks", "hierarchy_metadata")
    op.drop_column("chunks", "hierarchy_level")
    op.drop_column("chunks", "parent_chunk_id")
