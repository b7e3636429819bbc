"""Walk the tree of a document's chunks: up, down, sideways; and find what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

# As deep as the database's functions walk when they aren't told.
DEEPEST = 32
_FIELDS = "chunks.chunk_id, document_id, chunk_index, text, metadata, parent_chunk_id, chunks.hierarchy_level"
_CHUNK = text(f"SELECT {_FIELDS}, 0 AS depth FROM chunks WHERE chunk_id = :chunk_id")
_ANCESTORS = text(
    f"SELECT {_FIELDS}, depth FROM get_chunk_ancestors(:chunk_id, :max_depth)"
    " JOIN chunks ON chunks.chunk_id = ancestor_id ORDER BY depth"
)
_DESCENDANTS = text(
    f"SELECT {_FIELDS}, depth FROM get_chunk_descendants(:chunk_id, :max_depth)"
    " JOIN chunks ON chunks.chunk_id = descendant_id ORDER BY depth, chunk_index"
)
# Two conditions for the two cases: an index finds NULL by IS NULL only.
_SIBLINGS = text(
    f"SELECT {_FIELDS}, 0 AS depth FROM chunks JOIN"
    " (SELECT chunk_id AS own_id, document_id AS own_document, parent_chunk_id AS own_parent"
    "  FROM chunks WHERE chunk_id = :chunk_id) AS own"
    " ON (parent_chunk_id = own_parent OR (own_parent IS NULL AND parent_chunk_id IS NULL))"
    " AND document_id = own_document AND chunk_id <> own_id ORDER BY chunk_index"
)
_PROBLEMS = text(
    "SELECT chunk_id, document_id, parent_chunk_id, problem FROM chunk_hierarchy_validation"
    " WHERE CAST(:document_id AS uuid) IS NULL OR document_id = :document_id"
    " ORDER BY document_id, chunk_id, problem"
)


@dataclass(frozen=True)
class Node:
    """A chunk in its tree. depth: steps from the chunk that was asked for; 0 for itself and its siblings."""

    chunk_id: UUID
    document_id: UUID
    chunk_index: int
    text: str
    metadata: dict[str, Any]
    parent_chunk_id: UUID | None
    hierarchy_level: int
    depth: int


@dataclass(frozen=True)
class Section:
    """A chunk with all that is below it. nodes: in document order, the section's own chunk first.

    text: theirs, with an empty line between; without those that a chunk above them holds already.
    """

    nodes: tuple[Node, ...]
    text: str


@dataclass(frozen=True)
class Problem:
    """What is wrong with a chunk: circular_reference, parent_in_another_document, or invalid_level."""

    chunk_id: UUID
    document_id: UUID
    parent_chunk_id: UUID | None
    problem: str


def ancestors(session: Session, chunk_id: UUID, *, max_depth: int = DEEPEST) -> list[Node]:
    """The chunk's parent, its parent, and so on; none for a root, or a chunk that isn't there."""
    return _read(session, _ANCESTORS, chunk_id, max_depth)


def descendants(session: Session, chunk_id: UUID, *, max_depth: int = DEEPEST) -> list[Node]:
    """All that is below a chunk, by depth: its children first, then theirs; in their order within each."""
    return _read(session, _DESCENDANTS, chunk_id, max_depth)


def siblings(session: Session, chunk_id: UUID) -> list[Node]:
    """The other chunks of the same parent, in their order; for a root, the document's other roots."""
    return [Node(*row) for row in session.execute(_SIBLINGS, {"chunk_id": chunk_id})]


def subtree(session: Session, chunk_id: UUID, *, max_depth: int = DEEPEST) -> list[Node]:
    """A chunk and all that is below it in document order: each followed by its own before its next sibling.

    Nothing for a chunk that isn't there.
    """
    own = [Node(*row) for row in session.execute(_CHUNK, {"chunk_id": chunk_id})]
    if not own:
        return []
    children: dict[UUID | None, list[Node]] = {}
    for node in descendants(session, chunk_id, max_depth=max_depth):
        children.setdefault(node.parent_chunk_id, []).append(node)
    ordered, waiting = [], own
    while waiting:
        node = waiting.pop()
        ordered.append(node)
        waiting.extend(reversed(children.get(node.chunk_id, ())))
    return ordered


def expand(session: Session, chunk_id: UUID, *, levels: int = 1) -> Section:
    """Widen a chunk, such as a search's hit, to the section around it.

    levels: how many steps up, as far as there are parents; 1: the parent; 0: what is below the chunk itself.
    Raises UsageError: there is no such chunk.
    """
    if levels < 0:
        raise UsageError(f"levels is {levels}, and can't be negative.")
    above = ancestors(session, chunk_id, max_depth=levels)
    nodes = subtree(session, above[-1].chunk_id if above else chunk_id)
    if not nodes:
        raise UsageError(f"There is no chunk {chunk_id}.")
    return Section(tuple(nodes), "\n\n".join(_new_texts(nodes)))


def find_problems(session: Session, document_id: UUID | None = None) -> list[Problem]:
    """What is wrong with the hierarchy, of one document or of all; of all, it reads every chunk."""
    return [Problem(*row) for row in session.execute(_PROBLEMS, {"document_id": document_id})]


def _read(session: Session, statement: Any, chunk_id: UUID, max_depth: int) -> list[Node]:
    if max_depth < 0:
        raise UsageError(f"max_depth is {max_depth}, and can't be negative.")
    rows = session.execute(statement, {"chunk_id": chunk_id, "max_depth": max_depth})
    return [Node(*row) for row in rows]


def _new_texts(nodes: Sequence[Node]) -> Iterable[str]:
    """The texts, but for those that stand in the text of a chunk above already."""
    above: dict[UUID, list[str]] = {}
    for node in nodes:
        texts = above.get(node.parent_chunk_id, []) if node.parent_chunk_id else []
        above[node.chunk_id] = [*texts, node.text]
        if not any(node.text in text for text in texts):
            yield node.text
